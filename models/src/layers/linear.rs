//! A linear layer, or several that read the same input and are loaded as one.

use stallfree_kernels::Backend;

use crate::Error;
use crate::loader::Loader;

#[derive(Debug)]
pub(crate) struct Linear<B: Backend> {
    weight: B::Matrix,
    bias: Option<B::Vector>,
}

impl<B: Backend> Linear<B> {
    pub(crate) fn new(weight: B::Matrix, bias: Option<B::Vector>) -> Self {
        Self { weight, bias }
    }

    /// Loads the layers of `parts`, each a name and its output features, all with `in_features` inputs.
    pub(crate) fn load(
        loader: &mut Loader<'_, B>,
        parts: &[(String, usize)],
        in_features: usize,
        with_bias: bool,
    ) -> Result<Self, Error> {
        let mut weights = Vec::new();
        let mut biases = Vec::new();
        for (name, out_features) in parts {
            weights.push(loader.weight(&format!("{name}.weight"), &[*out_features, in_features])?);
            if with_bias {
                biases.push(loader.weight(&format!("{name}.bias"), &[*out_features])?);
            }
        }
        let bias = if with_bias { Some(loader.vector(&biases)?) } else { None };
        Ok(Self { weight: loader.matrix(weights)?, bias })
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
