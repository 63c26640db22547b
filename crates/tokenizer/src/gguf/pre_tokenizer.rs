//! How text is split into words before byte-level BPE, by the names that GGUF files use.

use tokenizers::normalizers::unicode::NFC;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{NormalizerWrapper, PreTokenizerWrapper, SplitDelimiterBehavior};

use crate::Error;

/// What happens to text before BPE.
pub(super) struct Rules {
    pub(super) normalizer: Option<NormalizerWrapper>,
    pub(super) pre_tokenizer: PreTokenizerWrapper,
    /// Whether a word that is a token as a whole is taken as it is, whatever the merges say.
    pub(super) whole_words_first: bool,
}

const SUPPORTED: &str = "default, gpt-2, smollm, starcoder, llama-bpe, qwen2, tekken";

// The patterns define the vocabularies' formats: they are what the models were trained with.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Returns the rules of a `tokenizer.ggml.pre`.
pub(super) fn named(pre: &str) -> Result<Rules, Error> {
    match pre {
        "default" | "gpt-2" => Ok(rules(ByteLevel::new(false, true, true).into())),
        "smollm" | "starcoder" => Ok(rules(in_order(vec![
            Digits::new(true).into(),
            ByteLevel::new(false, true, true).into(),
        ]))),
        "llama-bpe" | "llama3" | "llama-v3" => {
            Ok(Rules { whole_words_first: true, ..rules(pattern(LLAMA3)?) })
        }
        "qwen2" => Ok(Rules { normalizer: Some(NFC.into()), ..rules(pattern(QWEN2)?) }),
        "tekken" => Ok(Rules { whole_words_first: true, ..rules(pattern(TEKKEN)?) }),
        _ => Err(Error::Unsupported {
            what: "the GGUF file's pre-tokenizer",
            found: pre.to_owned(),
            supported: SUPPORTED,
        }),
    }
}

/// Returns whether texts begin with the beginning-of-sequence token where the file doesn't say.
pub(super) fn begins_texts_with_bos(pre: &str) -> bool {
    matches!(pre, "llama-bpe" | "llama3" | "llama-v3" | "tekken")
}

const fn rules(pre_tokenizer: PreTokenizerWrapper) -> Rules {
    Rules { normalizer: None, pre_tokenizer, whole_words_first: false }
}

fn pattern(regex: &str) -> Result<PreTokenizerWrapper, Error> {
    let pattern = SplitPattern::Regex(regex.to_owned());
    let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false)
        .map_err(|e| Error::Vocab(e.to_string()))?;
    Ok(in_order(vec![split.into(), ByteLevel::new(false, true, false).into()]))
}

fn in_order(steps: Vec<PreTokenizerWrapper>) -> PreTokenizerWrapper {
    Sequence::new(steps).into()
}
