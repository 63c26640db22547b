//! Where a model's tokenizer is described. What it means, the tokenizer crate knows.

mod dummy;

use std::path::{Path, PathBuf};

use serde_json::Value as Json;

use crate::checkpoint::{Gguf, Value};
use crate::{Error, ModelConfig};
pub(crate) use dummy::CHAT_TEMPLATE as DUMMY_CHAT_TEMPLATE;

/// Where a model's tokenizer is described.
#[derive(Clone, Debug)]
pub enum TokenizerSource {
    /// A tokenizer.json.
    File(PathBuf),
    /// A GGUF file's metadata.
    Gguf(Box<GgufTokenizer>),
}

/// A tokenizer as GGUF describes it; fields are named as the format's keys.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GgufTokenizer {
    /// The kind: `gpt2` is byte-level BPE, `llama` is SentencePiece.
    pub model: String,
    /// How text is split before merging: `smollm`, `llama-bpe`, `qwen2`.
    pub pre: String,
    /// The tokens' texts, by id.
    pub tokens: Vec<String>,
    /// Per token: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte. Empty: all normal.
    pub token_types: Vec<i32>,
    /// BPE merges, best first, each two texts with a space between.
    pub merges: Vec<String>,
    /// SentencePiece scores, by id.
    pub scores: Vec<f32>,
    /// The token that starts a text.
    pub bos_token_id: Option<u32>,
    /// The token that ends a text.
    pub eos_token_id: Option<u32>,
    /// The token for what has none.
    pub unknown_token_id: Option<u32>,
    /// The token that fills.
    pub padding_token_id: Option<u32>,
    /// Whether texts start with the bos token; `None` leaves it to the kind.
    pub add_bos_token: Option<bool>,
    /// Whether texts start with a space; `None` leaves it to the kind.
    pub add_space_prefix: Option<bool>,
    /// The chat template.
    pub chat_template: Option<String>,
}

/// The texts of special tokens, which chat templates refer to by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    /// The token that starts a text.
    pub bos_token: Option<String>,
    /// The token that ends a text.
    pub eos_token: Option<String>,
}

impl TokenizerSource {
    pub(crate) fn from_folder(folder: &Path) -> Result<Self, Error> {
        let path = folder.join("tokenizer.json");
        if path.exists() {
            return Ok(Self::File(path));
        }
        let problem = "there is no tokenizer.json; tokenizers of other kinds (tokenizer.model) must be converted \
                       first"
            .to_owned();
        Err(Error::NoModel { path: folder.to_owned(), problem })
    }

    /// Takes the folder's tokenizer, or one that is made up where it has none.
    pub(crate) fn dummy(folder: Option<&Path>, config: &ModelConfig) -> Self {
        let of_folder = folder.and_then(|folder| Self::from_folder(folder).ok());
        of_folder.unwrap_or_else(|| Self::Gguf(Box::new(dummy::tokenizer(config))))
    }

    pub(crate) fn from_gguf(file: &Gguf) -> Result<Self, Error> {
        let key = |name: &str| format!("tokenizer.ggml.{name}");
        let strings = |name: &str| match file.value(&key(name)) {
            Some(Value::Strings(strings)) => strings.clone(),
            _ => Vec::new(),
        };
        let tokens = strings("tokens");
        if tokens.is_empty() {
            return Err(Error::config(key("tokens"), "missing: the file has no tokenizer"));
        }
        let token_types = match file.value(&key("token_type")) {
            Some(Value::Integers(types)) => types.iter().map(|&kind| kind as i32).collect(),
            _ => Vec::new(),
        };
        let scores = match file.value(&key("scores")) {
            Some(Value::Floats(scores)) => scores.iter().map(|&score| score as f32).collect(),
            _ => Vec::new(),
        };
        for (name, len) in [("token_type", token_types.len()), ("scores", scores.len())] {
            if len != 0 && len != tokens.len() {
                let problem = format!("{len} entries for {} tokens", tokens.len());
                return Err(Error::config(key(name), problem));
            }
        }
        let text = |name: &str| file.string(&key(name)).unwrap_or_default().to_owned();
        Ok(Self::Gguf(Box::new(GgufTokenizer {
            model: text("model"),
            pre: text("pre"),
            tokens,
            token_types,
            merges: strings("merges"),
            scores,
            bos_token_id: file.token_id("bos_token_id"),
            eos_token_id: file.token_id("eos_token_id"),
            unknown_token_id: file.token_id("unknown_token_id"),
            padding_token_id: file.token_id("padding_token_id"),
            add_bos_token: file.boolean(&key("add_bos_token")),
            add_space_prefix: file.boolean(&key("add_space_prefix")),
            chat_template: file.string("tokenizer.chat_template").map(str::to_owned),
        })))
    }
}

impl SpecialTokens {
    pub(crate) fn from_json(json: &Json) -> Self {
        let token = |name: &str| {
            let value = json.get(name)?;
            value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_owned)
        };
        Self { bos_token: token("bos_token"), eos_token: token("eos_token") }
    }

    pub(crate) fn from_gguf(file: &Gguf) -> Self {
        let token = |name: &str| {
            let Some(Value::Strings(tokens)) = file.value("tokenizer.ggml.tokens") else {
                return None;
            };
            tokens.get(file.token_id(name)? as usize).cloned()
        };
        Self { bos_token: token("bos_token_id"), eos_token: token("eos_token_id") }
    }
}
