//! The bodies that go out, in OpenAI's shapes with vLLM's additions.
//!
//! What comes in is read by `input`, field by field, so that an error can name the field.

pub(crate) mod chat;
pub(crate) mod common;
pub(crate) mod completion;
pub(crate) mod error;
