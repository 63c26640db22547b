//! Prefill chunks and decodes in turn, never in one step.

use super::run_decodes;
use crate::{Admission, Declaration, Error, Policy, Scheduler, SchedulerConfig, Setting, Step};

pub(crate) const POLICY: Policy = Policy {
    name: "chunked",
    paper: "\"chunked-prefills-only\" in Agrawal et al., Sarathi-Serve, OSDI 2024, section 5.4",
    doc: "Chunks without mixing: a step of prefill chunks and a step of decodes in turn. Decodes stall for one chunk at a \
          time, and read the weights for themselves alone.",
    settings: &[Setting {
        name: "chunk_size",
        default: "max_num_batched_tokens",
        doc: "tokens a prefill step",
    }],
    build,
};

/// The ablation of the Sarathi-Serve paper that chunks prefills but batches them apart from decodes.
#[derive(Debug)]
struct Chunked {
    chunk_size: usize,
    max_chunk: usize,
    max_num_seqs: usize,
    turn: Turn,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    Prefill,
    Decode,
}

fn build(config: &SchedulerConfig) -> Result<Box<dyn Scheduler>, Error> {
    Ok(Box::new(Chunked {
        chunk_size: config.count_setting("chunk_size", config.max_num_batched_tokens)?,
        max_chunk: config.max_chunk(),
        max_num_seqs: config.max_num_seqs,
        turn: Turn::Prefill,
    }))
}

impl Scheduler for Chunked {
    fn declares(&self) -> Declaration {
        Declaration {
            token_bound: Some(self.chunk_size.max(self.max_num_seqs)),
            admission: Admission::WholePrompt,
            in_order: true,
        }
    }

    fn schedule(&mut self, step: &mut Step<'_>) {
        let wanted = self.turn;
        self.take(wanted, step);
        // A turn for which there is no work goes to the other kind of work.
        if step.is_empty() {
            self.take(wanted.other(), step);
        }
    }
}

impl Chunked {
    fn take(&mut self, turn: Turn, step: &mut Step<'_>) {
        match turn {
            Turn::Prefill => self.prefill(step),
            Turn::Decode => run_decodes(step),
        }
        if !step.is_empty() {
            self.turn = turn.other();
        }
    }

    fn limit(&self, step: &Step<'_>) -> usize {
        self.chunk_size.saturating_sub(step.num_tokens()).min(self.max_chunk)
    }

    /// Schedules the next chunks of ongoing prefills; new prompts only if there are none.
    fn prefill(&self, step: &mut Step<'_>) {
        let mut index = 0;
        while index < step.num_running() {
            if step.work(index) > 1 {
                step.run(index, self.limit(step));
            }
            index += 1;
        }
        if step.is_empty() {
            while step.admit(0, self.limit(step)).is_some() {}
        }
    }
}

impl Turn {
    const fn other(self) -> Self {
        match self {
            Self::Prefill => Self::Decode,
            Self::Decode => Self::Prefill,
        }
    }
}
