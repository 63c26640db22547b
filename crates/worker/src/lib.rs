//! The ranks of a model: batches in, forward passes, sampled tokens out.

mod cpu;
mod cuda;
mod exchange;
mod executor;
mod in_flight;
mod kv_port;
mod movers;
mod nodes;
mod ranks;
mod runner;
mod start;
mod step_times;
mod submitted;
mod watchdog;

pub use cpu::{CpuWorkerConfig, run_cpu_node, start_cpu};
pub use cuda::{CudaWorkerConfig, RecordingProgress, cuda_dtype, run_cuda_node, start_cuda};
pub use exchange::{Exchange, GpuRanks};
pub use executor::ThreadExecutor;
pub use runner::Runner;
pub use stallfree_comm::{NodeConfig, decline};
pub use start::{Error, KvSize, WorkerReport};
pub use submitted::Submitted;
