//! Sarathi-Serve's metrics, under its names. All times in seconds.

use crate::RequestRecord;

/// A figure of a request.
#[derive(Clone, Copy)]
pub struct RequestMetric {
    /// Its name in Sarathi-Serve's files.
    pub name: &'static str,
    /// Computes it; `None` where it is not known (a server does not say when it scheduled a request) or has no meaning.
    pub of: fn(&RequestRecord) -> Option<f64>,
}

impl std::fmt::Debug for RequestMetric {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("RequestMetric").field(&self.name).finish()
    }
}

/// The name of the time between tokens, which belongs to tokens instead of requests. Unlike Sarathi-Serve's own figure it has no 0
/// for each request's first token.
pub const TOKEN_TIME: &str = "decode_token_execution_plus_preemption_time";

/// Every figure of a request.
pub const REQUEST_METRICS: &[RequestMetric] = &[
    RequestMetric { name: "request_e2e_time", of: |r| Some(e2e(r)) },
    RequestMetric { name: "request_e2e_time_normalized", of: |r| per_output(r, e2e(r)) },
    RequestMetric {
        name: "request_e2e_time_piecewise_normalized",
        of: |r| Some(delay(r)? + per_output(r, served(r)?)?),
    },
    RequestMetric { name: "request_execution_time", of: |r| r.execution_time },
    RequestMetric {
        name: "request_execution_time_normalized",
        of: |r| per_output(r, r.execution_time?),
    },
    RequestMetric {
        name: "request_preemption_time",
        // Batches that overlap are counted twice in the execution time, so that it may exceed the time served.
        of: |r| Some((served(r)? - r.execution_time?).max(0.0)),
    },
    RequestMetric { name: "request_scheduling_delay", of: delay },
    RequestMetric { name: "request_execution_plus_preemption_time", of: served },
    RequestMetric {
        name: "request_execution_plus_preemption_time_normalized",
        of: |r| per_output(r, served(r)?),
    },
    RequestMetric { name: "prefill_e2e_time", of: RequestRecord::ttft },
    RequestMetric {
        name: "prefill_e2e_time_normalized",
        of: |r| Some(r.ttft()? / r.prompt_len.max(1) as f64),
    },
    RequestMetric {
        name: "prefill_e2e_time_piecewise_normalized",
        of: |r| Some(delay(r)? + prefill(r)? / r.prompt_len.max(1) as f64),
    },
    RequestMetric { name: "prefill_time_execution_plus_preemption", of: prefill },
    RequestMetric {
        name: "prefill_time_execution_plus_preemption_normalized",
        of: |r| Some(prefill(r)? / r.prompt_len.max(1) as f64),
    },
    RequestMetric {
        name: "decode_time_execution_plus_preemption_normalized",
        of: |r| per_output(r, r.token_times.last()? - r.first_token()?),
    },
    RequestMetric {
        name: "request_num_tokens",
        of: |r| Some((r.prompt_len + r.output_len) as f64),
    },
    RequestMetric { name: "request_num_prefill_tokens", of: |r| Some(r.prompt_len as f64) },
    RequestMetric { name: "request_num_decode_tokens", of: |r| Some(r.output_len as f64) },
    RequestMetric {
        name: "request_pd_ratio",
        of: |r| (r.output_len > 0).then(|| r.prompt_len as f64 / r.output_len as f64),
    },
    RequestMetric { name: "request_num_restarts", of: |r| Some(r.num_restarts as f64) },
];

/// Returns every gap between two tokens of one request.
pub fn token_gaps(requests: &[RequestRecord]) -> impl Iterator<Item = f64> + '_ {
    requests.iter().flat_map(RequestRecord::gaps)
}

/// Returns when how many output tokens had been produced by all requests together, from the first arrival on.
#[must_use]
pub fn completions(requests: &[RequestRecord]) -> Vec<(f64, u64)> {
    let start = requests.iter().map(|request| request.sent).reduce(f64::min).unwrap_or_default();
    let mut times: Vec<f64> =
        requests.iter().flat_map(|request| request.token_times.iter().copied()).collect();
    times.sort_unstable_by(f64::total_cmp);
    let mut steps: Vec<(f64, u64)> = Vec::new();
    for (index, time) in times.into_iter().enumerate() {
        let (at, count) = (time - start, index as u64 + 1);
        match steps.last_mut().filter(|(last, _)| last.total_cmp(&at).is_eq()) {
            Some((_, total)) => *total = count,
            None => steps.push((at, count)),
        }
    }
    steps
}

fn e2e(request: &RequestRecord) -> f64 {
    request.finished - request.sent
}

fn delay(request: &RequestRecord) -> Option<f64> {
    Some(request.scheduled? - request.sent)
}

fn served(request: &RequestRecord) -> Option<f64> {
    Some(request.finished - request.scheduled?)
}

fn prefill(request: &RequestRecord) -> Option<f64> {
    Some(request.first_token()? - request.scheduled?)
}

fn per_output(request: &RequestRecord, time: f64) -> Option<f64> {
    (request.output_len > 0).then(|| time / request.output_len as f64)
}
