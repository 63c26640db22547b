//! The CPU's ops against references of their own, and their exactness: the same bits whatever the batch mates, the chunks, the
//! threads and the instructions.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

#[path = "cpu/attention.rs"]
mod attention;
#[path = "cpu/linear.rs"]
mod linear;
#[path = "cpu/rows.rs"]
mod rows;
#[path = "cpu/support.rs"]
mod support;
