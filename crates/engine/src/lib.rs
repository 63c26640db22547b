//! The step loop, and the handle that others hold.
//!
//! [`Engine`] is the state machine, `engine.rs` its heart and a stop on the main path (after the tokenizer, before the scheduler's
//! `policy/sarathi.rs`). [`ThreadedEngine`] drives it to serve, [`Replay`] in virtual time. What stands above knows an engine only as an
//! [`EngineHandle`]. Nothing here knows text, HTTP, or how a batch is computed.

mod batch_builder;
mod bell;
mod command;
mod engine;
mod hand_over;
mod handle;
mod heartbeat;
mod instances;
mod leave_all;
mod output;
mod prompt_limits;
mod record;
mod replay;
mod report;
mod role;
mod seq_output;
mod state;
mod step_model;
mod threaded;
mod virtual_time;

pub use bell::{Readers, Ringer};
pub use command::{Command, Until, Wake};
pub use engine::Engine;
pub use hand_over::{HandedOver, LEASE, Membership, Peers, Progress};
pub use handle::{EngineHandle, EngineInfo, EngineStats, Health, SubmitError};
pub use instances::{InstanceChange, InstanceStatus};
pub use output::{OutputSender, OutputStream, output_stream, unpark_this_thread};
pub use prompt_limits::PromptLimits;
pub use record::{StepChunk, StepObserver, StepRecord};
pub use replay::Replay;
pub use report::Report;
pub use role::Role;
pub use seq_output::{Admitted, Finished, OutputToken, SeqOutput, SeqTimes, Stages};
pub use stallfree_scheduler::{Ordering, Standing};
pub use step_model::StepModel;
pub use threaded::ThreadedEngine;
pub use virtual_time::VirtualTime;
