//! What clients of OpenAI's API and of vLLM rely on.

use expect_test::expect;
use futures::FutureExt;
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::engine::MAX_MODEL_LEN;
use crate::model::{EOS, tokens};
use crate::world::{World, config, post, script};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

fn user(text: &str) -> Value {
    json!([{ "role": "user", "content": text }])
}

/// Returns a choice's text, whichever the endpoint.
fn text_of(choice: &Value) -> &str {
    let places = [&choice["text"], &choice["message"]["content"], &choice["delta"]["content"]];
    places.into_iter().find_map(Value::as_str).unwrap()
}

#[tokio::test]
async fn a_whole_chat() {
    let mut body = World::saying("Hello").ok(CHAT, json!({ "messages": user("Hi") })).await;
    let id = body["id"].take();
    assert!(id.as_str().unwrap().starts_with("chatcmpl-"), "{id}");
    assert!(body["created"].take().as_u64().unwrap() > 1_700_000_000);
    expect![[r#"{"id":null,"object":"chat.completion","created":null,"model":"tiny","choices":[{"index":0,"message":{"role":"assistant","content":"Hello","refusal":null},"logprobs":null,"finish_reason":"stop","stop_reason":null}],"system_fingerprint":null,"usage":{"prompt_tokens":19,"total_tokens":25,"completion_tokens":6,"prompt_tokens_details":{"cached_tokens":2}}}"#]]
        .assert_eq(&body.to_string());
}

#[tokio::test]
async fn choices_are_numbered_across_prompts_and_usage_is_exact() {
    let prompts = [json!("Hi"), json!(["Hi", "Hey"]), json!([72, 105]), json!([[72], [72, 105]])];
    for (prompt, num_prompts, prompt_tokens) in
        prompts.iter().zip([1, 2, 1, 2]).zip([3, 7, 2, 3]).map(|((a, b), c)| (a, b, c))
    {
        let body = json!({ "prompt": prompt, "n": 3, "max_tokens": 4 });
        let answer = World::saying("Hello").ok(COMPLETIONS, body).await;
        let choices = answer["choices"].as_array().unwrap();
        let indices: Vec<u64> =
            choices.iter().map(|choice| choice["index"].as_u64().unwrap()).collect();
        assert_eq!(indices, (0..3 * num_prompts).collect::<Vec<u64>>());
        assert!(choices.iter().all(|choice| choice["text"] == "Hell"));
        assert_eq!(answer["usage"]["prompt_tokens"], prompt_tokens, "{prompt}");
        assert_eq!(answer["usage"]["completion_tokens"], 3 * num_prompts * 4);
        assert_eq!(answer["usage"]["prompt_tokens_details"]["cached_tokens"], 2 * num_prompts);
    }
}

/// Every way of cutting the same output into steps and every way of asking for it gives the same text.
#[tokio::test]
async fn streamed_and_whole_texts_are_the_same() {
    let said = "Grüße, 🦀 und 日本!\nNow stop here, or there.";
    let variants = [
        json!({}),
        json!({ "stop": ["stop", "here"] }),
        json!({ "stop": "there", "include_stop_str_in_output": true }),
        json!({ "stop": "🦀" }),
        json!({ "stop": ["not there", "nor here"] }),
        json!({ "max_tokens": 3 }),
        json!({ "max_tokens": 4 }),
        json!({ "max_tokens": 10 }),
        json!({ "stop_token_ids": [10], "min_tokens": 2 }),
        json!({ "stop_token_ids": [10], "include_stop_str_in_output": true }),
        json!({ "ignore_eos": true, "max_tokens": 100 }),
        json!({ "stop": "G", "min_tokens": 2 }),
    ];
    for path in [CHAT, COMPLETIONS] {
        for variant in &variants {
            let mut body =
                json!({ "prompt": "Hi", "messages": user("Hi"), "max_tokens": 200, "n": 2 });
            body.as_object_mut().unwrap().extend(variant.as_object().unwrap().clone());
            let whole = World::saying(said).ok(path, body.clone()).await;
            body["stream"] = json!(true);
            body["stream_options"] = json!({ "include_usage": true });
            for step in [1, 2, 5, 1000] {
                let flat: Vec<u32> = script(said).concat();
                let steps = flat.chunks(step).map(<[u32]>::to_vec).collect();
                let events = World::with(steps, false, config()).stream(path, &body).await;
                check_stream(&events, &whole, &format!("{path} {variant} by {step}"));
            }
        }
    }
}

/// Compares a stream with the whole answer, and checks its form.
fn check_stream(events: &[String], whole: &Value, what: &str) {
    let (done, chunks) = events.split_last().unwrap();
    assert_eq!(done, "[DONE]", "{what}");
    let chunks: Vec<Value> =
        chunks.iter().map(|chunk| serde_json::from_str(chunk).unwrap()).collect();
    let (usage, chunks) = chunks.split_last().unwrap();
    assert_eq!(usage["choices"], json!([]), "{what}");
    assert_eq!(usage["usage"], whole["usage"], "{what}");
    for (index, expected) in whole["choices"].as_array().unwrap().iter().enumerate() {
        let of_choice = |chunk: &&Value| chunk["choices"][0]["index"] == index;
        let parts: Vec<&Value> =
            chunks.iter().filter(of_choice).map(|chunk| &chunk["choices"][0]).collect();
        let text: String = parts.iter().map(|part| text_of(part)).collect();
        assert_eq!(text, text_of(expected), "{what}");
        let (last, earlier) = parts.split_last().unwrap();
        assert_eq!(last["finish_reason"], expected["finish_reason"], "{what}");
        assert_eq!(last["stop_reason"], expected["stop_reason"], "{what}");
        let unfinished =
            |part: &&Value| part["finish_reason"].is_null() && !text_of(part).is_empty();
        assert!(earlier.iter().all(unfinished), "{what}: one reason, and no chunk without text");
        let roles = parts.iter().filter(|part| !part["delta"]["role"].is_null()).count();
        assert_eq!(roles, usize::from(expected["message"].is_object()), "{what}");
    }
    assert!(chunks.iter().all(|chunk| chunk.get("usage") == Some(&Value::Null)), "{what}");
}

#[tokio::test]
async fn what_stopped_a_choice() {
    let cases = [
        (json!({}), "Hello", "stop", json!(null)),
        (json!({ "max_tokens": 2 }), "He", "length", json!(null)),
        (json!({ "stop": "ll" }), "He", "stop", json!("ll")),
        (json!({ "stop": "ll", "include_stop_str_in_output": true }), "Hell", "stop", json!("ll")),
        (json!({ "stop": "e", "min_tokens": 3 }), "Hello", "stop", json!(null)),
        (json!({ "stop_token_ids": [108] }), "He", "stop", json!(108)),
        (
            json!({ "stop_token_ids": [108], "include_stop_str_in_output": true }),
            "Hel",
            "stop",
            json!(108),
        ),
        (json!({ "ignore_eos": true, "max_tokens": 8 }), "HelloHe", "length", json!(null)),
        (
            json!({ "ignore_eos": true, "max_tokens": 6, "skip_special_tokens": false }),
            "Hello</s>",
            "length",
            json!(null),
        ),
    ];
    for (fields, text, reason, stop_reason) in cases {
        let mut body = json!({ "prompt": "Hi" });
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let answer = World::saying("Hello").ok(COMPLETIONS, body).await;
        let choice = &answer["choices"][0];
        assert_eq!(
            (text_of(choice), choice["finish_reason"].as_str().unwrap()),
            (text, reason),
            "{fields}"
        );
        assert_eq!(choice["stop_reason"], stop_reason, "{fields}");
    }
}

#[tokio::test]
async fn logprobs_of_completions() {
    for (num, entries) in [(0, 1), (1, 1), (5, 5)] {
        let body = json!({ "prompt": "Hi", "logprobs": num, "max_tokens": 3 });
        let answer = World::saying("Hello").ok(COMPLETIONS, body).await;
        let logprobs = &answer["choices"][0]["logprobs"];
        assert_eq!(logprobs["tokens"], json!(["H", "e", "l"]));
        assert_eq!(logprobs["text_offset"], json!([0, 1, 2]));
        assert_eq!(logprobs["token_logprobs"], json!([-0.5, -0.5, -0.5]));
        let top = logprobs["top_logprobs"].as_array().unwrap();
        assert!(
            top.iter().all(|top| top.as_object().unwrap().len() == entries),
            "{num}: {logprobs}"
        );
    }
    let body = json!({ "prompt": "Hi", "logprobs": 5, "max_tokens": 1, "return_tokens_as_token_ids": true });
    let answer = World::saying("Hello").ok(COMPLETIONS, body).await;
    let top = &answer["choices"][0]["logprobs"]["top_logprobs"][0];
    // What JSON cannot express, the logprob of an impossible token, is -9999.
    assert_eq!(
        top,
        &json!({ "token_id:72": -0.5, "token_id:71": -1.5, "token_id:70": -2.5, "token_id:69": -9999.0,
                             "token_id:68": -4.5 })
    );
}

/// What lm-eval sends to score a text.
#[tokio::test]
async fn echoed_prompts_with_logprobs() {
    let prompt = tokens("Hi there");
    for max_tokens in [0, 1] {
        let body = json!({ "prompt": prompt, "max_tokens": max_tokens, "logprobs": 1, "echo": true, "temperature": 0 });
        let answer = World::saying("!").ok(COMPLETIONS, body).await;
        let choice = &answer["choices"][0];
        assert_eq!(choice["text"], ["Hi there", "Hi there!"][max_tokens]);
        assert_eq!(choice["finish_reason"], "length");
        let logprobs = &choice["logprobs"];
        for list in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
            assert_eq!(
                logprobs[list].as_array().unwrap().len(),
                prompt.len() + max_tokens,
                "{list}"
            );
        }
        assert_eq!(
            (&logprobs["token_logprobs"][0], &logprobs["top_logprobs"][0]),
            (&json!(null), &json!(null))
        );
        assert_eq!(logprobs["top_logprobs"][1], json!({ "i": -0.5 }));
        assert_eq!(answer["usage"]["completion_tokens"], max_tokens);
    }
}

#[tokio::test]
async fn prompt_logprobs_start_with_null() {
    let fields = json!({ "prompt": [72, 105], "messages": user("Hi"), "prompt_logprobs": 1, "max_tokens": 1 });
    let answer = World::saying("!").ok(COMPLETIONS, fields.clone()).await;
    let expected = json!([null, { "105": { "logprob": -0.5, "rank": 1, "decoded_token": "i" } }]);
    assert_eq!(answer["choices"][0]["prompt_logprobs"], expected);
    assert_eq!(answer["choices"][0]["logprobs"], json!(null));
    let answer = World::saying("!").ok(CHAT, fields).await;
    assert_eq!(
        answer["prompt_logprobs"].as_array().unwrap().len(),
        answer["usage"]["prompt_tokens"]
    );
}

#[tokio::test]
async fn logprobs_of_chats() {
    for num_top in [0, 2] {
        let body = json!({ "messages": user("Hi"), "logprobs": true, "top_logprobs": num_top, "max_tokens": 1 });
        let answer = World::saying("é").ok(CHAT, body).await;
        let content = &answer["choices"][0]["logprobs"]["content"];
        assert_eq!(content[0]["top_logprobs"].as_array().unwrap().len(), num_top);
        assert_eq!(
            (&content[0]["bytes"], &content[0]["token"]),
            (&json!([0xc3]), &json!("\u{fffd}"))
        );
    }
}

#[tokio::test]
async fn token_ids_are_returned() {
    let body = json!({ "prompt": "Hi", "messages": user("Hi"), "return_token_ids": true });
    let answer = World::saying("Yo").ok(COMPLETIONS, body.clone()).await;
    let choice = &answer["choices"][0];
    assert_eq!(choice["prompt_token_ids"], json!([256, 72, 105]));
    assert_eq!(choice["token_ids"], json!([89, 111, EOS]));
    let answer = World::saying("Yo").ok(CHAT, body).await;
    assert_eq!(answer["prompt_token_ids"], json!(tokens("[user]Hi[assistant]")));
    assert_eq!(answer["choices"][0]["token_ids"], json!([89, 111, EOS]));
}

#[tokio::test]
async fn prompts_are_cut_on_the_side_asked_for() {
    for (side, expected) in [("left", "fghij"), ("right", "abcde")] {
        let body = json!({ "prompt": tokens("abcdefghij"), "truncate_prompt_tokens": 5, "truncation_side": side, "echo": true,
                           "max_tokens": 1 });
        let answer = World::saying("!").ok(COMPLETIONS, body).await;
        assert_eq!(answer["choices"][0]["text"], format!("{expected}!"));
    }
    let world = World::saying("!");
    let body =
        json!({ "prompt": "x".repeat(9000), "truncate_prompt_tokens": -1, "max_tokens": 100 });
    world.ok(COMPLETIONS, body).await;
    assert_eq!(world.engine.requests.lock().unwrap()[0].prompt.len(), MAX_MODEL_LEN - 100);
}

#[tokio::test]
async fn a_final_message_is_continued_and_echoed() {
    let messages =
        json!([{ "role": "user", "content": "Hi" }, { "role": "assistant", "content": "Well" }]);
    let body = json!({ "messages": messages, "add_generation_prompt": false, "continue_final_message": true, "echo": true,
                       "max_tokens": 2, "chat_template_kwargs": { "suffix": "?" } });
    let world = World::saying(", hello");
    let answer = world.ok(CHAT, body).await;
    assert_eq!(answer["choices"][0]["message"]["content"], "Well, ");
    assert_eq!(world.engine.requests.lock().unwrap()[0].prompt, tokens("[user]Hi[assistant]Well"));
}

#[tokio::test]
async fn documents_reach_the_template() {
    let template = "{% for d in documents %}{{ d.title }}{% endfor %}";
    let mut config = config();
    config.limits.trust_request_chat_template = true;
    let world = World::configured(config);
    let body = json!({ "messages": user("Hi"), "documents": [{ "title": "A" }, { "title": "B" }],
                       "chat_template": template });
    world.ok(CHAT, body).await;
    assert_eq!(world.engine.requests.lock().unwrap()[0].prompt, tokens("AB"));
}

#[tokio::test]
async fn tokens_go_there_and_back() {
    let world = World::saying("Hello");
    let answer = world.ok("/tokenize", json!({ "prompt": "Hé", "return_token_strs": true })).await;
    let expected = json!({ "count": 4, "max_model_len": 512, "tokens": [256, 72, 0xc3, 0xa9],
                           "token_strs": ["<s>", "H", "Ã", "©"] });
    assert_eq!(answer, expected);
    let answer = world.ok("/detokenize", json!({ "tokens": [256, 72, 0xc3, 0xa9] })).await;
    assert_eq!(answer, json!({ "prompt": "<s>Hé" }));
    let answer = world.ok("/tokenize", json!({ "messages": user("Hi") })).await;
    assert_eq!(answer["tokens"], json!(tokens("[user]Hi[assistant]")));
}

#[tokio::test]
async fn models_and_version() {
    let world = World::saying("Hello");
    let list = world.get("/v1/models").await.json();
    let model = &list["data"][0];
    assert_eq!(
        (&list["object"], &model["id"], &model["root"]),
        (&json!("list"), &json!("tiny"), &json!("tiny"))
    );
    assert_eq!((&model["object"], &model["max_model_len"]), (&json!("model"), &json!(512)));
    assert_eq!(&world.get("/v1/models/tiny").await.json(), model);
    assert!(world.get("/v1/models/%ff").await.json()["error"]["message"].is_string());
    let missing = world.get("/v1/models/org/other").await;
    assert_eq!(
        (missing.status.as_u16(), &missing.json()["error"]["type"]),
        (404, &json!("NotFoundError"))
    );
    let version = world.get("/version").await.json();
    assert_eq!(version, json!({ "version": env!("CARGO_PKG_VERSION") }));
}

/// A client that leaves cancels what it asked for, whether it streams or not.
#[tokio::test]
async fn leaving_cancels_every_sequence() {
    for stream in [false, true] {
        let world = World::stepwise(&["a", "b", "c"]);
        let body = json!({ "prompt": "Hi", "n": 3, "stream": stream });
        let mut answer =
            Box::pin(world.router.clone().oneshot(post(COMPLETIONS, body.to_string())));
        let response = answer.as_mut().now_or_never();
        assert_eq!(response.is_some(), stream);
        world.engine.step();
        assert_eq!(world.engine.num_running(), 3);
        assert_eq!(world.get("/load").await.json(), json!({ "server_load": 1 }));
        drop((answer, response));
        assert_eq!(world.engine.num_running(), 0);
        assert_eq!(world.get("/load").await.json(), json!({ "server_load": 0 }));
    }
}

#[tokio::test]
async fn a_stop_string_cancels_its_sequence_at_once() {
    let world = World::stepwise(&["one", " two", " three"]);
    let events =
        world.stream(COMPLETIONS, &json!({ "prompt": "Hi", "stop": "two", "stream": true })).await;
    assert_eq!(events.len(), 3, "{events:?}");
    assert_eq!(world.engine.cancelled.load(std::sync::atomic::Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_lost_engine_ends_streams_with_an_error() {
    let world = World::stepwise(&["a", "b"]);
    let body = json!({ "prompt": "Hi", "stream": true }).to_string();
    let response = world.router.clone().oneshot(post(COMPLETIONS, body)).await.unwrap();
    world.engine.step();
    world.engine.fail("the device is on fire");
    let bytes = http_body_util::BodyExt::collect(response.into_body()).await.unwrap().to_bytes();
    let text = std::str::from_utf8(&bytes).unwrap();
    assert!(text.contains("the device is on fire") && text.ends_with("data: [DONE]\n\n"), "{text}");
}
