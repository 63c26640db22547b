//! The records that requests and sequences keep while they are under way; a record dropped early counts as abandoned.

use std::time::Duration;

use stallfree_core::Time;
use stallfree_engine::{Admitted, SeqTimes};

use super::Series;
use crate::AppState;

/// One sequence's life as its reader sees it.
#[derive(Debug)]
pub(crate) struct SequenceRecord {
    state: AppState,
    prompt_tokens: usize,
    max_tokens: usize,
    arrived: Time,
    admission: Option<Admitted>,
    first_token: Option<Time>,
    last_token: Option<Time>,
    num_tokens: usize,
    ended: bool,
}

/// One request's life.
#[derive(Debug)]
pub(crate) struct RequestRecord {
    state: AppState,
    n: usize,
    ended: bool,
}

impl SequenceRecord {
    /// Starts a sequence's record.
    pub(crate) fn new(
        state: &AppState,
        arrived: Time,
        prompt_tokens: usize,
        max_tokens: usize,
    ) -> Self {
        Self {
            state: state.clone(),
            prompt_tokens,
            max_tokens,
            arrived,
            admission: None,
            first_token: None,
            last_token: None,
            num_tokens: 0,
            ended: false,
        }
    }

    pub(crate) const fn num_tokens(&self) -> usize {
        self.num_tokens
    }

    pub(crate) fn num_cached_tokens(&self) -> usize {
        self.admission.map_or(0, |admission| admission.num_cached_tokens)
    }

    /// Notes when the sequence first ran.
    pub(crate) const fn admitted(&mut self, admission: Admitted) {
        self.admission = Some(admission);
    }

    /// Notes a token.
    pub(crate) fn token(&mut self, at: Time) {
        self.num_tokens += 1;
        let (series, since) = match self.last_token {
            None => (Series::TimeToFirstToken, self.arrived),
            Some(last) => (Series::InterTokenLatency, last),
        };
        self.observe_time(series, since, at);
        self.first_token.get_or_insert(at);
        self.last_token = Some(at);
    }

    /// Notes what the engine says of its life.
    pub(crate) fn lived(&self, times: &SeqTimes) {
        let Some(stages) = times.stages() else { return };
        let metrics = self.state.metrics();
        if times.kv_transfer_ended.is_some() {
            metrics.observe(Series::KvTransferTime, stages.kv_transfer.as_secs_f64());
        }
        if times.decode_started.is_some() {
            metrics.observe(Series::DecodeQueueTime, stages.decode_queue.as_secs_f64());
        }
    }

    /// Notes the end.
    pub(crate) fn finish(&mut self, reason: &'static str) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        let metrics = self.state.metrics();
        metrics.count_finished(reason);
        metrics.observe(Series::PromptTokens, self.prompt_tokens as f64);
        metrics.observe(Series::GenerationTokens, self.num_tokens as f64);
        metrics.observe(Series::ParamsMaxTokens, self.max_tokens as f64);
        self.observe_time(Series::E2eLatency, self.arrived, self.state.engine().now());
        let Some(scheduled) = self.admission.map(|admission| admission.at) else { return };
        self.observe_time(Series::QueueTime, self.arrived, scheduled);
        let computed = self.prompt_tokens.saturating_sub(self.num_cached_tokens());
        metrics.observe(Series::PrefillComputedTokens, computed as f64);
        if let (Some(first), Some(last)) = (self.first_token, self.last_token) {
            self.observe_time(Series::PrefillTime, scheduled, first);
            self.observe_time(Series::DecodeTime, first, last);
            self.observe_time(Series::InferenceTime, scheduled, last);
            if let Some(intervals) = self.num_tokens.checked_sub(1).filter(|count| *count > 0) {
                let mean = (last - first).as_secs_f64() / intervals as f64;
                metrics.observe(Series::TimePerOutputToken, mean);
            }
        }
    }

    fn observe_time(&self, series: Series, from: Time, to: Time) {
        let duration: Duration = to.saturating_since(from);
        self.state.metrics().observe(series, duration.as_secs_f64());
    }
}

impl Drop for SequenceRecord {
    fn drop(&mut self) {
        self.finish("abort");
    }
}

impl RequestRecord {
    /// Starts a request's record.
    pub(crate) fn new(state: &AppState, n: usize) -> Self {
        Self { state: state.clone(), n, ended: false }
    }

    /// Notes the end, with the tokens of each choice.
    pub(crate) fn finish(&mut self, tokens: impl Iterator<Item = usize>) {
        if !std::mem::replace(&mut self.ended, true) {
            let metrics = self.state.metrics();
            metrics.observe(Series::ParamsN, self.n as f64);
            metrics.observe(Series::MaxGenerationTokens, tokens.max().unwrap_or(0) as f64);
        }
    }
}
