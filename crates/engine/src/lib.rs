//! The step loop, and the handle that others hold.
