//! The vocabulary of stallfree: requests, batches, outputs, and the traits where the two towers meet.
//!
//! Above this crate stand two towers that never see each other. The planning tower (kvcache, scheduler, engine, server)
//! knows requests and blocks, but no tensors; the device tower (kernels, models, worker) knows tensors, but no requests and
//! no HTTP. They meet in [`Executor`] and in two values: a [`Batch`] goes down, a [`StepOutput`] comes up.

mod batch;
mod calendar;
mod clock;
mod executor;
mod ids;
mod kv_transfer;
mod lock;
mod panic;
mod parallel;
mod request;
mod sampling;

pub use batch::{Batch, Chunk, History, PENDING_TOKEN, PromptLogprobs, SampleSpec};
pub use calendar::DateTime;
pub use clock::{Clock, Time, WallClock};
pub use executor::{
    Executor, ExecutorError, KvGeometry, SampledToken, StepOutput, TokenLogprob, UNSOUND,
};
pub use ids::{BatchId, BlockId, InstanceId, SeqId, SeqIdHasher, SeqMap, TokenId};
pub use kv_transfer::{KvFetch, KvLease, KvOffer, LeaseBook, LeaseId};
pub use lock::lock;
pub use panic::panic_message;
pub use parallel::Parallel;
pub use request::{FinishReason, Request, Slo, StopRules};
pub use sampling::SamplingParams;
