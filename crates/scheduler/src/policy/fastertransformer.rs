//! A batch of requests from first prompt to last token before the next batch.

use super::{RESERVE, admit_prompts, reserve_of, run_decodes};
use crate::{Admission, Declaration, Error, Policy, Scheduler, SchedulerConfig, Step};

pub(crate) const POLICY: Policy = Policy {
    name: "fastertransformer",
    paper: "NVIDIA FasterTransformer; described in Agrawal et al., Sarathi-Serve, OSDI 2024, section 3",
    doc: "Request-level batching: new prompts start only when no running sequence is left to decode. Decodes never stall, but \
          a batch shrinks as its sequences end, and arrivals wait for its longest.",
    settings: &[RESERVE],
    build,
};

/// The policy of FasterTransformer, as the Sarathi-Serve paper compares with it.
#[derive(Debug)]
struct FasterTransformer {
    admission: Admission,
}

fn build(config: &SchedulerConfig) -> Result<Box<dyn Scheduler>, Error> {
    Ok(Box::new(FasterTransformer { admission: reserve_of(config)? }))
}

impl Scheduler for FasterTransformer {
    fn declares(&self) -> Declaration {
        Declaration { token_bound: None, admission: self.admission, in_order: true }
    }

    fn schedule(&mut self, step: &mut Step<'_>) {
        run_decodes(step);
        if step.is_empty() {
            admit_prompts(step);
        }
    }
}
