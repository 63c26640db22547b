//! HTTP with one server.

use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;

use super::ServerArgs;

type Connections = hyper_util::client::legacy::Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

/// Between two looks whether the server is ready.
const READY_EVERY: Duration = Duration::from_millis(500);

/// A server, and how it is asked. Clones share connections.
#[derive(Clone, Debug)]
pub(super) struct Client {
    connections: Connections,
    base: String,
    endpoint: Uri,
    headers: HeaderMap,
}

impl Client {
    /// Prepares to ask a server; nothing is sent yet.
    ///
    /// # Errors
    /// The address or a header can't be one.
    pub(super) fn new(args: &ServerArgs) -> Result<Self> {
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        // Each token is a small packet; none may wait for the next.
        http.set_nodelay(true);
        let connector = HttpsConnectorBuilder::new()
            .with_webpki_roots()
            .https_or_http()
            .enable_http1()
            .wrap_connector(http);
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(key) = &args.api_key {
            let value = HeaderValue::from_str(&format!("Bearer {key}"));
            headers.insert(AUTHORIZATION, value.context("the API key can't be sent as a header")?);
        }
        for (name, value) in &args.header {
            let bad = || format!("--header {name}={value} can't be a header");
            let name: HeaderName = name.parse().with_context(bad)?;
            headers.insert(name, value.parse().with_context(bad)?);
        }
        let base = args.url();
        let endpoint = format!("{base}{}", args.endpoint());
        Ok(Self {
            connections: hyper_util::client::legacy::Client::builder(TokioExecutor::new())
                .build(connector),
            endpoint: endpoint.parse().with_context(|| format!("{endpoint} is not an address"))?,
            base,
            headers,
        })
    }

    /// Sends a body to the endpoint that is measured; returns as soon as the answer begins.
    ///
    /// # Errors
    /// There is no answer.
    pub(super) async fn ask(&self, body: Bytes) -> Result<Response<Incoming>> {
        self.send(Method::POST, self.endpoint.clone(), body).await
    }

    /// Waits until the server answers; 0 seconds don't wait.
    ///
    /// # Errors
    /// It does not answer in time.
    pub(super) async fn wait_until_ready(&self, seconds: u64) -> Result<()> {
        let ready = async {
            while !self.is_ready().await {
                tokio::time::sleep(READY_EVERY).await;
            }
        };
        match seconds {
            0 => Ok(()),
            _ => tokio::time::timeout(Duration::from_secs(seconds), ready)
                .await
                .map_err(|_| anyhow!("{} was not ready within {seconds} s", self.base)),
        }
    }

    /// Returns whether the server answers.
    pub(super) async fn is_ready(&self) -> bool {
        self.get("/v1/models").await.is_ok()
    }

    /// Returns the first model that the server lists.
    ///
    /// # Errors
    /// It lists none.
    pub(super) async fn first_model(&self) -> Result<String> {
        let models = self.get("/v1/models").await?;
        let name = models["data"][0]["id"].as_str();
        Ok(name.with_context(|| format!("{} lists no model; name it: --model", self.base))?.into())
    }

    async fn get(&self, path: &str) -> Result<Value> {
        self.json(Method::GET, path, Bytes::new()).await
    }

    /// Posts JSON and reads JSON.
    ///
    /// # Errors
    /// The server refuses, or answers something else.
    pub(super) async fn post(&self, path: &str, body: &Value) -> Result<Value> {
        self.json(Method::POST, path, body.to_string().into()).await
    }

    async fn json(&self, method: Method, path: &str, body: Bytes) -> Result<Value> {
        let uri = format!("{}{path}", self.base);
        let response = self.send(method, uri.parse().with_context(|| uri.clone())?, body).await?;
        let status = response.status();
        let body = response.into_body().collect().await.context("the answer broke off")?.to_bytes();
        if !status.is_success() {
            bail!("{uri}: {}", refusal(status.as_str(), &body));
        }
        serde_json::from_slice(&body).with_context(|| format!("{uri} does not answer with JSON"))
    }

    async fn send(&self, method: Method, uri: Uri, body: Bytes) -> Result<Response<Incoming>> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        *request.uri_mut() = uri;
        *request.headers_mut() = self.headers.clone();
        let response = self.connections.request(request).await;
        response.with_context(|| format!("no server answers at {}", self.base))
    }
}

/// Returns what a server says when it refuses.
pub(super) fn refusal(status: &str, body: &[u8]) -> String {
    let json: Value = serde_json::from_slice(body).unwrap_or_default();
    let message = json["error"]["message"].as_str().or_else(|| json["message"].as_str());
    match message {
        Some(message) => format!("{status}: {message}"),
        None => status.to_owned(),
    }
}
