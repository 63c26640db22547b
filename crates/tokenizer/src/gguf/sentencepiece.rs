//! SentencePiece BPE from scores.
//!
//! Such a vocabulary has no merges: any two neighbors whose join is a token may merge, the join with the best score first.
//! That is BPE with one merge for each way to cut each token in two, ordered by the token's score.

use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence as Decoders;
use tokenizers::decoders::strip::Strip;
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::normalizers::{Prepend, Replace, Sequence as Normalizers};
use tokenizers::{DecoderWrapper, NormalizerWrapper, Tokenizer};

use super::{GgufVocab, USER_DEFINED, vocab_error};
use crate::Error;

const NORMAL: i32 = 1;
/// The longest token in bytes: all ways to cut it are tried, which takes a time that grows with its square.
const MAX_LEN: usize = 1024;

pub(super) fn build(vocab: &GgufVocab) -> Result<Tokenizer, Error> {
    if vocab.scores.len() != vocab.tokens.len() {
        return Err(Error::Vocab(format!(
            "{} tokens, but {} scores",
            vocab.tokens.len(),
            vocab.scores.len()
        )));
    }
    let ids = vocab.ids();
    let merges = merges(vocab, &ids)?;
    let mut bpe = BPE::builder().vocab_and_merges(ids, merges).byte_fallback(true).fuse_unk(true);
    if let Some(unk) = vocab.unk.and_then(|id| vocab.token(id)) {
        bpe = bpe.unk_token(unk.to_owned());
    }
    let mut tokenizer = Tokenizer::new(bpe.build().map_err(vocab_error)?);
    let space_prefix = vocab.add_space_prefix.unwrap_or(true);
    let mut normalizers: Vec<NormalizerWrapper> = Vec::new();
    let mut decoders: Vec<DecoderWrapper> = vec![
        Replace::new("▁", " ").map_err(vocab_error)?.into(),
        ByteFallback::new().into(),
        Fuse::new().into(),
    ];
    if space_prefix {
        normalizers.push(Prepend::new("▁".to_owned()).into());
        decoders.push(Strip::new(' ', 1, 0).into());
    }
    normalizers.push(Replace::new(" ", "▁").map_err(vocab_error)?.into());
    tokenizer.with_normalizer(Some(Normalizers::new(normalizers))).map_err(vocab_error)?;
    tokenizer.with_decoder(Some(Decoders::new(decoders)));
    Ok(tokenizer)
}

fn merges(vocab: &GgufVocab, ids: &Vocab) -> Result<Merges, Error> {
    let mut merges = Vec::new();
    for (id, token) in vocab.tokens.iter().enumerate() {
        if !matches!(vocab.type_of(id), NORMAL | USER_DEFINED) {
            continue;
        }
        if token.len() > MAX_LEN {
            let len = token.len();
            return Err(Error::Vocab(format!(
                "token {id} is {len} bytes long; at most {MAX_LEN} are possible"
            )));
        }
        for (cut, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(cut);
            if let (Some(&l), Some(&r)) = (ids.get(left), ids.get(right)) {
                merges.push((vocab.scores[id], (l, r), (left.to_owned(), right.to_owned())));
            }
        }
    }
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    Ok(merges.into_iter().map(|(_, _, merge)| merge).collect())
}
