//! A front on a scripted engine, and ways to call it.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Method, Request, StatusCode, header};
use futures::FutureExt;
use http_body_util::BodyExt;
use serde_json::Value;
use stallfree_core::TokenId;
use stallfree_server::{AppState, Metrics, ServerConfig, router};
use tower::ServiceExt;

use crate::engine::{MAX_MODEL_LEN, ScriptedEngine};
use crate::model::{EOS, chat_template, tokenizer};

/// The front and its engine.
pub(crate) struct World {
    pub(crate) engine: Arc<ScriptedEngine>,
    pub(crate) router: Router,
}

/// A whole response.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
}

impl World {
    /// A model that says `text`, a byte a step, and then its end; it runs at once.
    pub(crate) fn saying(text: &str) -> Self {
        Self::with(script(text), true, config())
    }

    /// The same, but it runs only as [`ScriptedEngine::step`] is called.
    pub(crate) fn stepwise(steps: &[&str]) -> Self {
        let mut script: Vec<Vec<TokenId>> =
            steps.iter().map(|step| crate::model::tokens(step)).collect();
        script.push(vec![EOS]);
        Self::with(script, false, config())
    }

    pub(crate) fn configured(config: ServerConfig) -> Self {
        Self::with(script("Hello"), true, config)
    }

    pub(crate) fn with(script: Vec<Vec<TokenId>>, at_once: bool, config: ServerConfig) -> Self {
        let engine = Arc::new(ScriptedEngine::new(script, at_once));
        let metrics = Metrics::new("tiny", MAX_MODEL_LEN);
        let state =
            AppState::new(engine.clone(), tokenizer(), Some(chat_template()), config, metrics);
        Self { engine, router: router(state) }
    }

    /// Sends a body and waits for all of the response.
    pub(crate) async fn post(&self, path: &str, body: &Value) -> Answer {
        self.send(post(path, body.to_string())).await
    }

    /// Sends a body that is to be answered with 200, and returns the response's JSON.
    pub(crate) async fn ok(&self, path: &str, body: Value) -> Value {
        let answer = self.post(path, &body).await;
        assert_eq!(answer.status, StatusCode::OK, "{body} was answered {}", answer.body);
        answer.json()
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(Request::get(path).body(Body::empty()).unwrap()).await
    }

    pub(crate) async fn send(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let body = String::from_utf8(body.to_vec()).unwrap();
        Answer { status: parts.status, headers: parts.headers, body }
    }

    /// Sends a body that asks for a stream, steps the engine to the end, and returns every event in the order of arrival.
    pub(crate) async fn stream(&self, path: &str, body: &Value) -> Vec<String> {
        let response = self.router.clone().oneshot(post(path, body.to_string())).await.unwrap();
        let status = response.status();
        let mut body = response.into_body();
        let mut text = String::new();
        loop {
            while let Some(Some(frame)) = body.frame().now_or_never() {
                let data = frame.unwrap().into_data().unwrap();
                text.push_str(std::str::from_utf8(&data).unwrap());
            }
            assert_eq!(status, StatusCode::OK, "{text}");
            if text.ends_with("data: [DONE]\n\n") {
                break;
            }
            assert!(self.engine.num_running() > 0, "the stream has no end: {text}");
            self.engine.step();
        }
        let events = text.split_terminator("\n\n");
        events.map(|event| event.strip_prefix("data: ").unwrap().to_owned()).collect()
    }
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.body))
    }
}

/// Settings under which the model is called `tiny`.
pub(crate) fn config() -> ServerConfig {
    ServerConfig { eos_token_ids: vec![EOS], ..ServerConfig::new("tiny") }
}

/// A step for each byte, and one for the end.
pub(crate) fn script(text: &str) -> Vec<Vec<TokenId>> {
    text.bytes().map(TokenId::from).chain([EOS]).map(|token| vec![token]).collect()
}

/// A request with a JSON body.
pub(crate) fn post(path: &str, body: impl Into<Body>) -> Request<Body> {
    Request::builder()
        .method(Method::POST)
        .uri(path)
        .header(header::CONTENT_TYPE, "application/json")
        .body(body.into())
        .unwrap()
}
