//! What an engine tells those who give it sequences, once a step.

use stallfree_core::{Batch, BatchId, Chunk, Executor, SeqId, Time};

use crate::step_model::{StepFit, StepLoad};
use crate::{Engine, StepModel};

/// An engine's account of itself after a step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// When.
    pub at: Time,
    /// Sequences that have a token from here, or came with one: those that decode, and those whose KV is on its way.
    pub num_decodes: usize,
    /// Their tokens.
    pub decode_tokens: usize,
    /// Until when none of them needs a step to meet its `tpot_slo`, and has a token's time to spare: the least of
    /// `first token + tpot_slo * (output - 1)`. `None` if nothing was promised.
    pub slack_until: Option<Time>,
    /// Sequences that got their first token from here, and go on here.
    pub first_tokens: Vec<SeqId>,
    /// How long steps take.
    pub steps: StepModel,
}

/// Prompts of which an executor is asked how long they take, in shares of the longest, and decodes: how many, and the same.
const PROMPTS: [usize; 6] = [1, 2, 4, 16, 64, 256];
const DECODES: [(usize, usize); 4] = [(1, 2), (8, 4), (32, 8), (128, 16)];

impl Engine {
    /// Tells the others how things are, if a step has ended since they were told.
    pub(crate) fn report(&mut self, now: Time) {
        let first_tokens = std::mem::take(&mut self.first_tokens);
        if !std::mem::take(&mut self.has_news) {
            return;
        }
        let Some(membership) = &mut self.membership else { return };
        let steps = self.fit.model();
        let mut report = Report { at: now, first_tokens, steps, ..Report::default() };
        for (&id, state) in self.seqs.iter().filter(|(_, state)| !state.awaits_token) {
            let Some(seq) = self.planner.sequence(id) else { continue };
            report.num_decodes += 1;
            report.decode_tokens += seq.tokens.len();
            let until = state.slack_until(seq.output().len());
            report.slack_until = [report.slack_until, until].into_iter().flatten().min();
        }
        membership.peers.report(report);
    }
}

impl StepFit {
    /// Takes an executor's predictions for steps that were, until there are some. One that knows nothing yet says nothing.
    pub(crate) fn ask(&mut self, executor: &dyn Executor, max_model_len: usize) {
        for share in PROMPTS {
            self.take_prediction(executor, &[(0, (max_model_len / share).max(2))]);
        }
        for (count, share) in DECODES {
            self.take_prediction(executor, &vec![(max_model_len / share, 1); count]);
        }
    }

    fn take_prediction(&mut self, executor: &dyn Executor, chunks: &[(usize, usize)]) {
        let mut load = StepLoad::default();
        let mut batch = Batch {
            id: BatchId(0),
            chunks: Vec::new(),
            token_ids: Vec::new(),
            block_ids: Vec::new(),
        };
        for (seq, &(num_computed_tokens, num_tokens)) in (0..).zip(chunks) {
            load.add(num_computed_tokens, num_tokens);
            let begin = batch.token_ids.len();
            batch.token_ids.resize(begin + num_tokens, 0);
            batch.chunks.push(Chunk {
                seq: SeqId(seq),
                num_computed_tokens,
                tokens: begin..begin + num_tokens,
                blocks: 0..0,
                sample: None,
                prompt_logprobs: None,
            });
        }
        self.observe(&load, executor.predict(&batch));
    }
}
