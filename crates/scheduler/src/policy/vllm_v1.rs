//! One token budget for all: running sequences first, then waiting ones.

use crate::{Admission, Declaration, Error, Policy, Scheduler, SchedulerConfig, Step};

pub(crate) const POLICY: Policy = Policy {
    name: "vllm-v1",
    paper: "vLLM's V1 scheduler (2025); chunked prefills after Agrawal et al., Sarathi-Serve, OSDI 2024",
    doc: "One budget of max_num_batched_tokens a step, spent on running sequences in the order of arrival (a decode takes one \
          token, a prefill what is left), then on waiting ones. Blocks are taken chunk by chunk.",
    settings: &[],
    build,
};

/// The policy of vLLM's V1 engine.
#[derive(Debug)]
struct VllmV1 {
    max_num_batched_tokens: usize,
    max_chunk: usize,
}

fn build(config: &SchedulerConfig) -> Result<Box<dyn Scheduler>, Error> {
    Ok(Box::new(VllmV1 {
        max_num_batched_tokens: config.max_num_batched_tokens,
        max_chunk: config.max_chunk(),
    }))
}

impl VllmV1 {
    /// Returns how many tokens the next sequence may have.
    fn limit(&self, step: &Step<'_>) -> usize {
        self.max_chunk.min(self.max_num_batched_tokens - step.num_tokens())
    }
}

impl Scheduler for VllmV1 {
    fn declares(&self) -> Declaration {
        Declaration {
            token_bound: Some(self.max_num_batched_tokens),
            admission: Admission::ThisChunk,
            in_order: true,
        }
    }

    fn schedule(&mut self, step: &mut Step<'_>) {
        let mut index = 0;
        while index < step.num_running() && self.limit(step) > 0 {
            step.run(index, self.limit(step));
            index += 1;
        }
        while step.admit(0, self.limit(step)).is_some() {}
    }
}
