//! The feed-forward network: `down(silu(gate(x)) * up(x))`, SwiGLU, Shazeer 2020.

use stallfree_kernels::Backend;

use super::Linear;
use crate::Error;
use crate::loader::Loader;

#[derive(Debug)]
pub(crate) struct Mlp<B: Backend> {
    gate_up: Linear<B>,
    down: Linear<B>,
}

impl<B: Backend> Mlp<B> {
    pub(crate) fn load(loader: &mut Loader<'_, B>, prefix: &str) -> Result<Self, Error> {
        let config = loader.config();
        let (hidden, intermediate) = (config.hidden_size, config.intermediate_size);
        let gate_up = [
            (format!("{prefix}.gate_proj"), intermediate),
            (format!("{prefix}.up_proj"), intermediate),
        ];
        let down = [(format!("{prefix}.down_proj"), hidden)];
        Ok(Self {
            gate_up: Linear::load(loader, &gate_up, hidden, false)?,
            down: Linear::load(loader, &down, intermediate, false)?,
        })
    }

    /// # Shapes
    /// - `x`, result: `[num_tokens, hidden_size]`
    pub(crate) fn forward(&self, backend: &mut B, x: B::Tensor) -> B::Tensor {
        let activated = self.gate_up.forward_silu_mul(backend, x);
        let output = self.down.forward(backend, activated);
        backend.all_reduce(output);
        output
    }
}
