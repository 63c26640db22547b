//! A vocabulary in which a byte's token is the byte's number, and a chat template.

use std::io::Write;
use std::sync::Arc;

use serde_json::{Map, Value, json};
use stallfree_core::TokenId;
use stallfree_tokenizer::{ChatTemplate, Tokenizer};

/// The beginning of a sequence.
pub(crate) const BOS: TokenId = 256;
/// The end of a sequence.
pub(crate) const EOS: TokenId = 257;

const TEMPLATE: &str = "{% for m in messages %}{% if m.role == 'robot' %}{{ raise_exception('no robots') }}{% endif %}\
    [{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}{{ suffix }}";

/// Returns the tokens of a text: its bytes.
pub(crate) fn tokens(text: &str) -> Vec<TokenId> {
    text.bytes().map(TokenId::from).collect()
}

/// Builds the tokenizer.
pub(crate) fn tokenizer() -> Arc<Tokenizer> {
    let vocab: Map<String, Value> =
        (0..=u8::MAX).zip(alphabet()).map(|(byte, c)| (c.to_string(), json!(byte))).collect();
    let special = |id: TokenId, content: &str| {
        json!({ "id": id, "content": content, "special": true, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false })
    };
    let byte_level = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [special(BOS, "<s>"), special(EOS, "</s>")],
        "normalizer": null,
        "pre_tokenizer": byte_level,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{ "SpecialToken": { "id": "<s>", "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } }],
            "pair": [{ "Sequence": { "id": "A", "type_id": 0 } }, { "Sequence": { "id": "B", "type_id": 1 } }],
            "special_tokens": { "<s>": { "id": "<s>", "ids": [BOS], "tokens": ["<s>"] } },
        },
        "decoder": byte_level,
        "model": { "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                   "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": [] },
    });
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(tokenizer.to_string().as_bytes()).unwrap();
    Arc::new(Tokenizer::from_file(file.path()).unwrap())
}

/// Builds the chat template.
pub(crate) fn chat_template() -> ChatTemplate {
    ChatTemplate::new(TEMPLATE).unwrap()
}

/// GPT-2's characters for the bytes from 0 to 255.
fn alphabet() -> impl Iterator<Item = char> {
    let mut next = 0x100;
    (0..=0xff_u32).map(move |byte| {
        let code = if matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) {
            byte
        } else {
            next += 1;
            next - 1
        };
        char::from_u32(code).unwrap()
    })
}
