//! One rank: batch in, forward pass, sampled tokens out.

mod cpu;
mod draw;
mod executor;
mod logprobs;
mod runner;
mod sampler;
mod step_times;

pub use cpu::{CpuWorkerConfig, Error, KvSize, WorkerReport, start};
pub use executor::ThreadExecutor;
pub use runner::Runner;
pub use sampler::{Sampler, SamplerError};
