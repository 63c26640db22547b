//! No body, however strange, is answered 5xx or ends the server.

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Map, Value, json};

use crate::world::{World, post};

const PATHS: [&str; 4] = ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"];

const NAMES: [&str; 52] = [
    "model",
    "prompt",
    "messages",
    "tokens",
    "n",
    "best_of",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "stop",
    "stop_token_ids",
    "max_tokens",
    "max_completion_tokens",
    "min_tokens",
    "logprobs",
    "top_logprobs",
    "prompt_logprobs",
    "echo",
    "stream",
    "stream_options",
    "logit_bias",
    "allowed_token_ids",
    "bad_words",
    "request_id",
    "documents",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "ignore_eos",
    "priority",
    "ttft_slo",
    "tpot_slo",
    "truncate_prompt_tokens",
    "truncation_side",
    "add_special_tokens",
    "skip_special_tokens",
    "include_stop_str_in_output",
    "return_token_ids",
    "return_tokens_as_token_ids",
    "add_generation_prompt",
    "continue_final_message",
    "chat_template",
    "chat_template_kwargs",
    "response_format",
    "tools",
    "tool_choice",
    "user",
    "reasoning_effort",
    "return_token_strs",
    "spaces_between_special_tokens",
];

fn scalar() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        (-5..300_i64).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        (-3.0..3.0_f64).prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        "[a-zH]{0,3}".prop_map(Value::from),
        prop::sample::select(&["user", "assistant", "tiny", "left", "auto", "\u{0}", "</s>"][..])
            .prop_map(Value::from),
    ]
}

fn value() -> impl Strategy<Value = Value> {
    scalar().prop_recursive(4, 32, 6, |inner| {
        let name = prop_oneof![
            any::<String>(),
            prop::sample::select(&["role", "content", "type", "text", "72"][..])
                .prop_map(str::to_owned)
        ];
        prop_oneof![
            vec(inner.clone(), 0..6).prop_map(Value::from),
            btree_map(name, inner, 0..4).prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// A body that is right but for a few fields.
fn body() -> impl Strategy<Value = Value> {
    let base = prop_oneof![
        9 => Just(json!({ "prompt": "Hi", "messages": [{ "role": "user", "content": "Hi" }], "tokens": [72] })),
        1 => Just(json!({})),
    ];
    let fields = vec((prop::sample::select(&NAMES[..]), value()), 0..4);
    (base, fields).prop_map(|(base, fields)| {
        let mut map: Map<String, Value> = base.as_object().unwrap().clone();
        map.extend(fields.into_iter().map(|(name, value)| (name.to_owned(), value)));
        Value::Object(map)
    })
}

fn check(strategy: impl Strategy<Value = Vec<u8>>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let world = World::saying("Hello");
    let config = Config { cases: 1500, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new(config);
    let outcome = runner.run(&(prop::sample::select(&PATHS[..]), strategy), |(path, body)| {
        let answer = runtime.block_on(world.send(post(path, body)));
        prop_assert!(answer.status.as_u16() < 500, "{}", answer.body);
        if answer.status.as_u16() >= 400 {
            prop_assert!(answer.json()["error"]["message"].is_string(), "{}", answer.body);
        }
        Ok(())
    });
    outcome.unwrap();
    assert_eq!(runtime.block_on(world.get("/health")).status, 200);
}

#[test]
fn bodies_with_strange_fields() {
    check(body().prop_map(|body| body.to_string().into_bytes()));
}

#[test]
fn bodies_of_any_json() {
    check(value().prop_map(|body| body.to_string().into_bytes()));
}

#[test]
fn bodies_of_any_bytes() {
    check(vec(any::<u8>(), 0..64));
}
