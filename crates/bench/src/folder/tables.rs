//! Tables in Sarathi-Serve's columns.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use stallfree_engine::Stages;

use crate::metrics::{
    Distribution, REQUEST_METRICS, TOKEN_TIME, completions, quantile, token_gaps,
};
use crate::run::RunOutcome;
use crate::{BatchRecord, RequestRecord};

/// A figure of a batch.
type BatchMetric = (&'static str, fn(&BatchRecord) -> f64);

const BATCH_METRICS: &[BatchMetric] = &[
    ("batch_num_tokens", |batch| f64::from(batch.num_tokens())),
    ("batch_num_prefill_tokens", |batch| f64::from(batch.num_prefill_tokens)),
    ("batch_num_decode_tokens", |batch| f64::from(batch.num_decode_tokens)),
    ("batch_size", |batch| f64::from(batch.size)),
    ("batch_execution_time", BatchRecord::execution_time),
];

/// Points of a distribution that has one value a token: too many to write each.
const QUANTILES: usize = 1000;

/// Writes to a string, which can't fail.
macro_rules! add {
    ($text:expr, $($arg:tt)*) => {{ let _ = write!($text, $($arg)*); }};
}

/// Returns a line a completed request.
pub(super) fn requests(requests: &[RequestRecord]) -> String {
    let mut text = "Request Id,arrived_at,sent_at,status".to_owned();
    REQUEST_METRICS.iter().for_each(|metric| add!(text, ",{}", metric.name));
    text.push_str(",send_lag,longest_gap,");
    text.push_str(
        "prefill_queue_time,prefill_time,kv_transfer_time,decode_queue_time,decode_time\n",
    );
    for request in requests {
        let status = if request.is_completed() { "completed" } else { "failed" };
        add!(text, "{},{},{},{status}", request.id, request.planned, request.sent);
        for metric in REQUEST_METRICS {
            match (metric.of)(request) {
                Some(value) => add!(text, ",{value}"),
                None => text.push(','),
            }
        }
        let longest_gap = request.gaps().fold(0.0, f64::max);
        add!(text, ",{},{longest_gap}", request.send_lag());
        let Stages { prefill_queue, prefill, kv_transfer, decode_queue, decode } =
            request.stages.unwrap_or_default();
        for stage in [prefill_queue, prefill, kv_transfer, decode_queue, decode] {
            match request.stages {
                Some(_) => add!(text, ",{}", stage.as_secs_f64()),
                None => text.push(','),
            }
        }
        text.push('\n');
    }
    text
}

/// Returns a line a batch.
pub(super) fn batches(batches: &[BatchRecord]) -> String {
    let mut text = "Batch Id,started_at".to_owned();
    BATCH_METRICS.iter().for_each(|(name, _)| add!(text, ",{name}"));
    text.push_str(",inter_batch_delay,num_waiting,num_running,num_preempted,replica_id\n");
    let mut last_ends = BTreeMap::new();
    for batch in batches {
        add!(text, "{},{}", batch.id, batch.started);
        BATCH_METRICS.iter().for_each(|(_, of)| add!(text, ",{}", of(batch)));
        let BatchRecord { num_waiting, num_running, num_preempted, instance, .. } = batch;
        let last_end = last_ends.insert(*instance, batch.finished);
        let delay = (batch.started - last_end.unwrap_or(batch.started)).max(0.0);
        add!(text, ",{delay},{num_waiting},{num_running},{num_preempted},{instance}\n");
    }
    text
}

/// Returns every distribution and time series by its name: the columns are `cdf,<name>` or `Time (sec),<series>`.
pub(super) fn replica_plots(outcome: &RunOutcome) -> Vec<(String, String)> {
    let RunOutcome { requests, batches, .. } = outcome;
    let mut plots = Vec::new();
    for metric in REQUEST_METRICS {
        let values = Distribution::new(requests.iter().filter_map(metric.of));
        plots.push((metric.name.to_owned(), cdf(metric.name, &values)));
    }
    for (name, of) in BATCH_METRICS {
        let values = Distribution::new(batches.iter().map(of));
        plots.push(((*name).to_owned(), quantiles(name, &values)));
    }
    plots.push((
        TOKEN_TIME.to_owned(),
        quantiles(TOKEN_TIME, &Distribution::new(token_gaps(requests))),
    ));
    let start = requests.iter().map(|request| request.sent).reduce(f64::min).unwrap_or_default();
    let event = |name: &str, of: &dyn Fn(&RequestRecord) -> Option<(f64, usize)>| {
        let mut events: Vec<(f64, usize)> = requests.iter().filter_map(of).collect();
        events.sort_unstable_by(|(a, _), (b, _)| a.total_cmp(b));
        let mut total = 0;
        let points = events.into_iter().map(|(at, count)| {
            total += count as u64;
            (at - start, total)
        });
        (format!("{name}_time_series"), series(name, points))
    };
    plots.push(event("request_arrival", &|request| Some((request.sent, 1))));
    plots.push(event("request_completion", &|request| Some((request.finished, 1))));
    plots.push(event("prefill_completion", &|request| {
        Some((request.first_token()?, request.prompt_len))
    }));
    let tokens = series("decode_completion", completions(requests).into_iter());
    plots.push(("decode_completion_time_series".to_owned(), tokens));
    plots
}

/// One line a value.
fn cdf(name: &str, values: &Distribution) -> String {
    let mut text = format!("cdf,{name}\n");
    let count = values.sorted().len() as f64;
    for (index, value) in values.sorted().iter().enumerate() {
        add!(text, "{},{value}\n", (index + 1) as f64 / count);
    }
    text
}

/// One line a thousandth.
fn quantiles(name: &str, values: &Distribution) -> String {
    let mut text = format!("cdf,{name}\n");
    for index in (0..=QUANTILES).filter(|_| !values.sorted().is_empty()) {
        let share = index as f64 / QUANTILES as f64;
        add!(text, "{share},{}\n", quantile(values.sorted(), share));
    }
    text
}

fn series(name: &str, points: impl Iterator<Item = (f64, u64)>) -> String {
    let mut text = format!("Time (sec),{name}\n");
    points.for_each(|(at, total)| add!(text, "{at},{total}\n"));
    text
}
