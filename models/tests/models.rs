//! Models as a whole: files in, logits out, on the CPU backend.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]
#![expect(clippy::needless_pass_by_value, reason = "a check takes its case whole")]

#[path = "models/companions.rs"]
mod companions;
#[path = "models/gguf.rs"]
mod gguf;
#[path = "models/logits.rs"]
mod logits;
#[path = "models/oracle.rs"]
mod oracle;
#[path = "models/refusals.rs"]
mod refusals;
#[path = "models/running.rs"]
mod running;
