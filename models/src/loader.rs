//! Brings a checkpoint's weights onto a backend.

use std::fmt;
use std::ops::Range;

use stallfree_comm::Part;
use stallfree_kernels::{Backend, WeightType};

use crate::weight::{Cut, Weight};
use crate::{Checkpoint, Error, Model, ModelConfig, registry};

/// How weights are loaded.
#[derive(Clone, Copy)]
pub struct LoadOptions<'a> {
    /// The type that matrices are converted to; quantized ones stay as they are, except with [`DtypeChoice::F32`].
    pub dtype: DtypeChoice,
    /// Which part of the model.
    pub part: Part,
    /// Called after each weight with the bytes read so far and in all.
    pub progress: Option<&'a (dyn Fn(u64, u64) + Sync)>,
}

impl Default for LoadOptions<'_> {
    /// The whole model, as the file has it.
    fn default() -> Self {
        Self { dtype: DtypeChoice::Auto, part: Part::WHOLE, progress: None }
    }
}

impl fmt::Debug for LoadOptions<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut fields = f.debug_struct("LoadOptions");
        fields.field("dtype", &self.dtype).field("part", &self.part).finish_non_exhaustive()
    }
}

/// The type that weights are kept in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DtypeChoice {
    /// As the file has them.
    #[default]
    Auto,
    /// 32 bits.
    F32,
    /// 16 bits, 8 of them exponent.
    BF16,
    /// 16 bits, 5 of them exponent.
    F16,
}

impl DtypeChoice {
    fn weight_type(self) -> Option<WeightType> {
        match self {
            Self::Auto => None,
            Self::F32 => Some(WeightType::F32),
            Self::BF16 => Some(WeightType::BF16),
            Self::F16 => Some(WeightType::F16),
        }
    }
}

/// Loads a model, or a part of it.
///
/// # Errors
/// The model cannot be split so, a weight is missing, cut off, of the wrong shape or of a type that is not supported, or the backend's memory is short.
pub fn load<B: Backend + 'static>(
    checkpoint: &Checkpoint,
    backend: &mut B,
    options: &LoadOptions<'_>,
) -> Result<Box<dyn Model<B>>, Error> {
    let part = options.part;
    checkpoint.config().check_split(part.tensor.of, part.stage.of)?;
    let total = checkpoint.num_bytes() / part.world_size() as u64;
    registry::build(&mut Loader { checkpoint, backend, options: *options, done: 0, total })
}

/// What an architecture builds itself from. Weights are asked for by their canonical names, those of Hugging Face's Llama.
pub(crate) struct Loader<'a, B: Backend> {
    checkpoint: &'a Checkpoint,
    backend: &'a mut B,
    options: LoadOptions<'a>,
    done: u64,
    total: u64,
}

impl<'a, B: Backend> Loader<'a, B> {
    pub(crate) fn config(&self) -> &'a ModelConfig {
        self.checkpoint.config()
    }

    /// Returns the part that is loaded.
    pub(crate) fn part(&self) -> Part {
        self.options.part
    }

    /// Tells whether the checkpoint holds the weight `name`.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.checkpoint.has(name)
    }

    /// Reads the weight `name`, which must have the shape `shape`.
    pub(crate) fn weight(&mut self, name: &str, shape: &[usize]) -> Result<Weight<'a>, Error> {
        self.read(name, shape, &Cut::Whole)
    }

    /// Reads some rows of the weight `name`.
    pub(crate) fn rows(
        &mut self,
        name: &str,
        shape: &[usize],
        rows: Range<usize>,
    ) -> Result<Weight<'a>, Error> {
        let cut = if rows.len() == shape[0] { Cut::Whole } else { Cut::Rows(rows) };
        self.read(name, shape, &cut)
    }

    /// Reads some columns of the weight `name`.
    pub(crate) fn columns(
        &mut self,
        name: &str,
        shape: &[usize],
        columns: Range<usize>,
    ) -> Result<Weight<'a>, Error> {
        let cut = if columns.len() == shape[1] { Cut::Whole } else { Cut::Columns(columns) };
        self.read(name, shape, &cut)
    }

    fn read(&mut self, name: &str, shape: &[usize], cut: &Cut) -> Result<Weight<'a>, Error> {
        let weight = self.checkpoint.weight(name, shape, cut)?;
        self.done += weight.bytes.len() as u64;
        if let Some(progress) = self.options.progress {
            progress(self.done.min(self.total), self.total);
        }
        Ok(weight)
    }

    /// Loads a matrix whose rows are those of `parts`.
    pub(crate) fn matrix(&mut self, parts: Vec<Weight<'a>>) -> Result<B::Matrix, Error> {
        let parts = match self.options.dtype.weight_type() {
            Some(dtype) => {
                parts.into_iter().map(|part| part.converted(dtype)).collect::<Result<_, _>>()?
            }
            None => parts,
        };
        let tensors: Vec<_> = parts.iter().map(Weight::as_tensor).collect();
        Ok(self.backend.load_matrix(&tensors)?)
    }

    /// Loads a vector whose elements are those of `parts`. Vectors are small and keep the file's precision.
    pub(crate) fn vector(&mut self, parts: &[Weight<'a>]) -> Result<B::Vector, Error> {
        let tensors: Vec<_> = parts.iter().map(Weight::as_tensor).collect();
        Ok(self.backend.load_vector(&tensors)?)
    }

    /// Loads rotary frequencies.
    pub(crate) fn rope(&mut self, inv_freq: &[f32]) -> Result<B::Rope, Error> {
        Ok(self.backend.load_rope(inv_freq)?)
    }
}
