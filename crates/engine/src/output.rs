//! The stream of one sequence's output, from the engine's thread to whoever asked.

/// One sequence's output; dropping it cancels the sequence.
#[derive(Debug)]
pub struct OutputStream {}
