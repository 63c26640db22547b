//! Tokenizers from the metadata of GGUF files.
//!
//! Such a file carries a vocabulary and names the rules to use with it; the rules themselves are here.

mod pre_tokenizer;
mod sentencepiece;

use stallfree_core::TokenId;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, Tokenizer};

use crate::Error;

/// The `tokenizer.ggml.*` metadata of a GGUF file.
#[derive(Clone, Debug, Default)]
pub struct GgufVocab {
    /// `model`: `gpt2` (byte-level BPE) or `llama` (SentencePiece).
    pub model: String,
    /// `pre`: how text is split before BPE; only for `gpt2`.
    pub pre: Option<String>,
    /// `tokens`, by id.
    pub tokens: Vec<String>,
    /// `token_type`, by id: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte. Empty: all normal.
    pub token_types: Vec<i32>,
    /// `merges`, most urgent first: two tokens with a space between them; only for `gpt2`.
    pub merges: Vec<String>,
    /// `scores`, by id; only for `llama`.
    pub scores: Vec<f32>,
    /// `bos_token_id`.
    pub bos: Option<TokenId>,
    /// `eos_token_id`.
    pub eos: Option<TokenId>,
    /// `unknown_token_id`.
    pub unk: Option<TokenId>,
    /// `padding_token_id`.
    pub pad: Option<TokenId>,
    /// `add_bos_token`; by default only SentencePiece and Llama 3 begin texts with one.
    pub add_bos: Option<bool>,
    /// `add_space_prefix`: whether a text gets a space before it; only for `llama`, by default yes.
    pub add_space_prefix: Option<bool>,
}

const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;

impl GgufVocab {
    fn type_of(&self, id: usize) -> i32 {
        self.token_types.get(id).copied().unwrap_or(1)
    }

    fn token(&self, id: TokenId) -> Option<&str> {
        self.tokens.get(id as usize).map(String::as_str)
    }

    fn ids(&self) -> Vocab {
        (0..).zip(&self.tokens).map(|(id, token)| (token.clone(), id)).collect()
    }

    /// Returns the tokens that are found in text before anything else is done to it.
    fn added_tokens(&self) -> Vec<AddedToken> {
        let ends = [self.bos, self.eos];
        let added = |(id, content): (usize, &String)| {
            let is_end = ends.iter().flatten().any(|&end| end as usize == id);
            let special = is_end || matches!(self.type_of(id), UNKNOWN | CONTROL);
            let added = special || self.type_of(id) == USER_DEFINED;
            added.then(|| AddedToken::from(content.clone(), special).normalized(false))
        };
        self.tokens.iter().enumerate().filter_map(added).collect()
    }

    fn check(&self) -> Result<(), Error> {
        let len = self.tokens.len();
        let err = |what: String| Err(Error::Vocab(what));
        if len == 0 {
            return err("it has no tokens".into());
        }
        if !self.token_types.is_empty() && self.token_types.len() != len {
            return err(format!("{len} tokens, but {} token types", self.token_types.len()));
        }
        for (name, id) in
            [("bos", self.bos), ("eos", self.eos), ("unknown", self.unk), ("padding", self.pad)]
        {
            if let Some(id) = id.filter(|&id| id as usize >= len) {
                return err(format!("the {name} token is {id}, but there are {len} tokens"));
            }
        }
        Ok(())
    }
}

/// Builds the tokenizer that a GGUF file describes.
pub(crate) fn build(vocab: GgufVocab) -> Result<Tokenizer, Error> {
    vocab.check()?;
    let mut tokenizer = match vocab.model.as_str() {
        "gpt2" => byte_level(&vocab)?,
        "llama" => sentencepiece::build(&vocab)?,
        _ => {
            return Err(Error::Unsupported {
                what: "the GGUF file's tokenizer model",
                found: vocab.model,
                supported: "gpt2 (byte-level BPE), llama (SentencePiece)",
            });
        }
    };
    tokenizer.add_tokens(vocab.added_tokens()).map_err(vocab_error)?;
    add_bos(&mut tokenizer, &vocab)?;
    Ok(tokenizer)
}

fn byte_level(vocab: &GgufVocab) -> Result<Tokenizer, Error> {
    let pre = vocab.pre.as_deref().unwrap_or("default");
    let rules = pre_tokenizer::named(pre)?;
    let merges = vocab.merges.iter().map(|merge| {
        // A token may contain anything but a space, which byte-level BPE writes as `Ġ`.
        let (left, right) = merge
            .split_once(' ')
            .ok_or_else(|| Error::Vocab(format!("the merge {merge:?} is not two tokens")))?;
        Ok((left.to_owned(), right.to_owned()))
    });
    let bpe = BPE::builder()
        .vocab_and_merges(vocab.ids(), merges.collect::<Result<_, Error>>()?)
        .ignore_merges(rules.whole_words_first)
        .build()
        .map_err(vocab_error)?;
    let mut tokenizer = Tokenizer::new(bpe);
    tokenizer.with_normalizer(rules.normalizer).map_err(vocab_error)?;
    tokenizer.with_pre_tokenizer(Some(rules.pre_tokenizer));
    tokenizer.with_decoder(Some(tokenizers::decoders::byte_level::ByteLevel::default()));
    Ok(tokenizer)
}

fn add_bos(tokenizer: &mut Tokenizer, vocab: &GgufVocab) -> Result<(), Error> {
    let by_default = vocab.model == "llama"
        || vocab.pre.as_deref().is_some_and(pre_tokenizer::begins_texts_with_bos);
    let Some((id, token)) = vocab.bos.and_then(|id| Some((id, vocab.token(id)?))) else {
        return Ok(());
    };
    if !vocab.add_bos.unwrap_or(by_default) {
        return Ok(());
    }
    // The token may contain what a template's syntax gives a meaning, so the template names it by a placeholder.
    let placeholder = tokenizers::processors::template::SpecialToken::new(
        "bos".into(),
        vec![id],
        vec![token.to_owned()],
    )
    .map_err(vocab_error)?;
    let template = TemplateProcessing::builder()
        .try_single("bos $A")
        .map_err(|e| Error::Vocab(e.clone()))?
        .special_tokens(vec![placeholder])
        .build()
        .map_err(|e| Error::Vocab(e.to_string()))?;
    tokenizer.with_post_processor(Some(template));
    Ok(())
}

#[expect(clippy::needless_pass_by_value, reason = "map_err hands its error over")]
fn vocab_error(error: impl ToString) -> Error {
    Error::Vocab(error.to_string())
}
