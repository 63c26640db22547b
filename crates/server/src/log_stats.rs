//! The throughput line, in the form that vLLM's users know and paste into reports.

use std::time::Duration;

use stallfree_engine::EngineStats;

use crate::AppState;

/// How often the line is written.
const INTERVAL: Duration = Duration::from_secs(10);

/// Writes the line every ten seconds while there is something to tell; never returns.
pub(crate) async fn run(state: AppState) {
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    ticks.tick().await; // the first one comes at once
    let mut log = ThroughputLog::new(state.engine().stats());
    let mut since = state.engine().now();
    loop {
        ticks.tick().await;
        let now = state.engine().now();
        if let Some(line) = log.line(state.engine().stats(), now - since) {
            tracing::info!("{line}");
        }
        since = now;
    }
}

/// What the last line was about.
#[derive(Debug)]
struct ThroughputLog {
    last: EngineStats,
    was_idle: bool,
    hit_rate: f64,
}

impl ThroughputLog {
    const fn new(stats: EngineStats) -> Self {
        Self { last: stats, was_idle: true, hit_rate: 0.0 }
    }

    /// Returns the line about the time since the last one, unless both were idle. One line tells that all has ended.
    fn line(&mut self, stats: EngineStats, elapsed: Duration) -> Option<String> {
        let seconds = elapsed.as_secs_f64().max(f64::MIN_POSITIVE);
        let since = |now: u64, before: u64| now.saturating_sub(before) as f64;
        let last = &self.last;
        let prompt = since(stats.prompt_tokens, last.prompt_tokens) / seconds;
        let generation = since(stats.generation_tokens, last.generation_tokens) / seconds;
        let queries = since(stats.prefix_cache_queries, last.prefix_cache_queries);
        if queries > 0.0 {
            self.hit_rate = since(stats.prefix_cache_hits, last.prefix_cache_hits) / queries;
        }
        let idle = prompt + generation <= 0.0 && stats.num_running + stats.num_waiting == 0;
        let silent = idle && self.was_idle;
        self.was_idle = idle;
        let line = (!silent).then(|| {
            format!(
                "Engine 000: Avg prompt throughput: {prompt:.1} tokens/s, Avg generation throughput: {generation:.1} \
                 tokens/s, Running: {} reqs, Waiting: {} reqs, GPU KV cache usage: {:.1}%, Prefix cache hit rate: {:.1}%",
                stats.num_running,
                stats.num_waiting,
                100.0 * stats.num_used_blocks as f64 / stats.num_blocks.max(1) as f64,
                100.0 * self.hit_rate,
            )
        });
        self.last = stats;
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_of_work_and_its_end_and_then_is_silent() {
        let mut log = ThroughputLog::new(EngineStats::default());
        let ten = Duration::from_secs(10);
        assert_eq!(log.line(EngineStats::default(), ten), None);
        let busy = EngineStats {
            num_running: 1,
            num_waiting: 14,
            num_used_blocks: 153,
            num_blocks: 200,
            prompt_tokens: 25,
            generation_tokens: 54,
            prefix_cache_queries: 25,
            prefix_cache_hits: 23,
            ..EngineStats::default()
        };
        assert_eq!(
            log.line(busy.clone(), ten).as_deref(),
            Some(
                "Engine 000: Avg prompt throughput: 2.5 tokens/s, Avg generation throughput: 5.4 tokens/s, \
                 Running: 1 reqs, Waiting: 14 reqs, GPU KV cache usage: 76.5%, Prefix cache hit rate: 92.0%"
            )
        );
        let hung = log.line(busy.clone(), ten).expect("a hung engine is not idle");
        assert!(hung.contains("generation throughput: 0.0 tokens/s, Running: 1 reqs"), "{hung}");
        let done = EngineStats { num_running: 0, num_waiting: 0, num_used_blocks: 0, ..busy };
        assert!(log.line(done.clone(), ten).is_some());
        assert_eq!(log.line(done, ten), None);
    }
}
