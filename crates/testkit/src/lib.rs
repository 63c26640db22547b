//! What tests share: a mock executor, a manual clock, a notation for traffic, and the equivalence check.
//!
//! The mock computes a made-up language through a simulated paged KV cache, so that a wrong block table, a wrongly shared
//! prefix or a forgotten recomputation changes its output. Everything here panics where something is wrong, as tests do.

#![expect(clippy::panic, reason = "tests panic where something is wrong")]

mod clock;
pub mod equivalence;
mod language;
mod mock;
mod reader;
mod traffic;

pub use clock::ManualClock;
pub use language::{Language, VOCAB_SIZE};
pub use mock::{Fault, MockConfig, MockExecutor, MockNetwork, Pace};
pub use reader::read_tokens;
pub use traffic::{greedy, traffic};
