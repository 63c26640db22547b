//! What can be wrong with a model.

use std::io;
use std::path::PathBuf;

use stallfree_kernels::KernelError;

/// A model could not be opened or loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A path holds no model.
    #[error("{}: {problem}", path.display())]
    NoModel {
        /// The path.
        path: PathBuf,
        /// What is missing, and what was expected.
        problem: String,
    },
    /// A file is not of its format.
    #[error("{}: not a valid {format} file: {problem}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// The format it claims.
        format: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// A setting of the model's configuration is missing or impossible.
    #[error("model configuration: {field}: {problem}")]
    Config {
        /// The setting's name in the file.
        field: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The model cannot be spread over so many ranks.
    #[error("{flag}: {problem}")]
    Split {
        /// The flag that asks for them.
        flag: &'static str,
        /// What does not fit.
        problem: String,
    },
    /// The model needs something that is not there.
    #[error("{what} is not supported; supported: {supported}")]
    Unsupported {
        /// What the model asks for.
        what: String,
        /// What could be asked for instead.
        supported: String,
    },
    /// A weight is not in the files.
    #[error("weight {name} is missing (looked for {looked_for})")]
    MissingTensor {
        /// The weight's canonical name.
        name: String,
        /// Its name in this checkpoint, and where.
        looked_for: String,
    },
    /// A weight has another shape than the configuration implies.
    #[error("weight {name}: expected shape {expected:?}, got {got:?}")]
    Shape {
        /// The weight's name in the file.
        name: String,
        /// What the configuration implies.
        expected: Vec<usize>,
        /// What the file says.
        got: Vec<usize>,
    },
    /// A weight reaches past the end of its file.
    #[error("weight {name} ends at byte {end} of a file of {len}: {} is truncated", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// The weight's name in the file.
        name: String,
        /// Where the weight ends.
        end: u64,
        /// How long the file is.
        len: u64,
    },
    /// The backend did not take a weight.
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

/// Makes a name from a file fit for one line of a message: files may be damaged.
pub(crate) fn printable(name: &str) -> String {
    name.chars().take(80).flat_map(char::escape_debug).collect()
}

/// Tells whether a weight's name can be one: messages will name it.
pub(crate) fn is_weight_name(name: &str) -> bool {
    name.len() <= 256 && !name.chars().any(char::is_control)
}

impl Error {
    pub(crate) fn config(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Config { field: field.into(), problem: problem.into() }
    }
}
