//! One rank: batch in, forward pass, sampled tokens out.

mod draw;
mod logprobs;
mod sampler;

pub use sampler::{Sampler, SamplerError};
