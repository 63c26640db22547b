//! Qwen2: Llama with biases on queries, keys and values, and a window on later layers if asked for.
//!
//! # Source
//! Yang et al. 2024, Qwen2 technical report, §2.2.

use serde_json::Value;
use stallfree_kernels::Backend;

use crate::layers::AttentionWeights;
use crate::llama::Decoder;
use crate::loader::Loader;
use crate::{Architecture, Biases, Error, ModelConfig, SlidingWindow};

pub(crate) const ARCHITECTURE: Architecture = Architecture {
    names: &["Qwen2ForCausalLM"],
    model_types: &["qwen2"],
    gguf: &["qwen2"],
    doc: "Qwen1.5, Qwen2, Qwen2.5, QwQ",
    configure,
    stored_name: str::to_owned,
    gguf_pairs_rows: false,
};

fn configure(json: &Value, config: &mut ModelConfig) -> Result<(), Error> {
    config.biases = Biases { qkv: true, output: false };
    config.sliding_window = sliding_window(json);
    Ok(())
}

/// Reads the window of Qwen models: only if `use_sliding_window`, and from layer `max_window_layers` on.
pub(crate) fn sliding_window(json: &Value) -> Option<SlidingWindow> {
    if json.get("use_sliding_window").and_then(Value::as_bool) != Some(true) {
        return None;
    }
    let number =
        |key: &str| json.get(key).and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok());
    let size = number("sliding_window").filter(|&size| size > 0)?;
    Some(SlidingWindow { size, first_layer: number("max_window_layers").unwrap_or(28) })
}

pub(crate) fn build<B: Backend>(loader: &mut Loader<'_, B>) -> Result<Decoder<B>, Error> {
    Decoder::load(loader, AttentionWeights::load)
}
