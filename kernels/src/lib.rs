//! The op vocabulary that models are written in, and its implementations.
//!
//! A model is written once over [`Backend`]. Each implementation is tested against references in double precision, shape by shape
//! (`tests` for [`cpu`], `examples/gpu_check` for [`cuda`]); a GPU draws the tokens that the CPU draws, bit for bit.

#![expect(unsafe_code, reason = "vector instructions, and slices that threads share part by part")]

mod backend;
pub mod cpu;
pub mod cuda;
mod error;
mod mapped_file;
mod sampling;
mod weight;

pub use backend::{
    AttentionSpec, Backend, Choice, KvSpec, MAX_BLOCK_IDS, QkNorm, RaggedSeq, StepInputs, chosen_at,
};
pub use error::KernelError;
pub use mapped_file::MappedFile;
pub use sampling::{MAX_VOCAB, SampleRows, Sampled};
pub use weight::{WeightTensor, WeightType};
