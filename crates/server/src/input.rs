//! From a JSON body to a request in which nothing is left to decide.
//!
//! Low level: [`fields`] reads one field with its type and range, so that every refusal names its parameter. High level:
//! [`sampling`], [`completion`] and [`chat`] put fields together, and end in a [`GenerationRequest`](crate::generate), the
//! only thing that the generation loop sees. `null` is the same as absent; unknown fields are tolerated; fields that would
//! change the result, but are not supported yet, are refused by name ([`refused`]).

pub(crate) mod body;
pub(crate) mod chat;
pub(crate) mod completion;
pub(crate) mod fields;
pub(crate) mod prompt;
pub(crate) mod refused;
pub(crate) mod sampling;
