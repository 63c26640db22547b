//! Keys, limits, overload, headers: what stands between clients and the engine.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{Method, Request, header};
use futures::{FutureExt, stream};
use serde_json::{Value, json};
use stallfree_engine::{EngineHandle, Health, SubmitError};
use stallfree_server::{Limits, ReportConfig, ServerConfig};
use tokio::time::timeout;

use crate::world::{World, config, post};

const PATHS: [&str; 4] = ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"];

fn completion() -> String {
    json!({ "prompt": "Hi" }).to_string()
}

/// Checks an error's status and that its body has OpenAI's shape.
async fn check(world: &World, request: Request<Body>, status: u16, kind: &str) -> Value {
    let answer = world.send(request).await;
    assert_eq!(answer.status.as_u16(), status, "{}", answer.body);
    let error = answer.json()["error"].clone();
    assert_eq!(error["type"], kind, "{error}");
    assert_eq!(error["code"], status, "{error}");
    assert!(error.get("param").is_some() && error["message"].is_string(), "{error}");
    error
}

#[tokio::test]
async fn what_is_not_json_or_not_there() {
    let world = World::saying("Hello");
    let path = "/v1/completions";
    for body in [
        "",
        "[]",
        "5",
        "null",
        "\"x\"",
        "{",
        "{\"prompt\":\"\\ud800\"}",
        "{\"prompt\":1e999}",
        "{\"a\":NaN}",
    ] {
        check(&world, post(path, body), 400, "BadRequestError").await;
    }
    check(&world, post(path, vec![0xff, 0xfe]), 400, "BadRequestError").await;
    let deep = format!("{{\"prompt\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    check(&world, post(path, deep), 400, "BadRequestError").await;
    let plain =
        Request::post(path).header(header::CONTENT_TYPE, "text/plain").body(completion().into());
    check(&world, plain.unwrap(), 415, "BadRequestError").await;
    let unnamed = Request::post(path).body(completion().into());
    check(&world, unnamed.unwrap(), 415, "BadRequestError").await;
    let get = |path: &str| Request::get(path).body(Body::empty()).unwrap();
    check(&world, get(path), 405, "MethodNotAllowedError").await;
    check(&world, get("/v1/nothing"), 404, "NotFoundError").await;
    check(&world, post("/", completion()), 404, "NotFoundError").await;
    let charset =
        Request::post(path).header(header::CONTENT_TYPE, "Application/JSON; charset=utf-8");
    assert_eq!(world.send(charset.body(completion().into()).unwrap()).await.status, 200);
}

#[tokio::test]
async fn keys_open_what_is_under_v1() {
    let keys = vec!["first".to_owned(), "second".to_owned()];
    let world = World::configured(ServerConfig { api_keys: keys, ..config() });
    for given in
        ["", "Bearer", "Bearer ", "Bearer third", "Basic first", "Bearer firstfirst", "Bearer firs"]
    {
        let mut request = post("/v1/completions", completion());
        request.headers_mut().insert(header::AUTHORIZATION, given.parse().unwrap());
        check(&world, request, 401, "AuthenticationError").await;
    }
    check(&world, post("/v1/completions", completion()), 401, "AuthenticationError").await;
    check(
        &world,
        Request::get("/v1/models").body(Body::empty()).unwrap(),
        401,
        "AuthenticationError",
    )
    .await;
    for given in ["Bearer first", "bearer second"] {
        let mut request = post("/v1/completions", completion());
        request.headers_mut().insert(header::AUTHORIZATION, given.parse().unwrap());
        assert_eq!(world.send(request).await.status, 200, "{given}");
    }
    for open in ["/health", "/metrics", "/version", "/openapi.json"] {
        assert_eq!(world.get(open).await.status, 200, "{open}");
    }
    let mut preflight = Request::new(Body::empty());
    *preflight.method_mut() = Method::OPTIONS;
    *preflight.uri_mut() = "/v1/completions".parse().unwrap();
    for (name, value) in [("origin", "http://a.example"), ("access-control-request-method", "POST")]
    {
        preflight.headers_mut().insert(name, value.parse().unwrap());
    }
    let answer = world.send(preflight).await;
    assert_eq!(
        (answer.status.as_u16(), &answer.headers["access-control-allow-origin"]),
        (200, &"*".parse().unwrap())
    );
}

#[tokio::test]
async fn browsers_are_told_who_may_call() {
    let mut config = config();
    config.cors.allowed_origins = vec!["http://a.example".to_owned()];
    config.cors.allow_credentials = true;
    let world = World::configured(config);
    for (origin, allowed) in [("http://a.example", true), ("http://b.example", false)] {
        let request = Request::get("/version").header(header::ORIGIN, origin).body(Body::empty());
        let answer = world.send(request.unwrap()).await;
        assert_eq!(
            answer.headers.get("access-control-allow-origin").is_some(),
            allowed,
            "{origin}"
        );
    }
}

#[tokio::test]
async fn overload_and_loss_are_defined_answers() {
    let world = World::saying("Hello");
    let cases = [
        (
            SubmitError::QueueFull { waiting: 9, retry_after: Duration::from_millis(2500) },
            429,
            "RateLimitError",
        ),
        (
            SubmitError::TooLate {
                predicted: Duration::from_millis(900),
                slo: Duration::from_millis(500),
                retry_after: Duration::from_millis(400),
            },
            429,
            "RateLimitError",
        ),
        (SubmitError::Draining, 503, "ServiceUnavailableError"),
        (SubmitError::Dead("gone".to_owned()), 503, "ServiceUnavailableError"),
        (SubmitError::TooLong { prompt: 3, limit: 2 }, 400, "BadRequestError"),
    ];
    for (refusal, status, kind) in cases {
        *world.engine.refusal.lock().unwrap() = Some(refusal);
        for stream in [false, true] {
            let body = json!({ "prompt": "Hi", "stream": stream }).to_string();
            check(&world, post("/v1/completions", body), status, kind).await;
        }
    }
    *world.engine.refusal.lock().unwrap() =
        Some(SubmitError::QueueFull { waiting: 9, retry_after: Duration::from_millis(2500) });
    let answer = world.send(post("/v1/completions", completion())).await;
    assert_eq!(answer.headers[header::RETRY_AFTER], "2");
    *world.engine.refusal.lock().unwrap() = None;
    assert_eq!(world.send(post("/v1/completions", completion())).await.status, 200);
    world.engine.drain();
    check(&world, post("/v1/completions", completion()), 503, "ServiceUnavailableError").await;
}

#[tokio::test]
async fn health_follows_the_engine() {
    let world = World::saying("Hello");
    for (health, status) in [
        (Health::Late { since: Duration::from_secs(90) }, 503),
        (Health::Dead("out of memory".to_owned()), 503),
        (Health::Healthy, 200),
    ] {
        *world.engine.health.lock().unwrap() = health;
        assert_eq!(world.get("/health").await.status, status);
        assert_eq!(world.get("/ping").await.status, status);
    }
}

#[tokio::test]
async fn bodies_and_requests_are_bounded() {
    let limit = 16 << 20;
    let long = post("/v1/completions", "x".repeat(limit + 1));
    let error = check(&World::saying("Hello"), long, 413, "BadRequestError").await;
    assert!(error["message"].as_str().unwrap().contains(&format!("{limit} bytes")), "{error}");
    let limits = Limits { max_concurrent_requests: 0, ..Limits::default() };
    let world = World::configured(ServerConfig { limits, ..config() });
    for path in PATHS {
        let answer = world.send(post(path, unsent())).now_or_never();
        let answer = answer.expect("the body is not waited for");
        assert_eq!(answer.status, 429, "{path}: {}", answer.body);
    }
    assert_eq!(world.get("/load").await.json(), json!({ "server_load": 0 }));
}

/// A body that never arrives.
fn unsent() -> Body {
    Body::from_stream(stream::pending::<Result<Bytes, Infallible>>())
}

#[tokio::test]
async fn a_body_has_to_arrive() {
    let limits = Limits { body_timeout: Duration::from_millis(20), ..Limits::default() };
    let world = World::configured(ServerConfig { limits, ..config() });
    for path in PATHS {
        check(&world, post(path, unsent()), 408, "RequestTimeoutError").await;
    }
    assert_eq!(world.get("/load").await.json(), json!({ "server_load": 0 }));
}

/// 64 bodies of unknown length take all the room; what comes then waits, unless it is short.
#[tokio::test]
async fn long_bodies_wait_for_room() {
    let world = World::saying("Hello");
    let path = "/v1/completions";
    let mut open: Vec<_> = (0..64).map(|_| Box::pin(world.send(post(path, unsent())))).collect();
    for request in &mut open {
        assert!(request.now_or_never().is_none());
    }
    let long = json!({ "prompt": "Hi", "user": "x".repeat(100_000) }).to_string();
    let mut waiting = Box::pin(world.send(post(path, long)));
    let short = world.send(post(path, completion())).await;
    assert_eq!(short.status, 200, "{}", short.body);
    let early = timeout(Duration::from_millis(50), &mut waiting).await;
    assert!(early.is_err(), "there was no room");
    drop(open);
    let answer = timeout(Duration::from_secs(10), waiting).await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.body);
}

/// However a long body fills up, reading it holds up nobody: it isn't done where it is polled.
#[tokio::test]
async fn long_bodies_hold_nobody_up() {
    let world = World::saying("Hello");
    let user = json!({ "role": "user", "content": "Hi" });
    let hello = |path: &str, (name, value): (&str, Value)| {
        let mut body = json!({ "messages": [user], "tokens": [72], "max_tokens": 1 });
        if path == "/v1/completions" || (path == "/tokenize" && name != "messages") {
            body = json!({ "prompt": "Hi", "max_tokens": 1 });
        }
        body[name] = value;
        post(path, body.to_string())
    };
    for (path, (name, value)) in [
        ("/v1/completions", ("prompt", json!(vec!["Hi"; 1000]))),
        ("/v1/completions", ("logit_bias", json!({ "no": "x".repeat(10_000) }))),
        ("/v1/chat/completions", ("messages", json!(vec![json!({ "role": "" }); 10_000]))),
        ("/v1/chat/completions", ("documents", json!(vec![json!({ "a": 1 }); 10_000]))),
        ("/v1/chat/completions", ("chat_template_kwargs", json!({ "a": vec![0; 10_000] }))),
        ("/tokenize", ("messages", json!(vec![json!({ "role": "" }); 10_000]))),
        ("/tokenize", ("prompt", json!("x".repeat(10_000)))),
        ("/detokenize", ("tokens", json!(vec![72; 10_000]))),
    ] {
        let at_once = world.send(hello(path, (name, value))).now_or_never();
        assert!(at_once.is_none(), "{path} {name}");
        let at_once = world.send(hello(path, ("user", json!("me")))).now_or_never();
        assert_eq!(at_once.map(|answer| answer.status.as_u16()), Some(200), "{path}");
    }
}

#[tokio::test]
async fn request_ids_are_sent_back_and_name_the_answer() {
    let report = ReportConfig { enable_request_id_headers: true, ..ReportConfig::default() };
    let world = World::configured(ServerConfig { report, ..config() });
    let mut request = post("/v1/completions", completion());
    request.headers_mut().insert("x-request-id", "abc-1".parse().unwrap());
    let answer = world.send(request).await;
    assert_eq!(answer.headers["x-request-id"], "abc-1");
    assert_eq!(answer.json()["id"], "cmpl-abc-1");
    let answer = world.send(post("/v1/completions", completion())).await;
    let id = answer.headers["x-request-id"].to_str().unwrap();
    assert_eq!(answer.json()["id"], format!("cmpl-{id}"));
    assert!(World::saying("x").get("/version").await.headers.get("x-request-id").is_none());
    let body = json!({ "prompt": "Hi", "request_id": "mine" });
    assert_eq!(World::saying("x").ok("/v1/completions", body).await["id"], "cmpl-mine");
}

#[tokio::test]
async fn usage_can_be_forced_into_streams() {
    let report = ReportConfig { enable_force_include_usage: true, ..ReportConfig::default() };
    let world = World::with(crate::world::script("Hi"), false, ServerConfig { report, ..config() });
    let events = world.stream("/v1/completions", &json!({ "prompt": "Hi", "stream": true })).await;
    let usage: Value = serde_json::from_str(&events[events.len() - 2]).unwrap();
    assert_eq!(usage["usage"]["completion_tokens"], 3);
}
