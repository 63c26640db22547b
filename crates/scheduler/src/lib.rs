//! Who runs next: the [`Scheduler`] trait, its policies, the registry.
//!
//! Everything is a chunk: a step's work is a list of (sequence, tokens), and a decode is a chunk of one token. Policies
//! differ in the chunks that they pick and in nothing else; what they share (queues, blocks, preemption, the prefix cache)
//! is the [`Planner`], and they reach it through [`Step`]. Nothing here knows a device, reads a clock or does I/O: the same
//! state gives the same plan.
//!
//! To add a policy, write one file in `policy/` and add one line to [`POLICIES`]; a crate outside adds its own to a
//! [`Registry`]. The main path comes from the engine's `engine.rs`, goes through `policy/sarathi.rs` and on to the KV cache's
//! `manager.rs`.

mod config;
mod error;
mod hand_over;
mod ordering;
mod plan;
mod planner;
mod policy;
mod queues;
mod registry;
mod scheduler;
mod sequence;
mod step;
mod transfers;

pub use config::SchedulerConfig;
pub use error::Error;
pub use hand_over::EndedTransfer;
pub use ordering::{Ordering, Standing};
pub use plan::{Load, Plan, PlannedChunk};
pub use planner::Planner;
pub use registry::{Build, POLICIES, Policy, Registry, Setting};
pub use scheduler::{Admission, Declaration, Scheduler};
pub use sequence::{Sequence, Status};
pub use step::Step;
