//! The least time that a step can take on a GPU: its bytes over the memory's speed, its operations over the matrix units'.

use std::path::Path;

use anyhow::Result;
use serde_json::{Value, json};
use stallfree_kernels::cuda::Ceilings;
use stallfree_models::ModelConfig;

/// What a model asks of a GPU whose ceilings were measured.
#[derive(Clone, Copy, Debug)]
pub(super) struct Floor {
    ceilings: Ceilings,
    /// Parameters of the layers, a rank's.
    layers: f64,
    /// Parameters of the head.
    head: f64,
    /// Bytes of keys and values a token.
    kv_bytes: f64,
    /// Operations that a query and one key take, in all layers.
    attention: f64,
}

impl Floor {
    /// Measures the first GPU, for a model of whose every layer `ranks` have a share each.
    pub(super) fn measure(model: &ModelConfig, ranks: usize, kernel_cache: &Path) -> Result<Self> {
        let share = |whole: f64| whole / ranks as f64;
        let head = share((model.vocab_size * model.hidden_size) as f64);
        let tables = if model.tie_word_embeddings { head } else { 2.0 * head };
        let of_heads = |heads: usize| share((model.num_layers * heads * model.head_dim) as f64);
        Ok(Self {
            ceilings: Ceilings::measure(0, kernel_cache)?,
            layers: share(model.num_parameters() as f64) - tables,
            head,
            kv_bytes: of_heads(model.num_kv_heads) * 2.0 * 2.0,
            attention: of_heads(model.num_heads) * 4.0,
        })
    }

    pub(super) fn json(&self) -> Value {
        json!({
            "read_tb_per_s": self.ceilings.read_bytes_per_s / 1e12,
            "gemm_tflops": self.ceilings.gemm_flops / 1e12,
        })
    }

    /// Says what was measured.
    pub(super) fn line(&self) -> String {
        let Ceilings { read_bytes_per_s, gemm_flops } = self.ceilings;
        let (read, gemm) = (read_bytes_per_s / 1e12, gemm_flops / 1e12);
        format!(
            "Measured: memory is read at {read:.2} TB/s, a large product reaches {gemm:.0} TFLOP/s"
        )
    }

    /// Returns the seconds of a step in which `batch` sequences of `context` tokens get one more each.
    pub(super) fn decode(&self, batch: usize, context: f64) -> f64 {
        let batch = batch as f64;
        let bytes = (self.layers + self.head) * 2.0 + batch * context * self.kv_bytes;
        let flops = batch * (2.0 * (self.layers + self.head) + context * self.attention);
        self.seconds(bytes, flops)
    }

    /// Returns the seconds in which `count` prompts of `len` tokens are computed, and a first token for each.
    pub(super) fn prefill(&self, count: usize, len: usize) -> f64 {
        let (count, len) = (count as f64, len as f64);
        let bytes = (self.layers + self.head) * 2.0;
        let pairs = len * (len + 1.0) / 2.0;
        let flops = count * (2.0 * (self.layers * len + self.head) + pairs * self.attention);
        self.seconds(bytes, flops)
    }

    fn seconds(&self, bytes: f64, flops: f64) -> f64 {
        (bytes / self.ceilings.read_bytes_per_s).max(flops / self.ceilings.gemm_flops)
    }
}
