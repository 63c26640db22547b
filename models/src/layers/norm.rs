//! A norm by the root mean square, Zhang and Sennrich 2019.

use stallfree_kernels::Backend;

use crate::Error;
use crate::loader::Loader;

#[derive(Debug)]
pub(crate) struct Norm<B: Backend> {
    weight: B::Vector,
    eps: f32,
}

impl<B: Backend> Norm<B> {
    pub(crate) fn load(loader: &mut Loader<'_, B>, name: &str) -> Result<Self, Error> {
        let config = loader.config();
        let weight = loader.weight(&format!("{name}.weight"), &[config.hidden_size])?;
        Ok(Self { weight: loader.vector(&[weight])?, eps: config.rms_norm_eps })
    }

    pub(crate) fn forward(&self, backend: &mut B, x: B::Tensor) -> B::Tensor {
        backend.rms_norm(x, &self.weight, self.eps)
    }

    /// Sums `x` over the ranks, adds the sum to `residual`, which stays, and returns the norm of that.
    pub(crate) fn add_forward(
        &self,
        backend: &mut B,
        x: B::Tensor,
        residual: B::Tensor,
    ) -> B::Tensor {
        backend.all_reduce_add_rms_norm(x, residual, &self.weight, self.eps)
    }
}
