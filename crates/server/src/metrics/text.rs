//! The metrics in Prometheus's text format.

use std::fmt::{self, Write};

use stallfree_engine::{EngineInfo, EngineStats};

use super::{Counts, Metrics, SERIES};

impl Metrics {
    /// Returns all metrics, with the engine's own as of now.
    #[must_use]
    pub fn render(&self, stats: &EngineStats, info: &EngineInfo) -> String {
        let model = escape(&self.model_name);
        let mut page =
            Page { out: String::new(), labels: format!("model_name=\"{model}\",engine=\"0\"") };
        let counts = self.lock();
        // Writing to a string cannot fail.
        let _: fmt::Result = page
            .engine(stats, info)
            .and_then(|()| page.histograms(&counts))
            .and_then(|()| page.finished(&counts))
            .and_then(|()| page.http(&counts));
        page.out
    }
}

struct Page {
    out: String,
    labels: String,
}

impl Page {
    fn head(&mut self, name: &str, help: &str, kind: &str) -> fmt::Result {
        writeln!(self.out, "# HELP {name} {help}\n# TYPE {name} {kind}")
    }

    fn single(&mut self, name: &str, help: &str, kind: &str, value: f64) -> fmt::Result {
        self.head(name, help, kind)?;
        writeln!(self.out, "{name}{{{}}} {value}", self.labels)
    }

    fn engine(&mut self, stats: &EngineStats, info: &EngineInfo) -> fmt::Result {
        let used = stats.num_used_blocks as f64 / stats.num_blocks.max(1) as f64;
        let gauges = [
            ("num_requests_running", "Sequences that run.", stats.num_running as f64),
            ("num_requests_waiting", "Sequences that wait.", stats.num_waiting as f64),
            ("kv_cache_usage_perc", "The share of KV blocks in use; 1 is all.", used),
        ];
        for (name, help, value) in gauges {
            self.single(&format!("vllm:{name}"), help, "gauge", value)?;
        }
        let counters = [
            ("num_preemptions", "Preemptions.", stats.num_preemptions),
            ("prompt_tokens", "Prompt tokens computed or found in the cache.", stats.prompt_tokens),
            ("generation_tokens", "Tokens produced.", stats.generation_tokens),
            ("prefix_cache_queries", "Tokens looked up.", stats.prefix_cache_queries),
            ("prefix_cache_hits", "Tokens found.", stats.prefix_cache_hits),
        ];
        for (name, help, value) in counters {
            self.single(&format!("vllm:{name}_total"), help, "counter", value as f64)?;
        }
        self.head("vllm:cache_config_info", "The KV cache's settings.", "gauge")?;
        writeln!(
            self.out,
            "vllm:cache_config_info{{block_size=\"{}\",num_gpu_blocks=\"{}\",enable_prefix_caching=\"{}\",engine=\"0\"}} 1",
            info.kv.block_size,
            info.kv.num_blocks,
            if info.enable_prefix_caching { "True" } else { "False" },
        )
    }

    fn histograms(&mut self, counts: &Counts) -> fmt::Result {
        for (entry, histogram) in SERIES.iter().zip(&counts.histograms) {
            let name = format!("{}:{}", entry.prefix, entry.name);
            self.head(&name, entry.help, "histogram")?;
            let labels = &self.labels;
            for (bound, count) in histogram.cumulative() {
                // Python writes whole numbers with a point; dashboards match on it.
                writeln!(self.out, "{name}_bucket{{{labels},le=\"{bound:?}\"}} {count}")?;
            }
            let (count, sum) = (histogram.count(), histogram.sum());
            writeln!(self.out, "{name}_bucket{{{labels},le=\"+Inf\"}} {count}")?;
            writeln!(self.out, "{name}_sum{{{labels}}} {sum}\n{name}_count{{{labels}}} {count}")?;
        }
        Ok(())
    }

    fn finished(&mut self, counts: &Counts) -> fmt::Result {
        let name = "vllm:request_success_total";
        self.head(name, "Sequences that ended, by reason.", "counter")?;
        for (reason, count) in &counts.finished {
            writeln!(self.out, "{name}{{{},finished_reason=\"{reason}\"}} {count}", self.labels)?;
        }
        Ok(())
    }

    fn http(&mut self, counts: &Counts) -> fmt::Result {
        self.head("http_requests_total", "Answered HTTP requests.", "counter")?;
        for (key, http) in &counts.http {
            let (handler, method) = (escape(&key.handler), escape(&key.method));
            writeln!(
                self.out,
                "http_requests_total{{handler=\"{handler}\",method=\"{method}\",status=\"{}xx\"}} {}",
                key.status_class, http.requests
            )?;
        }
        let help = "Time to an HTTP response's head.";
        self.head("http_request_duration_seconds", help, "summary")?;
        for (key, http) in &counts.http {
            let (handler, method) = (escape(&key.handler), escape(&key.method));
            let labels = format!(
                "handler=\"{handler}\",method=\"{method}\",status=\"{}xx\"",
                key.status_class
            );
            writeln!(self.out, "http_request_duration_seconds_sum{{{labels}}} {}", http.seconds)?;
            writeln!(
                self.out,
                "http_request_duration_seconds_count{{{labels}}} {}",
                http.requests
            )?;
        }
        Ok(())
    }
}

/// Escapes a label's value.
fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
