//! What can go wrong in an op or while loading its weights.

/// A load or an op failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// A tensor does not have the shape that the op needs.
    #[error("{operand}: expected shape {expected:?}, got {got:?}")]
    Shape {
        /// The tensor's name.
        operand: String,
        /// What the op needs.
        expected: Vec<usize>,
        /// What came.
        got: Vec<usize>,
    },
    /// A tensor's bytes do not fit its shape and type.
    #[error(
        "{operand}: {expected} bytes expected for its shape and type, got {got}; the file is truncated or damaged"
    )]
    Bytes {
        /// The tensor's name.
        operand: String,
        /// Bytes for that shape and type.
        expected: usize,
        /// Bytes that came.
        got: usize,
    },
    /// A tensor has a type that the op does not take.
    #[error("{operand}: expected {expected}, got {got:?}")]
    Type {
        /// The tensor's name.
        operand: String,
        /// What the op takes.
        expected: &'static str,
        /// What came.
        got: crate::WeightType,
    },
    /// Memory could not be had.
    #[error("{what} needs {bytes} bytes, which the device does not have; {hint}")]
    OutOfMemory {
        /// What the memory was for.
        what: String,
        /// How much.
        bytes: usize,
        /// What to do.
        hint: String,
    },
}
