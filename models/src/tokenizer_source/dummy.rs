//! A tokenizer for a model that comes without one: every byte of a text is a token.

use std::collections::BTreeSet;

use super::GgufTokenizer;
use crate::ModelConfig;

/// What conversations look like to a model that was never trained on any.
pub(crate) const CHAT_TEMPLATE: &str = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}\
     {% if add_generation_prompt %}assistant:{% endif %}";

const CONTROL: i32 = 3;

/// Makes a vocabulary as large as the model's. The first ids that control nothing stand for the 256 bytes, so that every text can
/// be encoded; the rest have names, so that every answer can be seen.
pub(super) fn tokenizer(config: &ModelConfig) -> GgufTokenizer {
    let control: BTreeSet<u32> =
        config.eos_token_ids.iter().copied().chain(config.bos_token_id).collect();
    let mut bytes = byte_characters();
    let ids = 0..u32::try_from(config.vocab_size).unwrap_or(u32::MAX);
    let (tokens, token_types) = ids
        .map(|id| {
            let name = || format!("<|token_{id}|>");
            if control.contains(&id) {
                return (name(), CONTROL);
            }
            (bytes.next().map_or_else(name, String::from), 1)
        })
        .unzip();
    GgufTokenizer {
        model: "gpt2".to_owned(),
        pre: "gpt-2".to_owned(),
        tokens,
        token_types,
        ..GgufTokenizer::default()
    }
}

/// Returns the characters that byte-level BPE writes the bytes as: printable ones as themselves, others from U+0100 on.
fn byte_characters() -> impl Iterator<Item = char> {
    let mut others = '\u{100}'..;
    (0..=u8::MAX).filter_map(move |byte| match byte {
        b'!'..=b'~' | 0xa1..=0xac | 0xae.. => Some(char::from(byte)),
        _ => others.next(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tiny::TinyModel;

    #[test]
    fn bytes_come_first_and_every_id_has_its_own_text() {
        let folder = tempfile::TempDir::new().unwrap();
        TinyModel::new("LlamaForCausalLM").write(folder.path()).unwrap();
        let mut config = crate::Checkpoint::dummy(folder.path()).unwrap().config().clone();
        config.bos_token_id = Some(1);
        for (vocab_size, eos) in [(512, 2), (150_000, 149_999), (300, 400), (10, 3)] {
            config.vocab_size = vocab_size;
            config.eos_token_ids = vec![eos];
            let made = tokenizer(&config);
            assert_eq!((made.tokens.len(), made.token_types.len()), (vocab_size, vocab_size));
            assert_eq!(made.tokens.iter().collect::<BTreeSet<_>>().len(), vocab_size);
            let controls = (0..).zip(&made.token_types).filter(|(_, kind)| **kind == CONTROL);
            let expected = [1, eos].into_iter().filter(|&id| (id as usize) < vocab_size);
            assert!(controls.map(|(id, _)| id).eq(expected), "{vocab_size}");
            let single = made.tokens.iter().filter(|text| text.chars().count() == 1).count();
            assert_eq!(single, 256.min(vocab_size - 2), "{vocab_size}");
        }
    }
}
