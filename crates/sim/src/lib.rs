//! An executor that predicts how long steps take instead of computing them.
//!
//! Engine, scheduler and KV cache are the real ones; only the device is not there. A step's time comes from a roofline per
//! operator ([`CostModel`]) over a model's [`ModelShape`] and a [`Gpu`]'s data sheet, scaled by [`Factors`] that were fitted to
//! measured steps ([`Measured::fit`]). Under a virtual clock, a day of traffic takes as long as its planning.

mod calibration;
mod cost;
mod error;
mod executor;
mod fit;
mod gpu;
mod load;
mod memory;
mod network;
mod pipeline;
mod shape;

pub use calibration::{Calibration, Factors};
pub use cost::{CostModel, Operators};
pub use error::Error;
pub use executor::{SimConfig, SimExecutor};
pub use fit::{GpuChoice, Measured, ModelChoice, Residual, Step};
pub use gpu::{Gpu, Link, SHIPPED, Shipped};
pub use load::StepLoad;
pub use memory::KvRoom;
pub use network::SimNetwork;
pub use shape::{BUILT_IN, FeedForward, ModelShape, built_in_config};
