//! A deployment that is changed while it serves.

use serde_json::{Value, json};

use super::server::{Server, tiny_model};

/// Instances drain and change their roles between requests and in the midst of one; the answers stay the same, and the stages of each
/// request are counted.
#[test]
fn instances_change_while_they_serve() {
    let model = tiny_model();
    let flags = ["--mode=distserve", "--replica-spec", "1,1", "1,1", "1,1", "--partition-id=1"];
    let server = Server::start(model.path(), &flags);
    let ask = |max_tokens: usize| -> Value {
        let body = json!({
            "prompt": "what is drained", "max_tokens": max_tokens, "ignore_eos": true,
            "temperature": 0, "ttft_slo": 60_000, "tpot_slo": 1000,
        });
        let answer = server.post("/v1/completions", &body).expect("an answer");
        let answer: Value = serde_json::from_reader(answer).expect("JSON");
        assert_eq!(answer["usage"]["completion_tokens"], max_tokens, "{answer}");
        answer["choices"][0]["text"].clone()
    };
    let change = |id: usize, change: Value| -> Value {
        let answer = server.post(&format!("/admin/instances/{id}"), &change).expect("an answer");
        serde_json::from_reader(answer).expect("JSON")
    };
    let (short, long) = (ask(20), ask(300));
    // In the midst of a request, wherever that is by now.
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| ask(300));
        for draining in [true, false, true] {
            assert_eq!(change(1, json!({ "draining": draining }))["draining"], draining);
        }
        assert_eq!(asked.join().expect("an answer"), long);
    });
    assert_eq!(ask(20), short);
    assert_eq!(change(2, json!({ "role": "mixed" }))["role"], "mixed");
    change(0, json!({ "draining": true }));
    assert_eq!((ask(20), ask(300)), (short, long));
    let instances: Value = serde_json::from_str(&server.get("/admin/instances")).expect("JSON");
    let count = |name: &str| -> u64 {
        let of = |instance: &Value| instance[name].as_u64();
        instances["data"].as_array().expect("a list").iter().filter_map(of).sum()
    };
    assert_eq!((count("num_requests"), count("num_kept")), (0, 0), "{instances}");
    let metrics = server.get("/metrics");
    for name in ["vllm:request_prefill_time_seconds", "stallfree:request_decode_queue_time_seconds"]
    {
        let count = metrics.lines().find(|line| line.starts_with(&format!("{name}_count")));
        assert!(count.is_some_and(|line| line.ends_with(" 6")), "{name}: {count:?}");
    }
    assert!(metrics.contains("stallfree:request_kv_transfer_time_seconds_bucket"));
}
