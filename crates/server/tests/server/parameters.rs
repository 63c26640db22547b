//! Which values are taken, and which parameter is blamed for the others.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value, json};
use stallfree_core::Slo;
use stallfree_server::ServerConfig;

use crate::model::tokens;
use crate::world::{World, config};

const BOTH: [&str; 2] = ["/v1/completions", "/v1/chat/completions"];

/// Returns a minimal body for a route.
fn minimal(path: &str) -> Map<String, Value> {
    let body = match path {
        "/v1/completions" => json!({ "prompt": "Hi" }),
        "/detokenize" => json!({ "tokens": [72] }),
        "/tokenize" => json!({ "prompt": "Hi" }),
        _ => json!({ "messages": [{ "role": "user", "content": "Hi" }] }),
    };
    body.as_object().unwrap().clone()
}

/// Adds `fields` to a minimal body and compares the status and the parameter that is blamed.
async fn check(world: &World, path: &str, fields: Value, status: u16, param: Option<&str>) {
    let mut body = minimal(path);
    body.extend(fields.as_object().unwrap().clone());
    let answer = world.post(path, &Value::Object(body)).await;
    assert_eq!(answer.status.as_u16(), status, "{path} {fields}: {}", answer.body);
    if status >= 400 {
        let error = answer.json()["error"].clone();
        assert_eq!(error["param"], json!(param), "{path} {fields}: {error}");
        assert_eq!(error["code"], json!(status), "{path} {fields}");
        assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{error}");
    }
}

#[tokio::test]
async fn values_in_range_are_taken() {
    let world = World::saying("Hello");
    for path in BOTH {
        for fields in [
            json!({ "temperature": 0 }),
            json!({ "temperature": 1e-30, "top_p": 1, "top_k": -1, "min_p": 1.0 }),
            json!({ "top_k": 0, "top_p": 0.01 }),
            json!({ "top_k": 5.0 }),
            json!({ "presence_penalty": -2, "frequency_penalty": 2, "repetition_penalty": 1.5 }),
            json!({ "logit_bias": { "0": 200, "257": -1.5 } }),
            json!({ "logit_bias": null, "stop": null, "max_tokens": null, "n": null, "seed": null }),
            json!({ "allowed_token_ids": [0, 257], "bad_words": ["no", " never"] }),
            json!({ "allowed_token_ids": null, "bad_words": [], "request_id": "mine", "documents": null }),
            json!({ "vllm_xargs": {}, "thinking_token_budget": -1 }),
            json!({ "seed": -1 }),
            json!({ "seed": i64::MAX }),
            json!({ "n": 128, "max_tokens": 1 }),
            json!({ "n": 2, "best_of": 2 }),
            json!({ "stop": "x" }),
            json!({ "stop": [] }),
            json!({ "stop": ["x", "yz"], "include_stop_str_in_output": true }),
            json!({ "stop_token_ids": [0, 257], "min_tokens": 3, "ignore_eos": true }),
            json!({ "prompt_logprobs": 0 }),
            json!({ "prompt_logprobs": 20 }),
            json!({ "priority": -5 }),
            json!({ "ttft_slo": 250, "tpot_slo": 33.3 }),
            json!({ "ttft_slo": null, "tpot_slo": 1e9 }),
            json!({ "truncate_prompt_tokens": -1 }),
            json!({ "truncate_prompt_tokens": 1, "truncation_side": "right" }),
            json!({ "user": "someone", "metadata": {}, "store": false, "service_tier": "auto" }),
            json!({ "no_such_parameter": [1, { "deep": true }] }),
            json!({ "response_format": { "type": "text" }, "tools": [], "tool_choice": "none" }),
            json!({ "use_beam_search": false, "suffix": "", "logits_processors": null }),
            json!({ "stream": false, "stream_options": null }),
            json!({ "stream": true, "stream_options": { "include_usage": null } }),
        ] {
            check(&world, path, fields, 200, None).await;
        }
    }
}

#[tokio::test]
async fn values_out_of_range_are_refused_by_name() {
    let world = World::saying("Hello");
    let cases = [
        ("temperature", vec![json!(-0.1), json!("hot"), json!(1e300), json!([])]),
        ("top_p", vec![json!(0), json!(1.01), json!(-1), json!(true), json!(1e-50)]),
        ("top_k", vec![json!(-2), json!(1.5), json!("1"), json!(1_u64 << 40)]),
        ("min_p", vec![json!(-0.1), json!(1.1)]),
        ("presence_penalty", vec![json!(2.1), json!(-2.1)]),
        ("frequency_penalty", vec![json!(2.1), json!(-2.1)]),
        ("repetition_penalty", vec![json!(0), json!(-1), json!(1e-60)]),
        (
            "logit_bias",
            vec![
                json!({ "258": 1 }),
                json!({ "-1": 1 }),
                json!({ "x": 1 }),
                json!({ "01": 1 }),
                json!({ "+1": 1 }),
                json!({ "1": "a" }),
                json!([]),
            ],
        ),
        ("allowed_token_ids", vec![json!([]), json!([258]), json!([-1]), json!("0"), json!(0)]),
        (
            "bad_words",
            vec![
                json!(""),
                json!(["a", " "]),
                json!(1),
                json!(vec!["x"; 129]),
                json!("x".repeat(5000)),
            ],
        ),
        ("request_id", vec![json!(""), json!(1), json!("x".repeat(129))]),
        ("repetition_detection", vec![json!({})]),
        ("thinking_token_budget", vec![json!(0)]),
        ("vllm_xargs", vec![json!({ "a": 1 })]),
        ("cache_salt", vec![json!("salt")]),
        ("seed", vec![json!(1.5), json!("42"), json!(u64::MAX), json!(1e30)]),
        ("n", vec![json!(0), json!(-1), json!(129), json!(1e18), json!("2")]),
        ("best_of", vec![json!(2), json!(0)]),
        ("stop", vec![json!(""), json!(["a", ""]), json!(1), json!([1]), json!(vec!["x"; 65])]),
        ("stop", vec![json!("x".repeat(4097)), json!(vec!["x".repeat(1025); 4])]),
        ("stop_token_ids", vec![json!([258]), json!([-1]), json!(["a"]), json!(5), json!([1.5])]),
        ("min_tokens", vec![json!(-1), json!(600), json!(1e30)]),
        ("max_tokens", vec![json!(-1), json!(0), json!(600), json!("8"), json!(1.5)]),
        ("prompt_logprobs", vec![json!(-1), json!(21), json!(true)]),
        ("priority", vec![json!(1_i64 << 40), json!("high")]),
        ("ttft_slo", vec![json!(0), json!(-1), json!(1e10), json!("fast")]),
        ("tpot_slo", vec![json!(0), json!(-0.5), json!(1e300), json!([1])]),
        ("truncate_prompt_tokens", vec![json!(0), json!(-2), json!("all")]),
        ("truncation_side", vec![json!("middle"), json!(1)]),
        ("stream", vec![json!("yes"), json!(1)]),
        ("stream_options", vec![json!({}), json!([]), json!({ "include_usage": true })]),
        ("ignore_eos", vec![json!(1)]),
        ("echo", vec![json!("no")]),
        ("skip_special_tokens", vec![json!("no")]),
        ("spaces_between_special_tokens", vec![json!(0)]),
        ("include_stop_str_in_output", vec![json!(0)]),
        ("return_token_ids", vec![json!("x")]),
        ("return_tokens_as_token_ids", vec![json!("x")]),
        ("add_special_tokens", vec![json!("x")]),
        ("model", vec![json!(5), json!(["tiny"])]),
        ("user", vec![json!(5)]),
    ];
    for path in BOTH {
        for (name, values) in &cases {
            for value in values {
                check(&world, path, json!({ *name: value }), 400, Some(name)).await;
            }
        }
    }
}

#[tokio::test]
async fn what_only_completions_take() {
    let world = World::saying("Hello");
    let completions = [
        (json!({ "logprobs": 20 }), 200, None),
        (json!({ "logprobs": 21 }), 400, Some("logprobs")),
        (json!({ "logprobs": -1 }), 400, Some("logprobs")),
        (json!({ "logprobs": true }), 400, Some("logprobs")),
        (json!({ "logprobs": 21, "stream": true }), 400, Some("logprobs")),
        (json!({ "max_tokens": 0, "echo": true }), 200, None),
        (json!({ "prompt": null }), 400, Some("prompt")),
        (json!({ "prompt": [] }), 400, Some("prompt")),
        (json!({ "prompt": [[]] }), 400, Some("prompt")),
        (json!({ "prompt": "", "add_special_tokens": false }), 400, Some("prompt")),
        (json!({ "prompt": [72, "a"] }), 400, Some("prompt")),
        (json!({ "prompt": ["a", 72] }), 400, Some("prompt")),
        (json!({ "prompt": ["a", [72]] }), 200, None),
        (json!({ "prompt": [258] }), 400, Some("prompt")),
        (json!({ "prompt": [-1] }), 400, Some("prompt")),
        (json!({ "prompt": [[72], [300]] }), 400, Some("prompt")),
        (json!({ "prompt": {} }), 400, Some("prompt")),
        (json!({ "prompt": 7 }), 400, Some("prompt")),
        (json!({ "prompt": [true] }), 400, Some("prompt")),
        (json!({ "prompt": "\u{0}\u{ffff}" }), 200, None),
        (json!({ "prompt": "x".repeat(511) }), 400, Some("prompt")),
        (json!({ "prompt": "x".repeat(10_000), "truncate_prompt_tokens": -1 }), 200, None),
        (
            json!({ "prompt": "x".repeat(10_000), "truncate_prompt_tokens": 512 }),
            400,
            Some("prompt"),
        ),
        (json!({ "prompt": vec!["x"; 1025] }), 400, Some("prompt")),
        (json!({ "prompt": vec!["x"; 9], "n": 128 }), 400, Some("prompt")),
        (json!({ "suffix": "!" }), 400, Some("suffix")),
    ];
    for (fields, status, param) in completions {
        check(&world, BOTH[0], fields, status, param).await;
    }
}

#[tokio::test]
async fn what_only_chats_take() {
    let world = World::saying("Hello");
    let user = json!([{ "role": "user", "content": "Hi" }]);
    let chat = [
        (json!({ "logprobs": true, "top_logprobs": 20 }), 200, None),
        (json!({ "top_logprobs": 0 }), 200, None),
        (json!({ "top_logprobs": 1 }), 400, Some("top_logprobs")),
        (json!({ "logprobs": true, "top_logprobs": 21 }), 400, Some("top_logprobs")),
        (json!({ "logprobs": true, "top_logprobs": -1 }), 400, Some("top_logprobs")),
        (json!({ "logprobs": 5 }), 400, Some("logprobs")),
        (
            json!({ "max_completion_tokens": 600, "max_tokens": 5 }),
            400,
            Some("max_completion_tokens"),
        ),
        (json!({ "max_completion_tokens": 0 }), 400, Some("max_completion_tokens")),
        (json!({ "messages": null }), 400, Some("messages")),
        (json!({ "messages": [] }), 400, Some("messages")),
        (json!({ "messages": "Hi" }), 400, Some("messages")),
        (json!({ "messages": ["Hi"] }), 400, Some("messages")),
        (json!({ "messages": [{ "content": "Hi" }] }), 400, Some("messages")),
        (json!({ "messages": [{ "role": 1, "content": "Hi" }] }), 400, Some("messages")),
        (json!({ "messages": [{ "role": "user", "content": 5 }] }), 400, Some("messages")),
        (json!({ "messages": [{ "role": "robot", "content": "Hi" }] }), 400, Some("messages")),
        (
            json!({ "messages": [{ "role": "user", "content": "x".repeat(600) }] }),
            400,
            Some("messages"),
        ),
        (
            json!({ "messages": [{ "role": "user", "content": [{ "type": "text", "text": "Hi" }] }] }),
            200,
            None,
        ),
        (
            json!({ "messages": [{ "role": "user", "content": [{ "type": "image_url" }] }] }),
            400,
            Some("messages"),
        ),
        (json!({ "continue_final_message": true }), 400, Some("continue_final_message")),
        (json!({ "continue_final_message": true, "add_generation_prompt": false }), 200, None),
        (json!({ "chat_template": "{{ messages }}" }), 400, Some("chat_template")),
        (json!({ "chat_template_kwargs": { "suffix": "!" }, "messages": user }), 200, None),
        (json!({ "chat_template_kwargs": [] }), 400, Some("chat_template_kwargs")),
        (json!({ "documents": [{ "title": "t", "text": "x" }] }), 200, None),
        (json!({ "documents": ["x"] }), 400, Some("documents")),
        (json!({ "documents": {} }), 400, Some("documents")),
        (json!({ "response_format": { "type": "json_object" } }), 400, Some("response_format")),
        (
            json!({ "response_format": { "type": "json_schema", "json_schema": {} } }),
            400,
            Some("response_format"),
        ),
        (json!({ "tools": [{ "type": "function" }] }), 400, Some("tools")),
        (json!({ "tool_choice": "required" }), 400, Some("tool_choice")),
        (json!({ "structured_outputs": {} }), 400, Some("structured_outputs")),
        (json!({ "modalities": ["text", "audio"] }), 400, Some("modalities")),
    ];
    for (fields, status, param) in chat {
        check(&world, BOTH[1], fields, status, param).await;
    }
}

#[tokio::test]
async fn what_the_other_routes_take() {
    let world = World::saying("Hello");
    check(&world, "/detokenize", json!({ "tokens": [258] }), 400, Some("tokens")).await;
    check(&world, "/detokenize", json!({ "tokens": null }), 400, Some("tokens")).await;
    check(&world, "/tokenize", json!({ "prompt": 5 }), 400, Some("prompt")).await;
    for path in ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"] {
        check(&world, path, json!({ "model": "other" }), 404, Some("model")).await;
    }
}

#[tokio::test]
async fn parameters_reach_the_engine() {
    let default_slo =
        Slo { tpot: Some(Duration::from_millis(40)), ttft: Some(Duration::from_secs(9)) };
    let world = World::configured(ServerConfig { default_slo, ..config() });
    let body = json!({ "prompt": "Hi", "temperature": 0.5, "top_k": 3, "top_p": 0.9, "min_p": 0.1, "seed": 7, "n": 2,
        "repetition_penalty": 1.1, "presence_penalty": 0.2, "frequency_penalty": 0.3, "logit_bias": { "5": 500 },
        "allowed_token_ids": [9, 7, 9, 9], "bad_words": "no",
        "logprobs": 2, "prompt_logprobs": 1, "max_tokens": 9, "min_tokens": 4, "stop_token_ids": [10], "priority": 3, "ttft_slo": 250 });
    world.ok("/v1/completions", body).await;
    let requests = world.engine.requests.lock().unwrap();
    let [first, second] = &requests[..] else { panic!("two choices") };
    assert_eq!(first.prompt, [256, 72, 105]);
    assert_eq!((first.stop.max_tokens, first.stop.min_tokens, first.priority), (9, 4, 3));
    assert_eq!(*first.stop.stop_token_ids, [10, 257]);
    // What a request does not say is the server's.
    let (ttft, tpot) = (Some(Duration::from_millis(250)), Some(Duration::from_millis(40)));
    assert_eq!(first.slo, Slo { ttft, tpot });
    let sampling = &first.sampling;
    assert_eq!(*sampling.logit_bias, [(5, 100.0)]);
    assert_eq!(*sampling.allowed_token_ids, [7, 9]);
    assert_eq!(*sampling.bad_words, [tokens(" no"), tokens("no")]);
    assert_eq!(
        (sampling.top_k, sampling.logprobs, sampling.prompt_logprobs),
        (3, Some(2), Some(1))
    );
    let floats = format!(
        "{} {} {} {} {} {}",
        sampling.temperature,
        sampling.top_p,
        sampling.min_p,
        sampling.repetition_penalty,
        sampling.presence_penalty,
        sampling.frequency_penalty
    );
    assert_eq!(floats, "0.5 0.9 0.1 1.1 0.2 0.3");
    assert_eq!(sampling.seed, 7);
    assert_ne!(second.sampling.seed, 7, "choices of one seed must differ");
    // There may be many choices, and each of these lists may be as long as the vocabulary.
    let other = &second.sampling;
    assert!(Arc::ptr_eq(&sampling.logit_bias, &other.logit_bias));
    assert!(Arc::ptr_eq(&sampling.allowed_token_ids, &other.allowed_token_ids));
    assert!(Arc::ptr_eq(&sampling.bad_words, &other.bad_words));
    assert!(Arc::ptr_eq(&first.stop.stop_token_ids, &second.stop.stop_token_ids));
}

#[tokio::test]
async fn defaults() {
    let world = World::saying("Hello");
    world.ok("/v1/completions", json!({ "prompt": "Hi", "ignore_eos": true })).await;
    world.ok("/v1/chat/completions", Value::Object(minimal(BOTH[1]))).await;
    let requests = world.engine.requests.lock().unwrap();
    assert_eq!((requests[0].stop.max_tokens, &requests[0].stop.stop_token_ids[..]), (16, &[][..]));
    let chat = &requests[1];
    assert_eq!(chat.stop.max_tokens + chat.prompt.len(), crate::engine::MAX_MODEL_LEN);
    assert_eq!(*chat.stop.stop_token_ids, [257]);
}
