//! CUDA contexts, streams, buffers, graphs and the run-time kernel compiler.
//!
//! The driver and its libraries are found at run time: nothing here needs a toolkit to build, and [`probe`] says what a machine
//! has without failing where there is nothing. This crate knows bytes and launches; it does not know tensors, models or steps.
//! `kernels/src/cuda` launches kernels through it.
#![expect(unsafe_code, reason = "calls the CUDA driver and its libraries")]

mod blas;
mod compile;
mod copies;
mod cubin_cache;
mod device;
mod error;
mod graph;
mod libraries;
mod links;
mod memory;
mod module;
mod probe;
mod staging;
mod stream;
mod tensor_map;

pub use blas::{Gemm, GemmPlan, GemmSpec, Lt};
pub use compile::{Arch, Cubin, FunctionUse, Source, compile, compiler_knows, compiler_version};
pub use copies::{Copies, Rows};
pub use cubin_cache::CubinCache;
pub use device::{Device, DeviceProps, check_reach};
pub use error::DeviceError;
pub use graph::{Graph, begin_capture, capture, end_capture};
pub use libraries::{Library, LoadedLibrary, find_library, search_libraries_in};
pub use links::{Link, LinkKind};
pub use memory::{DeviceArena, DeviceSlice, PinnedBuffer};
pub use module::{Arg, Function, Launch, Module};
pub use probe::{Driver, Gpu, Probe, gpu_is_usable, num_gpus, probe};
pub use staging::{Download, Upload};
pub use stream::{Event, Stream};
pub use tensor_map::{Swizzle, TensorMap, TensorMapSpec};

/// The element type of activations and weights on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// bfloat16.
    Bf16,
    /// IEEE half precision.
    F16,
    /// IEEE single precision.
    F32,
}

impl Dtype {
    /// Returns an element's size in bytes.
    #[must_use]
    pub const fn bytes(self) -> usize {
        match self {
            Self::Bf16 | Self::F16 => 2,
            Self::F32 => 4,
        }
    }
}
