//! Reads the streams of the requests under way and makes records of those that have ended.

use std::collections::VecDeque;
use std::task::{Context, Poll, Waker};

use stallfree_core::Time;
use stallfree_engine::{Finished, OutputStream, SeqOutput};

use super::Recorder;
use crate::workload::Item;
use crate::{Outcome, RequestRecord};

/// The requests under way and the records of the ended ones.
#[derive(Debug)]
pub(super) struct Intake {
    recorder: Recorder,
    /// What the engine's clock showed when the run started.
    start: f64,
    limit: usize,
    under_way: Vec<UnderWay>,
    ended: Vec<RequestRecord>,
    /// When places under the limit became free that nobody has taken yet.
    free: VecDeque<f64>,
}

#[derive(Debug)]
struct UnderWay {
    stream: OutputStream,
    start: f64,
    record: RequestRecord,
}

impl Intake {
    /// `limit` requests may be under way at once; `start` is what the engine's clock shows.
    pub(super) const fn new(recorder: Recorder, limit: usize, start: f64) -> Self {
        let free = VecDeque::new();
        Self { recorder, start, limit, under_way: Vec::new(), ended: Vec::new(), free }
    }

    /// Returns since when another request may be under way; `None` if it may not.
    pub(super) fn place(&mut self) -> Option<f64> {
        (self.under_way.len() < self.limit).then(|| self.free.pop_front().unwrap_or_default())
    }

    pub(super) const fn num_under_way(&self) -> usize {
        self.under_way.len()
    }

    pub(super) const fn num_ended(&self) -> usize {
        self.ended.len()
    }

    /// Takes over the stream of a request that has just been sent.
    pub(super) fn watch(&mut self, record: RequestRecord, stream: OutputStream) {
        self.under_way.push(UnderWay { stream, start: self.start, record });
    }

    /// Takes note of a request that the engine did not take.
    pub(super) fn refuse(&mut self, record: RequestRecord, reason: String) {
        self.free.push_back(record.sent);
        self.ended.push(RequestRecord { outcome: Outcome::Failed(reason), ..record });
    }

    /// Reads what there is; returns how many requests have ended since.
    pub(super) fn read(&mut self) -> usize {
        let before = self.ended.len();
        let mut index = 0;
        while index < self.under_way.len() {
            if self.under_way[index].poll() {
                let UnderWay { stream, mut record, .. } = self.under_way.swap_remove(index);
                record.execution_time = self.recorder.take_execution_time(stream.seq());
                self.ended.push(record);
            } else {
                index += 1;
            }
        }
        let places = self.ended.len() - before;
        if self.limit < usize::MAX {
            self.ended[before..].sort_unstable_by(|a, b| a.finished.total_cmp(&b.finished));
            self.free.extend(self.ended[before..].iter().map(|record| record.finished));
        }
        places
    }

    /// Returns all records in the workload's order, those of requests that never ended too.
    pub(super) fn into_records(mut self, now: f64) -> Vec<RequestRecord> {
        self.read();
        let lost = self.under_way.into_iter().map(|UnderWay { mut record, .. }| {
            record.outcome = Outcome::Failed("it had not ended when the run did".to_owned());
            record.finished = now;
            record
        });
        self.ended.extend(lost);
        self.ended.sort_by_key(|record| record.id);
        self.ended
    }
}

impl UnderWay {
    /// Returns whether the request has ended.
    fn poll(&mut self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        while let Poll::Ready(output) = self.stream.poll_next(&mut cx) {
            let Some(output) = output else { return true };
            if self.take(output) {
                return true;
            }
        }
        false
    }

    fn take(&mut self, output: SeqOutput) -> bool {
        let record = &mut self.record;
        let since_start = |time: Time| time.as_secs_f64() - self.start;
        if let Some(admission) = output.admission {
            record.scheduled = Some(since_start(admission.at));
            record.num_cached_tokens = Some(admission.num_cached_tokens);
        }
        record.token_times.extend(output.tokens.iter().map(|token| since_start(token.at)));
        record.output_len = record.token_times.len();
        if let Some(error) = output.error {
            record.outcome = Outcome::Failed(error);
            record.finished = record.token_times.last().copied().unwrap_or(record.sent);
            return true;
        }
        let Some(Finished { times, num_preemptions, .. }) = output.finished else { return false };
        record.finished = since_start(times.finished);
        record.stages = times.stages();
        record.num_restarts = num_preemptions;
        true
    }
}

/// Returns the record of a request that has just been sent.
pub(super) fn sent(id: usize, item: &Item, due: f64, sent: f64) -> RequestRecord {
    RequestRecord {
        id,
        planned: item.at,
        due,
        sent,
        scheduled: None,
        token_times: Vec::new(),
        finished: sent,
        prompt_len: item.prompt.len,
        output_len: 0,
        num_cached_tokens: None,
        stages: None,
        execution_time: None,
        num_restarts: 0,
        slo: item.slo,
        outcome: Outcome::Completed,
        text: String::new(),
    }
}
