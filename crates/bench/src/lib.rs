//! Workloads, runs, metrics and plots: the library behind `stallfree bench`.
//!
//! A [`Workload`] says which requests come when. A run gives it to an engine in the process ([`run::in_virtual_time`],
//! [`run::in_real_time`]) or, through the command line's HTTP client, to a server, and returns a [`RequestRecord`] a request and a
//! [`BatchRecord`] a step. [`Summary`] makes the figures out of them, under vLLM's and Sarathi-Serve's names, stalls beside
//! latencies; a [`RunFolder`] keeps all of it.
//!
//! Times are seconds after the run's start, as `f64`, unless a name says otherwise.

mod capacity;
mod error;
mod folder;
pub mod metrics;
pub mod plot;
mod record;
pub mod run;
mod stamp;
mod stored;
mod table;
pub mod workload;

pub use capacity::{Capacity, CapacityLimits, Trial};
pub use error::{Error, Result};
pub use folder::{RunFolder, new_folder};
pub use metrics::Summary;
pub use record::{BatchRecord, ChunkRecord, Outcome, RequestRecord};
pub use stamp::{date, moment, stamp};
pub use stored::StoredResult;
pub use table::{TableHead, table};
pub use workload::{Item, Workload, WorkloadConfig};
