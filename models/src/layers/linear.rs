//! A linear layer, or several that read the same input and are loaded as one.

use std::ops::Range;

use stallfree_kernels::Backend;

use crate::Error;
use crate::loader::Loader;

#[derive(Debug)]
pub(crate) struct Linear<B: Backend> {
    weight: B::Matrix,
    bias: Option<B::Vector>,
}

/// A linear layer of which a rank holds some outputs.
#[derive(Debug)]
pub(crate) struct Outputs {
    pub(crate) name: String,
    /// How many the layer has.
    pub(crate) out_features: usize,
    /// Which of them are the rank's.
    pub(crate) held: Range<usize>,
}

impl<B: Backend> Linear<B> {
    pub(crate) fn new(weight: B::Matrix, bias: Option<B::Vector>) -> Self {
        Self { weight, bias }
    }

    /// Loads a rank's outputs of the layers of `parts`, all with `in_features` inputs.
    pub(crate) fn load_outputs(
        loader: &mut Loader<'_, B>,
        parts: &[Outputs],
        in_features: usize,
        with_bias: bool,
    ) -> Result<Self, Error> {
        let mut weights = Vec::new();
        let mut biases = Vec::new();
        for Outputs { name, out_features, held } in parts {
            let shape = [*out_features, in_features];
            weights.push(loader.rows(&format!("{name}.weight"), &shape, held.clone())?);
            if with_bias {
                biases.push(loader.rows(&format!("{name}.bias"), &shape[..1], held.clone())?);
            }
        }
        let bias = if with_bias { Some(loader.vector(&biases)?) } else { None };
        Ok(Self { weight: loader.matrix(weights)?, bias })
    }

    /// Loads the layer `name` for a rank that has `held` of its inputs: the outputs of all ranks are to be summed. One rank adds the
    /// bias.
    pub(crate) fn load_inputs(
        loader: &mut Loader<'_, B>,
        name: &str,
        shape: [usize; 2],
        held: Range<usize>,
        with_bias: bool,
    ) -> Result<Self, Error> {
        let weight = loader.columns(&format!("{name}.weight"), &shape, held)?;
        let bias = if with_bias && loader.part().tensor.is_first() {
            let bias = loader.weight(&format!("{name}.bias"), &shape[..1])?;
            Some(loader.vector(&[bias])?)
        } else {
            None
        };
        Ok(Self { weight: loader.matrix(vec![weight])?, bias })
    }

    /// # Shapes
    /// - `x`: `[rows, in_features]`
    /// - returns `[rows, out_features]`, those of the parts side by side
    pub(crate) fn forward(&self, backend: &mut B, x: B::Tensor) -> B::Tensor {
        backend.linear(x, &self.weight, self.bias.as_ref())
    }

    /// Returns `silu(gate) * up` of the two parts; they have no bias.
    ///
    /// # Shapes
    /// - `x`: `[rows, in_features]`
    /// - returns `[rows, out_features / 2]`
    pub(crate) fn forward_silu_mul(&self, backend: &mut B, x: B::Tensor) -> B::Tensor {
        backend.linear_silu_mul(x, &self.weight)
    }
}
