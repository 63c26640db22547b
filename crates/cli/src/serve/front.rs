//! Puts the HTTP front before an engine.

use std::sync::Arc;

use stallfree_server::{AppState, DefaultSampling, ServerConfig};

use crate::config::FrontConfig;
use crate::instance::{Companions, Instance};
use crate::model_source::Found;

/// Combines what the model says with what the user said.
pub(super) fn state(instance: Instance, found: &Found, front: FrontConfig) -> AppState {
    let Instance { engine, metrics, companions, .. } = instance;
    let Companions { tokenizer, chat_template, generation, special } = companions;
    let neutral = DefaultSampling::default();
    let names = front.served_model_names;
    let config = ServerConfig {
        served_model_names: if names.is_empty() { found.names.clone() } else { names },
        model_root: found.root(),
        api_keys: front.api_keys,
        cors: front.cors,
        limits: front.limits,
        default_sampling: DefaultSampling {
            temperature: generation.temperature.unwrap_or(neutral.temperature),
            top_k: generation.top_k.unwrap_or(neutral.top_k),
            top_p: generation.top_p.unwrap_or(neutral.top_p),
            min_p: generation.min_p.unwrap_or(neutral.min_p),
            repetition_penalty: generation.repetition_penalty.unwrap_or(neutral.repetition_penalty),
            max_tokens: generation.max_new_tokens.map(|count| count as usize),
        },
        default_slo: front.default_slo,
        eos_token_ids: generation.eos_token_ids,
        bos_token: special.bos_token,
        eos_token: special.eos_token,
        default_chat_template_kwargs: front.chat_template_kwargs,
        report: front.report,
    };
    AppState::new(engine, Arc::new(tokenizer), chat_template, config, metrics)
}
