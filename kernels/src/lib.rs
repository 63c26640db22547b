//! The op vocabulary that models are written in, and its implementations.
