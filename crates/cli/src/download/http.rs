//! A small HTTP client: redirects, time limits, and which failures mean that nobody is there.

use std::io::Read;
use std::path::Path;
use std::time::Duration;

use ureq::http::Response;
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body};

use super::DownloadError;
use super::error::OnDisk as _;

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
    /// Makes a client; proxies come from the usual variables. It trusts the issuers in `certificates`, else the public ones.
    ///
    /// # Errors
    /// The file of certificates can't be read.
    pub(crate) fn new(certificates: Option<&Path>) -> Result<Self, DownloadError> {
        let roots = certificates.map_or(Ok(RootCerts::WebPki), issuers)?;
        let config = Agent::config_builder()
            .tls_config(TlsConfig::builder().root_certs(roots).build())
            .timeout_resolve(Some(RESOLVE))
            .timeout_connect(Some(CONNECT))
            .timeout_recv_response(Some(RESPONSE))
            .timeout_recv_body(Some(BODY))
            .http_status_as_error(false)
            .user_agent(concat!("stallfree/", env!("CARGO_PKG_VERSION")))
            .build();
        Ok(Self { agent: config.into() })
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

/// Reads a file of PEM certificates.
fn issuers(path: &Path) -> Result<RootCerts, DownloadError> {
    let pem = std::fs::read(path).at(path)?;
    let certificate = |item| match item {
        Ok(PemItem::Certificate(certificate)) => Some(certificate),
        // Bundles hold comments, keys and certificates of kinds that are not for this.
        _ => None,
    };
    let issuers: Vec<_> = parse_pem(&pem).filter_map(certificate).collect();
    Ok(RootCerts::new_with_certs(&issuers))
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
