//! Text to tokens and back: encoding, chat templates, incremental detokenizing, stop strings.
//!
//! Knows no models and no HTTP. On the main path this crate stands between the server's routes, which hand it a
//! conversation, and the engine, which takes and returns token ids; next: `engine/engine.rs`.

mod chat;
mod detokenizer;
mod error;
mod gguf;
mod stop;
mod tokenizer;

pub use chat::{ChatTemplate, RenderOptions};
pub use detokenizer::{Detokenizer, DetokenizerOptions};
pub use error::Error;
pub use gguf::GgufVocab;
pub use stop::{StopFeed, StopStrings};
pub use tokenizer::Tokenizer;
