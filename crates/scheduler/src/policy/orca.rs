//! Decodes and whole new prompts together, with all the memory a sequence may need set aside when it starts.

use super::{RESERVE, admit_prompts, reserve_of, run_decodes};
use crate::{Admission, Declaration, Error, Policy, Scheduler, SchedulerConfig, Step};

pub(crate) const POLICY: Policy = Policy {
    name: "orca",
    paper: "Yu et al., Orca: A Distributed Serving System for Transformer-Based Generative Models, OSDI 2022",
    doc: "Iteration-level batching: every step has all decodes and as many whole new prompts as there are seats and memory. \
          Steps have no token bound, so a long prompt stalls the decodes that share its step.",
    settings: &[RESERVE],
    build,
};

/// The policy of Orca, section 4.
#[derive(Debug)]
struct Orca {
    admission: Admission,
}

fn build(config: &SchedulerConfig) -> Result<Box<dyn Scheduler>, Error> {
    Ok(Box::new(Orca { admission: reserve_of(config)? }))
}

impl Scheduler for Orca {
    fn declares(&self) -> Declaration {
        Declaration { token_bound: None, admission: self.admission, in_order: true }
    }

    fn schedule(&mut self, step: &mut Step<'_>) {
        run_decodes(step);
        admit_prompts(step);
    }
}
