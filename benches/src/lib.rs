//! What the criterion benches share.

mod executor;
mod vocabulary;

pub use executor::Instantly;
pub use vocabulary::{FIRST_WORD, byte_token, tokenizer};
