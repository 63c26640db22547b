//! What tests share: a mock executor, a manual clock, trace builders.
