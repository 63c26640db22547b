//! A tokenizer.json in which something is wrong is refused or works; it never ends the program.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use serde_json::{Value, json};
use stallfree_tokenizer::{Error, Tokenizer};

fn added(id: u32, content: &str) -> Value {
    json!({
        "id": id, "content": content, "special": true, "normalized": false,
        "single_word": false, "lstrip": false, "rstrip": false,
    })
}

/// Puts `token` before every text.
fn begins_with(id: u32, token: &str) -> Value {
    let [text, second] = ["A", "B"].map(|id| json!({"Sequence": {"id": id, "type_id": 0}}));
    json!({
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": token, "type_id": 0}}, text],
        "pair": [text, second],
        "special_tokens": {token: {"id": token, "ids": [id], "tokens": [token]}},
    })
}

fn byte_level() -> Value {
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let split = json!({"type": "Split", "pattern": {"Regex": "\\s?\\p{L}+|\\s+"}, "behavior": "Isolated", "invert": false});
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [added(6, "<|s|>")],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, bytes]},
        "post_processor": begins_with(6, "<|s|>"),
        "decoder": bytes,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": true,
            "vocab": {"h": 0, "e": 1, "l": 2, "o": 3, "he": 4, "Ġ": 5}, "merges": [["h", "e"]],
        },
    })
}

fn sentencepiece() -> Value {
    let replace = |from: &str, to: &str| json!({"type": "Replace", "pattern": {"String": from}, "content": to});
    json!({
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
        "padding": {
            "strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0,
            "pad_type_id": 0, "pad_token": "<unk>",
        },
        "added_tokens": [added(0, "<unk>"), added(1, "<s>")],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace(" ", "▁")]},
        "pre_tokenizer": null,
        "post_processor": begins_with(1, "<s>"),
        "decoder": {
            "type": "Sequence",
            "decoders": [
                replace("▁", " "), {"type": "ByteFallback"}, {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true,
            "vocab": {"<unk>": 0, "<s>": 1, "<0x0A>": 2, "▁": 3, "h": 4, "▁h": 5, "e": 6},
            "merges": ["▁ h"],
        },
    })
}

/// Other models than BPE.
fn of_model(model: &Value, splits: &Value, decoder: &Value) -> Value {
    let added = [added(0, "<unk>")];
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": splits, "post_processor": null, "decoder": decoder, "model": model,
    })
}

fn files() -> [Value; 4] {
    let spaces =
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true});
    let unigram = json!({
        "type": "Unigram", "unk_id": 0, "byte_fallback": false,
        "vocab": [["<unk>", 0.0], ["▁", -1.0], ["h", -2.0], ["▁he", -1.5]],
    });
    let words = json!({"type": "WordLevel", "vocab": {"<unk>": 0, "he": 1}, "unk_token": "<unk>"});
    let unigram = of_model(&unigram, &spaces, &spaces);
    let words = of_model(&words, &json!({"type": "Whitespace"}), &Value::Null);
    [byte_level(), sentencepiece(), unigram, words]
}

fn open(path: &Path, file: &[u8]) -> Result<Tokenizer, Error> {
    fs::write(path, file).unwrap();
    Tokenizer::from_file(path)
}

/// Opens a file and, if that works, takes some texts there and back.
fn check(path: &Path, file: &[u8], what: &str) {
    let run = || {
        let Ok(tokenizer) = open(path, file) else { return };
        for text in ["he hello\n", "<s><|s|><unk> é", ""] {
            let tokens = tokenizer.encode(text, true).unwrap_or_default();
            assert!(tokenizer.decode(&tokens, false).len() < 1000);
        }
    };
    assert!(catch_unwind(AssertUnwindSafe(run)).is_ok(), "{what}");
}

/// Lists the places of all values in `json`, as pointers.
fn list(json: &Value, at: String, places: &mut Vec<String>) {
    match json {
        Value::Object(map) => {
            let key = |key: &str| key.replace('~', "~0").replace('/', "~1");
            map.iter().for_each(|(name, value)| list(value, format!("{at}/{}", key(name)), places));
        }
        Value::Array(values) => {
            let values = values.iter().enumerate();
            values.for_each(|(index, value)| list(value, format!("{at}/{index}"), places));
        }
        _ => {}
    }
    places.push(at);
}

#[test]
fn wrong_values_never_panic() {
    let wrong = json!([
        null,
        true,
        -1,
        0,
        7,
        u32::MAX,
        u64::MAX,
        1e300,
        "",
        "x",
        "B",
        "(",
        "é<|s|>",
        [],
        ["x", "y"],
        {},
    ]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    for file in files() {
        assert!(open(&path, file.to_string().as_bytes()).is_ok(), "{file}");
        let mut places = Vec::new();
        list(&file, String::new(), &mut places);
        for place in &places {
            for value in wrong.as_array().unwrap() {
                let mut damaged = file.clone();
                damaged.pointer_mut(place).unwrap().clone_from(value);
                check(&path, damaged.to_string().as_bytes(), &format!("{place} is {value}"));
            }
        }
    }
}

#[test]
fn cut_and_flipped_files_never_panic() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    for file in files() {
        let bytes = file.to_string().into_bytes();
        for at in 0..bytes.len() {
            if at % 7 == 0 {
                check(&path, &bytes[..at], &format!("cut at {at}"));
            }
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << (at % 8);
            check(&path, &flipped, &format!("flipped at {at}"));
        }
    }
}

#[test]
fn ids_beyond_all_vocabularies_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    let open_with = |id: u32| {
        let mut file = sentencepiece();
        file["model"]["vocab"]["▁"] = id.into();
        open(&path, file.to_string().as_bytes())
    };
    assert_eq!(open_with(1 << 24).unwrap().vocab_size(), (1 << 24) + 1);
    for id in [(1 << 24) + 1, u32::MAX] {
        let message = open_with(id).unwrap_err().to_string();
        assert!(message.contains(&format!("\"▁\" has the id {id}")), "{message}");
    }
}
