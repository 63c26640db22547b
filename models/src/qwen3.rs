//! Qwen3: Llama with a norm on each head's query and key.
//!
//! # Source
//! Yang et al. 2025, Qwen3 technical report, §2; QK-norm: Dehghani et al. 2023.

use serde_json::Value;
use stallfree_kernels::{Backend, QkNorm};

use crate::layers::AttentionWeights;
use crate::llama::Decoder;
use crate::loader::Loader;
use crate::{Architecture, Error, ModelConfig, qwen2};

pub(crate) const ARCHITECTURE: Architecture = Architecture {
    names: &["Qwen3ForCausalLM"],
    model_types: &["qwen3"],
    gguf: &["qwen3"],
    doc: "Qwen3 (dense)",
    configure,
    stored_name: str::to_owned,
    gguf_pairs_rows: false,
};

fn configure(json: &Value, config: &mut ModelConfig) -> Result<(), Error> {
    if json.get("head_dim").is_none() {
        config.head_dim = 128;
    }
    config.sliding_window = qwen2::sliding_window(json);
    Ok(())
}

pub(crate) fn build<B: Backend>(loader: &mut Loader<'_, B>) -> Result<Decoder<B>, Error> {
    Decoder::load(loader, |loader, prefix| {
        let config = loader.config();
        let query = loader.weight(&format!("{prefix}.q_norm.weight"), &[config.head_dim])?;
        let key = loader.weight(&format!("{prefix}.k_norm.weight"), &[config.head_dim])?;
        let (query, key) = (loader.vector(&[query])?, loader.vector(&[key])?);
        let qk_norm = Some(QkNorm { query, key, eps: config.rms_norm_eps });
        Ok(AttentionWeights { qk_norm, ..AttentionWeights::load(loader, prefix)? })
    })
}
