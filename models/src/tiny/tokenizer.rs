//! A byte-level tokenizer with no merges: one token a byte, and three special ones.

use serde_json::{Map, Value, json};

/// `<|endoftext|>`.
pub(super) const END_OF_TEXT: u32 = 256;
/// `<|im_start|>`.
const IM_START: u32 = 257;
/// `<|im_end|>`.
pub(super) const IM_END: u32 = 258;
pub(super) const VOCAB_SIZE: u32 = 259;

const SPECIAL: [(&str, u32); 3] =
    [("<|endoftext|>", END_OF_TEXT), ("<|im_start|>", IM_START), ("<|im_end|>", IM_END)];

const CHAT_TEMPLATE: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] \
                             + '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}\
                             {{ '<|im_start|>assistant\n' }}{% endif %}";

pub(super) fn tokenizer_json() -> Value {
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let added = SPECIAL.map(|(content, id)| {
        json!({
            "id": id, "content": content, "special": true, "normalized": false,
            "single_word": false, "lstrip": false, "rstrip": false,
        })
    });
    let vocab: Map<String, Value> =
        (0..=u8::MAX).map(|byte| (letter(byte).to_string(), json!(byte))).collect();
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": byte_level,
        "post_processor": null,
        "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "vocab": vocab, "merges": [],
        },
    })
}

pub(super) fn tokenizer_config_json() -> Value {
    json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|endoftext|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": 2048,
        "chat_template": CHAT_TEMPLATE,
    })
}

/// Returns the letter that byte-level tokenizers write for a byte: itself if it can be seen, else one from U+0100 on, in order
/// (Radford et al. 2019).
fn letter(byte: u8) -> char {
    let visible = |byte: u8| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    if visible(byte) {
        return char::from(byte);
    }
    let hidden_before = (0..byte).filter(|&other| !visible(other)).count();
    char::from_u32(0x100 + hidden_before as u32).expect("invariant: below U+0144, all are letters")
}
