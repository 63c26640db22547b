//! InternLM2: Llama with other weight names and one matrix for queries, keys and values, grouped by key-value head.
//!
//! # Source
//! Cai et al. 2024, InternLM2 technical report, §2.2.

use serde_json::Value;
use stallfree_comm::Share;
use stallfree_kernels::Backend;

use crate::layers::{AttentionWeights, Linear};
use crate::llama::Decoder;
use crate::loader::Loader;
use crate::weight::Weight;
use crate::{Architecture, Biases, Error, ModelConfig};

pub(crate) const ARCHITECTURE: Architecture = Architecture {
    names: &["InternLM2ForCausalLM"],
    model_types: &["internlm2"],
    gguf: &["internlm2"],
    doc: "InternLM2, InternLM2.5",
    configure,
    stored_name,
    gguf_pairs_rows: true,
};

fn configure(json: &Value, config: &mut ModelConfig) -> Result<(), Error> {
    let bias = json.get("bias").and_then(Value::as_bool).unwrap_or(false);
    config.biases = Biases { qkv: bias, output: bias };
    Ok(())
}

fn stored_name(name: &str) -> String {
    match name {
        "model.embed_tokens.weight" => return "model.tok_embeddings.weight".to_owned(),
        "lm_head.weight" => return "output.weight".to_owned(),
        _ => {}
    }
    const PARTS: [(&str, &str); 7] = [
        (".self_attn.wqkv.", ".attention.wqkv."),
        (".self_attn.o_proj.", ".attention.wo."),
        (".mlp.gate_proj.", ".feed_forward.w1."),
        (".mlp.down_proj.", ".feed_forward.w2."),
        (".mlp.up_proj.", ".feed_forward.w3."),
        (".input_layernorm.", ".attention_norm."),
        (".post_attention_layernorm.", ".ffn_norm."),
    ];
    let part = PARTS.iter().find(|(canonical, _)| name.contains(canonical));
    part.map_or_else(|| name.to_owned(), |(canonical, stored)| name.replace(canonical, stored))
}

pub(crate) fn build<B: Backend>(loader: &mut Loader<'_, B>) -> Result<Decoder<B>, Error> {
    Decoder::load(loader, |loader, prefix| {
        // GGUF files have the matrix taken apart.
        if !loader.has(&format!("{prefix}.wqkv.weight")) {
            return AttentionWeights::load(loader, prefix);
        }
        let config = loader.config();
        let rows = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim;
        let weight =
            loader.weight(&format!("{prefix}.wqkv.weight"), &[rows, config.hidden_size])?;
        let share = loader.part().tensor;
        let weight = loader.matrix(ungroup(&weight, config, share))?;
        let bias = if config.biases.qkv {
            let bias = loader.weight(&format!("{prefix}.wqkv.bias"), &[rows])?;
            Some(loader.vector(&ungroup(&bias, config, share))?)
        } else {
            None
        };
        Ok(AttentionWeights {
            qkv: Linear::new(weight, bias),
            qk_norm: None,
            output: AttentionWeights::load_output(loader, prefix)?,
        })
    })
}

/// Takes apart rows that come as, per key-value head, its queries, its key and its value; returns a rank's queries, keys, values.
fn ungroup<'a>(wqkv: &Weight<'a>, config: &ModelConfig, share: Share) -> Vec<Weight<'a>> {
    let queries = config.num_heads / config.num_kv_heads;
    let query = |head: usize| head / queries * (queries + 2) + head % queries;
    let key_value = |place: usize| move |head: usize| head * (queries + 2) + queries + place;
    let kv_heads = || config.kv_heads_of(share);
    let heads = config.heads_of(share).map(query);
    let heads = heads.chain(kv_heads().map(key_value(0))).chain(kv_heads().map(key_value(1)));
    heads.map(|head| wqkv.rows(config.elements_of(head..head + 1))).collect()
}
