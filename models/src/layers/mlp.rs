//! The feed-forward network: `down(silu(gate(x)) * up(x))`, SwiGLU, Shazeer 2020.

use stallfree_kernels::Backend;

use super::{Linear, Outputs};
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
        let held = loader.part().tensor.range(intermediate);
        let outputs = |part| Outputs {
            name: format!("{prefix}.{part}"),
            out_features: intermediate,
            held: held.clone(),
        };
        let gate_up = [outputs("gate_proj"), outputs("up_proj")];
        let down = format!("{prefix}.down_proj");
        Ok(Self {
            gate_up: Linear::load_outputs(loader, &gate_up, hidden, false)?,
            down: Linear::load_inputs(loader, &down, [hidden, intermediate], held, false)?,
        })
    }

    /// Returns what the ranks' sum is the layer's output.
    ///
    /// # Shapes
    /// - `x`, result: `[num_tokens, hidden_size]`
    pub(crate) fn forward(&self, backend: &mut B, x: B::Tensor) -> B::Tensor {
        let activated = self.gate_up.forward_silu_mul(backend, x);
        self.down.forward(backend, activated)
    }
}
