//! New prompts first and whole, decodes when no prompt can start.

use super::run_decodes;
use crate::{Admission, Declaration, Error, Policy, Scheduler, SchedulerConfig, Step};

pub(crate) const POLICY: Policy = Policy {
    name: "vllm",
    paper: "Kwon et al., Efficient Memory Management for Large Language Model Serving with PagedAttention, SOSP 2023, as the \
            baseline of Agrawal et al., Sarathi-Serve, OSDI 2024",
    doc: "Prefill first: while a waiting prompt fits, steps consist of whole prompts only, up to max_num_batched_tokens \
          together (a longer prompt has a step to itself), and all decodes stall. Good throughput, long pauses.",
    settings: &[],
    build,
};

/// The prefill-prioritizing policy of vLLM before version 1.
#[derive(Debug)]
struct Vllm {
    max_num_batched_tokens: usize,
    token_bound: usize,
}

fn build(config: &SchedulerConfig) -> Result<Box<dyn Scheduler>, Error> {
    let max_num_batched_tokens = config.max_num_batched_tokens;
    let token_bound = max_num_batched_tokens.max(config.max_model_len).max(config.max_num_seqs);
    Ok(Box::new(Vllm { max_num_batched_tokens, token_bound }))
}

impl Scheduler for Vllm {
    fn declares(&self) -> Declaration {
        Declaration {
            token_bound: Some(self.token_bound),
            admission: Admission::WholePrompt,
            in_order: true,
        }
    }

    fn schedule(&mut self, step: &mut Step<'_>) {
        while let Some(num_tokens) = step.uncached(0) {
            let fits = step.num_tokens() + num_tokens <= self.max_num_batched_tokens;
            // A prompt over the bound would wait forever, and all others behind it.
            let alone = step.is_empty();
            if !(fits || alone) || step.admit(0, num_tokens).is_none() {
                break;
            }
        }
        if step.is_empty() {
            run_decodes(step);
        }
    }
}
