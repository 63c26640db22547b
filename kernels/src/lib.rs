//! The op vocabulary that models are written in, and its implementations.
//!
//! A model is written once over [`Backend`]; the CPU implementation in [`cpu`] is also the reference that every GPU kernel is
//! tested against, shape by shape.

#![expect(unsafe_code, reason = "vector instructions, and slices that threads share part by part")]

mod backend;
pub mod cpu;
pub mod cuda;
mod error;
mod mapped_file;
mod sampling;
mod weight;

pub use backend::{
    AttentionSpec, Backend, Choice, KvSpec, QkNorm, RaggedSeq, StepInputs, chosen_at,
};
pub use error::KernelError;
pub use mapped_file::MappedFile;
pub use sampling::{SampleRows, Sampled};
pub use weight::{WeightTensor, WeightType};
