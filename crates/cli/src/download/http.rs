//! A small HTTP client: redirects, time limits, and which failures mean that nobody is there.

use std::io::Read;
use std::time::Duration;

use ureq::http::Response;
use ureq::{Agent, Body};

use super::DownloadError;

/// Short, so that where there is no network the next source is asked soon.
const RESOLVE: Duration = Duration::from_secs(3);
const CONNECT: Duration = Duration::from_secs(5);
const RESPONSE: Duration = Duration::from_secs(30);
/// A body that takes longer is cut and asked for again from where it ended: a stalled connection is noticed by that.
const BODY: Duration = Duration::from_secs(120);

/// An HTTP client.
#[derive(Clone, Debug)]
pub(crate) struct Http {
    agent: Agent,
}

/// Where to read on, and who asks.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Ask<'a> {
    /// A bearer token; not sent on to another host by a redirect.
    pub(crate) token: Option<&'a str>,
    /// Skip this many bytes.
    pub(crate) from: u64,
}

impl Http {
    /// Makes a client; proxies come from the usual variables.
    pub(crate) fn new() -> Self {
        let config = Agent::config_builder()
            .timeout_resolve(Some(RESOLVE))
            .timeout_connect(Some(CONNECT))
            .timeout_recv_response(Some(RESPONSE))
            .timeout_recv_body(Some(BODY))
            .http_status_as_error(false)
            .user_agent(concat!("stallfree/", env!("CARGO_PKG_VERSION")))
            .build();
        Self { agent: config.into() }
    }

    /// Asks for `url`; any status is an answer.
    ///
    /// # Errors
    /// [`DownloadError::Unreachable`].
    pub(crate) fn get(&self, url: &str, ask: Ask<'_>) -> Result<Response<Body>, DownloadError> {
        let mut request = self.agent.get(url);
        if let Some(token) = ask.token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        if ask.from > 0 {
            request = request.header("Range", format!("bytes={}-", ask.from));
        }
        request.call().map_err(|error| DownloadError::Unreachable {
            host: host(url).to_owned(),
            reason: error.to_string(),
        })
    }
}

/// Returns a response's body as bytes to read, as many as come.
pub(crate) fn body(response: Response<Body>) -> impl Read {
    response.into_body().into_with_config().limit(u64::MAX).reader()
}

/// Returns a header's text.
pub(crate) fn header<'a>(response: &'a Response<Body>, name: &str) -> Option<&'a str> {
    response.headers().get(name)?.to_str().ok()
}

/// Returns the host of a URL, with its port.
fn host(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.split('/').next().unwrap_or(rest)
}
