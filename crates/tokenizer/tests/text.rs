//! Text to tokens and back, whole and streamed, over small vocabularies of every kind.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::sync::Arc;

use proptest::prelude::*;
use stallfree_tokenizer::{
    Detokenizer, DetokenizerOptions, Error, GgufVocab, StopStrings, Tokenizer,
};

/// Every byte as GPT-2 writes it, some merges, two special tokens, one word of the user's.
fn byte_level(pre: &str) -> GgufVocab {
    let printable = |b: u32| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let others = (0..256).filter(|&b| !printable(b)).count() as u32;
    let alphabet = (0..256).filter(|&b| printable(b)).chain(0x100..0x100 + others);
    let mut tokens: Vec<String> =
        alphabet.map(|c| char::from_u32(c).unwrap().to_string()).collect();
    let merges = ["Ġ t", "h e", "Ġt he", "1 2", "Ã ©", "a b", "ab c"];
    tokens.extend(merges.iter().map(|merge| merge.replace(' ', "")));
    let mut token_types = vec![1; tokens.len()];
    for (token, kind) in [("<|s|>", 3), ("<|e|>", 3), ("Éden", 4)] {
        tokens.push(token.into());
        token_types.push(kind);
    }
    let bos = u32::try_from(tokens.len() - 3).unwrap();
    GgufVocab {
        model: "gpt2".into(),
        pre: Some(pre.into()),
        merges: merges.iter().map(|&merge| merge.to_owned()).collect(),
        bos: Some(bos),
        eos: Some(bos + 1),
        tokens,
        token_types,
        ..GgufVocab::default()
    }
}

/// Unknown, begin, end, the bytes, then pieces with scores.
fn sentencepiece() -> GgufVocab {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).into();
    let mut token_types = vec![2, 3, 3];
    tokens.extend((0..256).map(|b| format!("<0x{b:02X}>")));
    token_types.extend([6; 256]);
    let pieces = ["lo", "el", "▁h", "▁hel", "▁hello", "ll", "▁", "h", "e", "l", "o", "1", "2", "é"];
    tokens.extend(pieces.map(str::to_owned));
    token_types.extend([1; 14]);
    let scores = (0..tokens.len()).map(|i| -(i as f32)).collect();
    GgufVocab {
        model: "llama".into(),
        scores,
        bos: Some(1),
        eos: Some(2),
        unk: Some(0),
        tokens,
        token_types,
        ..GgufVocab::default()
    }
}

fn tokenizers() -> Vec<(&'static str, Arc<Tokenizer>)> {
    let bare = GgufVocab { add_space_prefix: Some(false), ..sentencepiece() };
    let mut all = vec![("sentencepiece", sentencepiece()), ("sentencepiece, no prefix", bare)];
    all.extend(["default", "smollm", "llama-bpe", "tekken"].map(|pre| (pre, byte_level(pre))));
    all.into_iter()
        .map(|(name, vocab)| (name, Arc::new(Tokenizer::from_gguf(vocab).unwrap())))
        .collect()
}

fn written(tokenizer: &Tokenizer, text: &str, add_special_tokens: bool) -> Vec<String> {
    let ids = tokenizer.encode(text, add_special_tokens).unwrap();
    ids.into_iter().map(|id| tokenizer.id_to_token(id).unwrap()).collect()
}

fn stream(mut detokenizer: Detokenizer, tokens: &[u32]) -> String {
    let mut text = String::new();
    for &token in tokens {
        text.push_str(detokenizer.push(token));
    }
    text + detokenizer.flush()
}

#[test]
fn words_are_cut_as_the_pre_tokenizer_says() {
    let check = |pre, text, expected: &[&str]| {
        let tokenizer = Tokenizer::from_gguf(byte_level(pre)).unwrap();
        assert_eq!(written(&tokenizer, text, false), expected, "{pre}: {text:?}");
    };
    check("default", " the 12", &["Ġthe", "Ġ", "12"]);
    check("smollm", " the 12", &["Ġthe", "Ġ", "1", "2"]);
    check("llama-bpe", " the 12", &["Ġthe", "Ġ", "12"]);
    check("qwen2", " the 12é", &["Ġthe", "Ġ", "1", "2", "Ã©"]);
    check("qwen2", "e\u{301}", &["Ã©"]);
    check("default", "é<|e|>abc", &["Ã©", "<|e|>", "abc"]);
    check("default", "Édenab", &["Éden", "ab"]);
}

#[test]
fn sentencepiece_merges_by_score() {
    let tokenizer = Tokenizer::from_gguf(sentencepiece()).unwrap();
    assert_eq!(written(&tokenizer, "hello", true), ["<s>", "▁hello"]);
    // "el" has a better score than "ll", "lo" than "ll".
    assert_eq!(written(&tokenizer, "hell", false), ["▁hel", "l"]);
    assert_eq!(written(&tokenizer, "llo", false), ["▁", "l", "lo"]);
    assert_eq!(written(&tokenizer, "é\n", false), ["▁", "é", "<0x0A>"]);
    assert_eq!(tokenizer.token_bytes(3 + 0x0a), b"\n");
}

#[test]
fn texts_begin_as_the_file_says() {
    let check = |vocab: GgufVocab, expected: bool| {
        let bos = vocab.bos.unwrap();
        let tokenizer = Tokenizer::from_gguf(vocab).unwrap();
        assert_eq!(tokenizer.encode("a", true).unwrap()[0] == bos, expected);
        assert_ne!(tokenizer.encode("a", false).unwrap()[0], bos);
    };
    check(byte_level("smollm"), false);
    check(byte_level("llama-bpe"), true);
    check(sentencepiece(), true);
    check(GgufVocab { add_bos: Some(true), ..byte_level("smollm") }, true);
    check(GgufVocab { add_bos: Some(false), ..sentencepiece() }, false);
}

#[test]
fn damaged_vocabularies_are_refused_with_the_reason() {
    let check = |vocab: GgufVocab, reason: &str| {
        let error = Tokenizer::from_gguf(vocab).unwrap_err();
        assert!(!error.is_clients());
        assert!(error.to_string().contains(reason), "{error}");
    };
    check(GgufVocab { model: "bert".into(), ..sentencepiece() }, "\"bert\"");
    check(byte_level("klingon"), "klingon");
    check(GgufVocab { scores: vec![], ..sentencepiece() }, "0 scores");
    check(GgufVocab { tokens: vec![], ..byte_level("default") }, "no tokens");
    check(GgufVocab { bos: Some(9999), ..byte_level("default") }, "9999");
    check(GgufVocab { token_types: vec![1], ..byte_level("default") }, "1 token types");
    check(GgufVocab { merges: vec!["one".into()], ..byte_level("default") }, "\"one\"");
    check(GgufVocab { merges: vec!["zz q".into()], ..byte_level("default") }, "zz");
    let mut long = sentencepiece();
    long.tokens[270] = "l".repeat(1025);
    check(long, "token 270 is 1025 bytes long");
    assert!(matches!(Tokenizer::from_file("/nowhere"), Err(Error::File { .. })));
}

#[test]
fn vocabularies_with_strange_tokens_work_or_are_refused() {
    let check = |vocab: GgufVocab| {
        let Ok(tokenizer) = Tokenizer::from_gguf(vocab) else { return };
        let tokens = tokenizer.encode("hello <s><|s|> the é\n", true).unwrap_or_default();
        assert!(tokenizer.decode(&tokens, true).len() < 1000);
    };
    for vocab in [sentencepiece(), byte_level("default"), byte_level("llama-bpe")] {
        for id in (0..vocab.tokens.len()).rev().take(24).chain([0, 1, 2]) {
            for text in ["", " ", "<s>", "▁", "é", "a b", "h", "<0x0A>", "<|s|>", "$A", "\0"] {
                let mut changed = vocab.clone();
                changed.tokens[id] = text.to_owned();
                check(changed);
            }
            for (kind, score) in (-1..8).zip([0.0, f32::NAN, f32::INFINITY].into_iter().cycle()) {
                let mut changed = vocab.clone();
                changed.token_types[id] = kind;
                changed.scores.iter_mut().skip(id).take(1).for_each(|old| *old = score);
                check(changed);
            }
        }
    }
}

#[test]
fn a_streamed_continuation_keeps_its_leading_space() {
    let tokenizer = Arc::new(Tokenizer::from_gguf(sentencepiece()).unwrap());
    let hello = tokenizer.encode("hello", false).unwrap();
    let options = DetokenizerOptions::default();
    let after = |prompt: &[u32]| {
        stream(Detokenizer::after_prompt(tokenizer.clone(), options, prompt), &hello)
    };
    assert_eq!(after(&hello), " hello");
    assert_eq!(after(&[1]), "hello");
    assert_eq!(after(&[]), "hello");
}

#[test]
fn a_character_begun_in_the_prompt_is_completed() {
    let tokenizer = Arc::new(Tokenizer::from_gguf(sentencepiece()).unwrap());
    let byte = |b: u32| 3 + b;
    let detokenizer = Detokenizer::after_prompt(
        tokenizer,
        DetokenizerOptions::default(),
        &[byte(0x61), byte(0xe2), byte(0x82)],
    );
    assert_eq!(stream(detokenizer, &[byte(0xac), byte(0x62)]), "€b");
}

proptest! {
    #[test]
    fn any_text_survives(text in any::<String>()) {
        for (name, tokenizer) in tokenizers() {
            let tokens = tokenizer.encode(&text, false).unwrap();
            prop_assert_eq!(tokenizer.decode(&tokens, false), text.as_str(), "{}", name);
        }
    }

    #[test]
    fn a_streamed_text_is_the_whole_text(
        ids in prop::collection::vec(0_u32..300, 0..40),
        skip_special_tokens: bool,
    ) {
        for (name, tokenizer) in tokenizers() {
            let options = DetokenizerOptions { skip_special_tokens, ..Default::default() };
            let streamed = stream(Detokenizer::new(tokenizer.clone(), options), &ids);
            prop_assert_eq!(&streamed, &tokenizer.decode(&ids, skip_special_tokens), "{}", name);
        }
    }

    #[test]
    fn stop_strings_are_found_however_the_text_is_cut(
        text in "[abé]{0,20}",
        stops in prop::collection::vec("[abé]{0,4}", 0..4),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        include: bool,
    ) {
        let mut whole = StopStrings::new(stops.clone(), include);
        let fed = whole.feed(&text);
        let expected = (fed.text + &whole.flush(), fed.matched);

        let mut cuts: Vec<usize> = cuts.iter().map(|i| i.index(text.len() + 1)).collect();
        cuts.retain(|&cut| text.is_char_boundary(cut));
        cuts.extend([0, text.len()]);
        cuts.sort_unstable();
        let mut pieces = StopStrings::new(stops.clone(), include);
        let mut got = (String::new(), None);
        for range in cuts.windows(2) {
            let fed = pieces.feed(&text[range[0]..range[1]]);
            got.0.push_str(&fed.text);
            got.1 = got.1.or(fed.matched);
        }
        got.0.push_str(&pieces.flush());
        prop_assert_eq!(&got, &expected);

        let found = |stop: &&String| !stop.is_empty() && text.contains(stop.as_str());
        prop_assert_eq!(got.1.is_some(), stops.iter().any(|stop| found(&stop)));
        prop_assert!(text.starts_with(&got.0));
        if let (Some(i), true) = (got.1, include) {
            prop_assert!(got.0.ends_with(&stops[i]));
        }
    }
}

#[test]
fn what_cannot_begin_a_stop_string_is_emitted_at_once() {
    let mut stops = StopStrings::new(vec!["\nUser:".into()], false);
    assert_eq!(stops.feed("Hi").text, "Hi");
    assert_eq!(stops.feed(" you\nUs").text, " you");
    assert_eq!(stops.feed("A").text, "\nUsA");
    assert_eq!(stops.flush(), "");
}
