//! One rank: batch in, forward pass, sampled tokens out.
