//! Parameters that would change the result, but are not supported yet: refused by name, never ignored.

use serde_json::{Value, json};

use super::fields::Fields;
use crate::ApiError;

/// A parameter, and whether a value of it asks for nothing.
type Refused = (&'static str, fn(&Value) -> bool);

const REFUSED: &[Refused] = &[
    ("response_format", |v| v.get("type") == Some(&json!("text"))),
    ("tools", is_empty),
    ("tool_choice", |v| v == "none" || v == "auto"),
    ("functions", is_empty),
    ("function_call", |v| v == "none" || v == "auto"),
    ("structured_outputs", never),
    ("guided_json", never),
    ("guided_regex", never),
    ("guided_choice", never),
    ("guided_grammar", never),
    ("structural_tag", never),
    ("suffix", |v| v == ""),
    ("use_beam_search", |v| v == false),
    ("length_penalty", |v| v.as_f64() == Some(1.0)),
    ("logprob_token_ids", is_empty),
    ("logits_processors", is_empty),
    ("prompt_embeds", never),
    ("modalities", |v| *v == json!(["text"])),
    ("audio", never),
    ("prediction", never),
    ("web_search_options", never),
    ("mm_processor_kwargs", never),
    ("media_io_kwargs", never),
    ("kv_transfer_params", never),
    ("ec_transfer_params", never),
    ("cache_salt", never),
    ("vllm_xargs", is_empty_object),
    ("thinking_token_budget", |v| *v == -1),
    ("repetition_detection", never),
    ("watermarking", |v| *v == false),
    ("return_prompt_text", |v| *v == false),
];

/// Refuses a body that asks for something unsupported.
pub(crate) fn check(fields: &Fields) -> Result<(), ApiError> {
    for (name, asks_for_nothing) in REFUSED {
        if fields.value(name).is_some_and(|value| !asks_for_nothing(value)) {
            return Err(ApiError::unsupported(name));
        }
    }
    Ok(())
}

fn never(_: &Value) -> bool {
    false
}

fn is_empty_object(value: &Value) -> bool {
    value.as_object().is_some_and(serde_json::Map::is_empty)
}

fn is_empty(value: &Value) -> bool {
    value.as_array().is_some_and(Vec::is_empty)
}
