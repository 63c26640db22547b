//! Model architectures over the op vocabulary, and weight loading.
//!
//! A [`Checkpoint`] is a model on disk: a folder with safetensors, a GGUF file, or only a configuration whose weights are drawn
//! at random. [`load`] brings it onto a [`Backend`](stallfree_kernels::Backend) as a [`Model`]. One architecture is one file and
//! one word in [`registry`]; [`mod@llama`] is the one to read first.
//!
//! This crate does not know requests, sequences or sampling, and which device it runs on.

mod checkpoint;
mod config;
mod error;
mod generation;
mod internlm2;
mod layers;
pub mod llama;
mod loader;
mod mistral;
mod model;
mod normal;
mod qwen2;
mod qwen3;
pub mod registry;
mod split;
pub mod tiny;
mod tokenizer_source;
mod weight;

pub use checkpoint::Checkpoint;
pub use config::{Biases, ModelConfig, RopeConfig, RopeScaling, SlidingWindow};
pub use error::Error;
pub use generation::GenerationDefaults;
pub use loader::{DtypeChoice, LoadOptions, load};
pub use model::Model;
pub use registry::{ARCHITECTURES, Architecture};
pub use tokenizer_source::{GgufTokenizer, SpecialTokens, TokenizerSource};
