//! What belongs to a model beside its weights: reads tokenizer, chat template and defaults of sampling.

use std::path::Path;

use anyhow::Result;
use stallfree_models::{
    Checkpoint, GenerationDefaults, GgufTokenizer, SpecialTokens, TokenizerSource,
};
use stallfree_tokenizer::{ChatTemplate, GgufVocab, Tokenizer};

use super::open;
use crate::config::{GenerationFrom, InstanceConfig, TemplateFrom, TokenizerFrom};

/// What belongs to a model beside its weights.
#[derive(Debug)]
pub(crate) struct Companions {
    /// The tokenizer.
    pub(crate) tokenizer: Tokenizer,
    /// The chat template, if there is one.
    pub(crate) chat_template: Option<ChatTemplate>,
    /// What its makers suggest for sampling.
    pub(crate) generation: GenerationDefaults,
    /// How special tokens are written.
    pub(crate) special: SpecialTokens,
}

impl Companions {
    /// Reads it all.
    ///
    /// # Errors
    /// Something can't be read, or there is no tokenizer.
    pub(super) fn read(checkpoint: &Checkpoint, config: &InstanceConfig) -> Result<Self> {
        let tokenizer = tokenizer(checkpoint, config)?;
        let template = match &config.chat_template {
            TemplateFrom::Text(text) => Some(text.clone()),
            TemplateFrom::Model => checkpoint.chat_template()?,
        };
        let generation = match &config.generation {
            GenerationFrom::Model => checkpoint.generation_config()?,
            GenerationFrom::Neutral => checkpoint.neutral_generation_config()?,
            GenerationFrom::Json(json) => GenerationDefaults::new(Some(json), checkpoint.config())?,
        };
        Ok(Self {
            tokenizer,
            chat_template: template.as_deref().map(ChatTemplate::new).transpose()?,
            generation,
            special: checkpoint.special_tokens()?,
        })
    }
}

/// Reads the tokenizer of the model at `path` alone.
///
/// # Errors
/// The model has none, or it can't be read.
pub(crate) fn open_tokenizer(path: &Path, config: &InstanceConfig) -> Result<Tokenizer> {
    tokenizer(&open(path, config.weights)?, config)
}

fn tokenizer(checkpoint: &Checkpoint, config: &InstanceConfig) -> Result<Tokenizer> {
    Ok(match &config.tokenizer {
        TokenizerFrom::File(path) => Tokenizer::from_file(path),
        TokenizerFrom::Model => match checkpoint.tokenizer_source()? {
            TokenizerSource::File(path) => Tokenizer::from_file(path),
            TokenizerSource::Gguf(vocab) => Tokenizer::from_gguf(vocab_of(*vocab)),
        },
    }?)
}

fn vocab_of(gguf: GgufTokenizer) -> GgufVocab {
    GgufVocab {
        model: gguf.model,
        pre: Some(gguf.pre).filter(|pre| !pre.is_empty()),
        tokens: gguf.tokens,
        token_types: gguf.token_types,
        merges: gguf.merges,
        scores: gguf.scores,
        bos: gguf.bos_token_id,
        eos: gguf.eos_token_id,
        unk: gguf.unknown_token_id,
        pad: gguf.padding_token_id,
        add_bos: gguf.add_bos_token,
        add_space_prefix: gguf.add_space_prefix,
    }
}
