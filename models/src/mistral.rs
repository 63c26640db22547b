//! Mistral: Llama with a sliding window.
//!
//! # Source
//! Jiang et al. 2023, §2.

use serde_json::Value;
use stallfree_kernels::Backend;

use crate::layers::AttentionWeights;
use crate::llama::Decoder;
use crate::loader::Loader;
use crate::{Architecture, Error, ModelConfig, SlidingWindow};

pub(crate) const ARCHITECTURE: Architecture = Architecture {
    names: &["MistralForCausalLM"],
    model_types: &["mistral"],
    gguf: &[], // such files call themselves llama
    doc: "Mistral 7B, Mistral Nemo, Mistral Small",
    configure,
    stored_name: str::to_owned,
    gguf_pairs_rows: false,
};

/// The first models' configuration left its window out.
const DEFAULT_WINDOW: u64 = 4096;

fn configure(json: &Value, config: &mut ModelConfig) -> Result<(), Error> {
    let size = match json.get("sliding_window") {
        None => Some(DEFAULT_WINDOW),
        Some(size) => size.as_u64(),
    };
    config.sliding_window = size
        .filter(|&size| size > 0)
        .map(|size| SlidingWindow { size: size as usize, first_layer: 0 });
    Ok(())
}

pub(crate) fn build<B: Backend>(loader: &mut Loader<'_, B>) -> Result<Decoder<B>, Error> {
    Decoder::load(loader, AttentionWeights::load)
}
