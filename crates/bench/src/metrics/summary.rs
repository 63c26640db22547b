//! A run's figures in vLLM's fields, with stalls beside them.

use serde_json::{Map, Value, json};

use super::{Attained, Distribution, Slo, SloMetric, Stalls, attained, token_gaps};
use crate::RequestRecord;

/// How to make figures.
#[derive(Clone, Debug)]
pub struct SummaryConfig {
    /// Percentiles to report, from 0 to 100.
    pub percentiles: Vec<f64>,
    /// See [`Stalls::factor`].
    pub stall_factor: f64,
    /// What counts as a good request.
    pub goodput: Option<Goodput>,
    /// What requests are promised.
    pub slo: Option<Slo>,
    /// How many GPUs did it; rates a GPU are relative to that.
    pub num_gpus: usize,
}

impl Default for SummaryConfig {
    fn default() -> Self {
        Self {
            percentiles: vec![99.0],
            stall_factor: Stalls::FACTOR,
            goodput: None,
            slo: None,
            num_gpus: 1,
        }
    }
}

/// What counts as a good request; times in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Goodput {
    /// The most time to the first token.
    pub ttft: Option<f64>,
    /// The most time a token after the first.
    pub tpot: Option<f64>,
    /// The most time to the last token.
    pub e2el: Option<f64>,
}

/// A run's figures.
#[derive(Clone, Debug)]
pub struct Summary {
    /// From the first request sent to the last one ended, in seconds.
    pub duration: f64,
    /// Requests that got their tokens.
    pub completed: usize,
    /// Requests that did not.
    pub failed: usize,
    /// Prompt tokens of the completed ones.
    pub total_input_tokens: usize,
    /// Output tokens of the completed ones.
    pub total_output_tokens: usize,
    /// Completed requests a second that meet the goodput's limits.
    pub request_goodput: Option<f64>,
    /// Most output tokens in any second.
    pub max_output_tokens_per_s: f64,
    /// Most requests under way in any second.
    pub max_concurrent_requests: usize,
    /// Times to the first token.
    pub ttft: Distribution,
    /// Mean times a token after the first.
    pub tpot: Distribution,
    /// Times between tokens.
    pub itl: Distribution,
    /// Times to the last token.
    pub e2el: Distribution,
    /// Delays until the first chunk is scheduled; empty where that is not known.
    pub scheduling_delay: Distribution,
    /// How late requests were sent.
    pub send_lag: Distribution,
    /// How long requests waited on the sender's side for a place under its limit on concurrency.
    pub client_queue: Distribution,
    /// Stalls.
    pub stalls: Stalls,
    /// Shares of requests that met the objectives, where there were any.
    pub attained: Option<Attained>,
    config: SummaryConfig,
}

impl Summary {
    /// Makes the figures of a run.
    #[must_use]
    pub fn new(requests: &[RequestRecord], config: SummaryConfig) -> Self {
        let completed: Vec<&RequestRecord> = requests.iter().filter(|r| r.is_completed()).collect();
        let first = requests.iter().map(|r| r.sent).reduce(f64::min).unwrap_or_default();
        let last = requests.iter().map(|r| r.finished).reduce(f64::max).unwrap_or_default();
        let duration = last - first;
        let of = |metric: &dyn Fn(&RequestRecord) -> Option<f64>| {
            Distribution::new(completed.iter().filter_map(|request| metric(request)))
        };
        let itl = Distribution::new(token_gaps(requests));
        let slo_metrics = || requests.iter().map(SloMetric::from).collect::<Vec<_>>();
        let busiest = Busiest::of(requests, first, duration);
        Self {
            duration,
            completed: completed.len(),
            failed: requests.len() - completed.len(),
            total_input_tokens: completed.iter().map(|r| r.prompt_len).sum(),
            total_output_tokens: completed.iter().map(|r| r.output_len).sum(),
            request_goodput: config.goodput.map(|goodput| {
                let good = completed.iter().filter(|request| goodput.is_met(request)).count();
                rate(good as f64, duration)
            }),
            max_output_tokens_per_s: busiest.tokens,
            max_concurrent_requests: busiest.requests,
            ttft: of(&RequestRecord::ttft),
            tpot: of(&RequestRecord::tpot),
            e2el: of(&|request| Some(request.finished - request.sent)),
            scheduling_delay: of(&|request| Some(request.scheduled? - request.sent)),
            send_lag: Distribution::new(requests.iter().map(RequestRecord::send_lag)),
            client_queue: Distribution::new(requests.iter().map(|r| r.due - r.planned)),
            stalls: Stalls::find(requests, &itl, config.stall_factor),
            attained: config.slo.map(|slo| attained(&slo_metrics(), slo)),
            itl,
            config,
        }
    }

    /// Returns completed requests a second.
    #[must_use]
    pub fn request_throughput(&self) -> f64 {
        rate(self.completed as f64, self.duration)
    }

    /// Returns output tokens a second.
    #[must_use]
    pub fn output_throughput(&self) -> f64 {
        rate(self.total_output_tokens as f64, self.duration)
    }

    /// Returns prompt and output tokens a second.
    #[must_use]
    pub fn total_token_throughput(&self) -> f64 {
        rate((self.total_input_tokens + self.total_output_tokens) as f64, self.duration)
    }

    /// Returns how the figures were made.
    #[must_use]
    pub const fn config(&self) -> &SummaryConfig {
        &self.config
    }

    /// Returns the latencies by vLLM's short names.
    #[must_use]
    pub fn latencies(&self) -> [(&'static str, &Distribution); 4] {
        [("ttft", &self.ttft), ("tpot", &self.tpot), ("itl", &self.itl), ("e2el", &self.e2el)]
    }

    /// Returns the figures in vLLM's fields; what vLLM does not have follows under names of ours.
    #[must_use]
    pub fn to_json(&self) -> Map<String, Value> {
        let mut json = Map::new();
        let mut put = |name: &str, value: Value| {
            json.insert(name.to_owned(), value);
        };
        put("duration", json!(self.duration));
        put("completed", json!(self.completed));
        put("failed", json!(self.failed));
        put("total_input_tokens", json!(self.total_input_tokens));
        put("total_output_tokens", json!(self.total_output_tokens));
        put("request_throughput", json!(self.request_throughput()));
        put("request_goodput", json!(self.request_goodput));
        put("output_throughput", json!(self.output_throughput()));
        put("total_token_throughput", json!(self.total_token_throughput()));
        put("max_output_tokens_per_s", json!(self.max_output_tokens_per_s));
        put("max_concurrent_requests", json!(self.max_concurrent_requests));
        for (name, distribution) in self.latencies() {
            self.put_latency(name, distribution, &mut put);
        }
        put("stalls", json!(self.stalls));
        for (name, distribution) in [
            ("scheduling_delay", &self.scheduling_delay),
            ("send_lag", &self.send_lag),
            ("client_queue", &self.client_queue),
        ] {
            self.put_latency(name, distribution, &mut put);
        }
        if let Some((slo, attained)) = self.config.slo.zip(self.attained) {
            put("slo", json!(slo));
            put("slo_attainment", json!(attained));
        }
        put("num_gpus", json!(self.config.num_gpus));
        json
    }

    fn put_latency(
        &self,
        name: &str,
        distribution: &Distribution,
        put: &mut impl FnMut(&str, Value),
    ) {
        let ms = |seconds: f64| json!(seconds * 1000.0);
        put(&format!("mean_{name}_ms"), ms(distribution.mean()));
        put(&format!("median_{name}_ms"), ms(distribution.quantile(0.5)));
        put(&format!("std_{name}_ms"), ms(distribution.std()));
        for &percentile in &self.config.percentiles {
            let value = distribution.quantile(percentile / 100.0);
            put(&format!("p{percentile}_{name}_ms"), ms(value));
        }
    }
}

impl Goodput {
    fn is_met(&self, request: &RequestRecord) -> bool {
        let within = |limit: Option<f64>, value: Option<f64>| {
            limit.is_none_or(|limit| value.is_none_or(|value| value <= limit))
        };
        within(self.ttft, request.ttft())
            && within(self.tpot, request.tpot())
            && within(self.e2el, Some(request.finished - request.sent))
    }
}

fn rate(count: f64, duration: f64) -> f64 {
    if duration > 0.0 { count / duration } else { 0.0 }
}

/// The most of anything in a second, counted from the run's start as vLLM does.
struct Busiest {
    tokens: f64,
    requests: usize,
}

impl Busiest {
    fn of(requests: &[RequestRecord], start: f64, duration: f64) -> Self {
        let second = |at: f64| (at - start).max(0.0) as usize;
        let seconds = second(start + duration) + 1;
        let mut tokens = vec![0.0; seconds];
        // Requests that begin in a second, less those that ended in the one before.
        let mut change = vec![0_i64; seconds + 1];
        for request in requests {
            if let Some(bucket) = request.token_times.len().checked_sub(1) {
                // A server's message may carry several tokens.
                let each = request.output_len as f64 / (bucket + 1) as f64;
                for &at in &request.token_times {
                    tokens[second(at).min(seconds - 1)] += each;
                }
            }
            change[second(request.sent).min(seconds - 1)] += 1;
            change[second(request.finished).min(seconds - 1) + 1] -= 1;
        }
        let mut active = 0;
        let most = change.iter().map(|change| {
            active += change;
            active
        });
        let most = most.max().unwrap_or_default();
        Self {
            tokens: tokens.into_iter().fold(0.0, f64::max),
            requests: usize::try_from(most).unwrap_or_default(),
        }
    }
}
