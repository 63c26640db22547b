//! Prometheus metrics under vLLM's names, so that its dashboards and clients work unchanged.
//!
//! Counters and gauges are the engine's own, read when asked for; histograms are filled here, by the records of requests and
//! by an observer of the engine's steps.

mod histogram;
mod record;
mod series;
mod text;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use stallfree_core::lock;
use stallfree_engine::{StepObserver, StepRecord};

use histogram::Histogram;
pub(crate) use record::{RequestRecord, SequenceRecord};
use series::{SERIES, Series};

/// Everything that is counted over the life of a server.
#[derive(Debug)]
pub struct Metrics {
    model_name: String,
    counts: Mutex<Counts>,
}

#[derive(Debug)]
struct Counts {
    /// One for each entry of [`SERIES`].
    histograms: Vec<Histogram>,
    /// Finished sequences by reason.
    finished: BTreeMap<&'static str, u64>,
    /// Answered HTTP requests by route, method and class of status.
    http: BTreeMap<HttpKey, HttpCounts>,
}

/// What HTTP requests are counted by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct HttpKey {
    /// The route, not the path, so that there are few.
    pub handler: String,
    /// The method.
    pub method: String,
    /// The first digit of the status.
    pub status_class: u16,
}

#[derive(Debug, Default)]
struct HttpCounts {
    requests: u64,
    seconds: f64,
}

/// Fills the metrics of steps.
#[derive(Debug)]
struct Observer(Arc<Metrics>);

impl Metrics {
    /// Starts at zero. Token counts are sorted into buckets up to `max_model_len`.
    #[must_use]
    pub fn new(model_name: impl Into<String>, max_model_len: usize) -> Arc<Self> {
        let histograms = SERIES.iter().map(|entry| Histogram::new(entry.bounds(max_model_len)));
        let counts = Counts {
            histograms: histograms.collect(),
            finished: ["stop", "length", "abort", "error"].into_iter().map(|r| (r, 0)).collect(),
            http: BTreeMap::new(),
        };
        Arc::new(Self { model_name: model_name.into(), counts: Mutex::new(counts) })
    }

    /// Returns the observer to give to the engine.
    #[must_use]
    pub fn observer(self: &Arc<Self>) -> Box<dyn StepObserver> {
        Box::new(Observer(Arc::clone(self)))
    }

    /// Counts an answered HTTP request.
    pub(crate) fn count_http(&self, key: HttpKey, duration: Duration) {
        let mut counts = self.lock();
        let entry = counts.http.entry(key).or_default();
        entry.requests += 1;
        entry.seconds += duration.as_secs_f64();
    }

    fn observe(&self, series: Series, value: f64) {
        self.lock().observe(series, value);
    }

    fn count_finished(&self, reason: &'static str) {
        *self.lock().finished.entry(reason).or_default() += 1;
    }

    /// A panic elsewhere cannot leave the counts half-changed in a way that matters.
    fn lock(&self) -> MutexGuard<'_, Counts> {
        lock(&self.counts)
    }
}

impl Counts {
    fn observe(&mut self, series: Series, value: f64) {
        if let Some(histogram) = self.histograms.get_mut(series as usize) {
            histogram.observe(value);
        }
    }
}

impl StepObserver for Observer {
    fn on_step(&mut self, step: &StepRecord) {
        let prompt: usize = step.chunks.iter().map(|chunk| chunk.num_prompt_tokens).sum();
        self.0.observe(Series::IterationTokens, (prompt + step.num_sampled) as f64);
    }
}
