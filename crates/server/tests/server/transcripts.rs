//! Event streams, to the letter.

use expect_test::{Expect, expect};
use serde_json::{Value, json};

use crate::model::EOS;
use crate::world::{World, config};

/// Streams a request and compares the events, without what differs from run to run.
async fn check(steps: &[&str], path: &str, body: Value, expected: Expect) {
    let mut body = body;
    body["stream"] = json!(true);
    let events = World::stepwise(steps).stream(path, &body).await;
    let lines = events.iter().map(|event| match serde_json::from_str::<Value>(event) {
        Ok(mut event) => {
            for name in ["id", "created", "model", "object"] {
                assert!(event.as_object_mut().unwrap().shift_remove(name).is_some(), "{name}");
            }
            format!("{event}\n")
        }
        Err(_) => format!("{event}\n"),
    });
    expected.assert_eq(&lines.collect::<String>());
}

#[tokio::test]
async fn chat() {
    let body = json!({ "messages": [{ "role": "user", "content": "Hi" }], "max_tokens": 5 });
    // No chunk with only a role; the last text and the finish reason together.
    check(&["He", "l", "lo"], "/v1/chat/completions", body, expect![[r#"
        {"choices":[{"index":0,"delta":{"role":"assistant","content":"He"},"logprobs":null,"finish_reason":null}]}
        {"choices":[{"index":0,"delta":{"content":"l"},"logprobs":null,"finish_reason":null}]}
        {"choices":[{"index":0,"delta":{"content":"lo"},"logprobs":null,"finish_reason":"length"}]}
        [DONE]
    "#]]).await;
}

#[tokio::test]
async fn chat_with_usage() {
    let options = json!({ "include_usage": true });
    let body =
        json!({ "messages": [{ "role": "user", "content": "Hi" }], "stream_options": options });
    check(&["Hello"], "/v1/chat/completions", body, expect![[r#"
        {"choices":[{"index":0,"delta":{"role":"assistant","content":"Hello"},"logprobs":null,"finish_reason":null}],"usage":null}
        {"choices":[{"index":0,"delta":{"content":""},"logprobs":null,"finish_reason":"stop"}],"usage":null}
        {"choices":[],"usage":{"prompt_tokens":19,"total_tokens":25,"completion_tokens":6,"prompt_tokens_details":{"cached_tokens":2}}}
        [DONE]
    "#]]).await;
}

#[tokio::test]
async fn chat_with_logprobs_of_two_choices() {
    let body = json!({ "messages": [{ "role": "user", "content": "Hi" }], "max_tokens": 2, "n": 2, "logprobs": true,
                       "top_logprobs": 1 });
    check(&["H", "e"], "/v1/chat/completions", body, expect![[r#"
        {"choices":[{"index":0,"delta":{"role":"assistant","content":"H"},"logprobs":{"content":[{"token":"H","logprob":-0.5,"bytes":[72],"top_logprobs":[{"token":"H","logprob":-0.5,"bytes":[72]}]}],"refusal":null},"finish_reason":null}]}
        {"choices":[{"index":1,"delta":{"role":"assistant","content":"H"},"logprobs":{"content":[{"token":"H","logprob":-0.5,"bytes":[72],"top_logprobs":[{"token":"H","logprob":-0.5,"bytes":[72]}]}],"refusal":null},"finish_reason":null}]}
        {"choices":[{"index":0,"delta":{"content":"e"},"logprobs":{"content":[{"token":"e","logprob":-0.5,"bytes":[101],"top_logprobs":[{"token":"e","logprob":-0.5,"bytes":[101]}]}],"refusal":null},"finish_reason":"length"}]}
        {"choices":[{"index":1,"delta":{"content":"e"},"logprobs":{"content":[{"token":"e","logprob":-0.5,"bytes":[101],"top_logprobs":[{"token":"e","logprob":-0.5,"bytes":[101]}]}],"refusal":null},"finish_reason":"length"}]}
        [DONE]
    "#]]).await;
}

#[tokio::test]
async fn completion_with_continuous_usage() {
    let options = json!({ "include_usage": true, "continuous_usage_stats": true });
    let body = json!({ "prompt": "Hi", "max_tokens": 3, "stream_options": options });
    check(&["He", "l"], "/v1/completions", body, expect![[r#"
        {"choices":[{"index":0,"text":"He","logprobs":null,"finish_reason":null,"stop_reason":null}],"usage":{"prompt_tokens":3,"total_tokens":5,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":2}}}
        {"choices":[{"index":0,"text":"l","logprobs":null,"finish_reason":"length","stop_reason":null}],"usage":{"prompt_tokens":3,"total_tokens":6,"completion_tokens":3,"prompt_tokens_details":{"cached_tokens":2}}}
        {"choices":[],"usage":{"prompt_tokens":3,"total_tokens":6,"completion_tokens":3,"prompt_tokens_details":{"cached_tokens":2}}}
        [DONE]
    "#]]).await;
}

#[tokio::test]
async fn completion_stopped_by_a_string_across_steps() {
    let body = json!({ "prompt": "Hi", "stop": "lo w" });
    // What may become a stop string is held back; nothing of it is ever sent.
    check(&["Hel", "lo", " ", "world"], "/v1/completions", body, expect![[r#"
        {"choices":[{"index":0,"text":"He","logprobs":null,"finish_reason":null,"stop_reason":null}]}
        {"choices":[{"index":0,"text":"l","logprobs":null,"finish_reason":null,"stop_reason":null}]}
        {"choices":[{"index":0,"text":"","logprobs":null,"finish_reason":"stop","stop_reason":"lo w"}]}
        [DONE]
    "#]]).await;
}

#[tokio::test]
async fn completion_of_a_character_across_steps() {
    let script = vec![vec![0xf0], vec![0x9f], vec![0xa6], vec![0x80, 0x21], vec![EOS]];
    let world = World::with(script, false, config());
    let body = json!({ "prompt": "Hi", "return_token_ids": true, "stream": true });
    let events = world.stream("/v1/completions", &body).await;
    let texts: Vec<Value> = events
        .iter()
        .filter_map(|event| serde_json::from_str::<Value>(event).ok())
        .map(|event| json!([event["choices"][0]["text"], event["choices"][0]["token_ids"]]))
        .collect();
    assert_eq!(json!(texts), json!([["🦀!", [0xf0, 0x9f, 0xa6, 0x80, 0x21]], ["", [257]]]));
}

#[tokio::test]
async fn completion_echoed_with_logprobs() {
    let body = json!({ "prompt": [72, 105], "echo": true, "logprobs": 1, "max_tokens": 1 });
    check(&["!"], "/v1/completions", body, expect![[r#"
        {"choices":[{"index":0,"text":"Hi!","logprobs":{"text_offset":[0,1,2],"token_logprobs":[null,-0.5,-0.5],"tokens":["H","i","!"],"top_logprobs":[null,{"i":-0.5},{"!":-0.5}]},"finish_reason":"length","stop_reason":null}]}
        [DONE]
    "#]]).await;
}
