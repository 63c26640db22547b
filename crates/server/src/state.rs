//! What every route shares.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use stallfree_engine::EngineHandle;
use stallfree_tokenizer::{ChatTemplate, Tokenizer};

use crate::computing::Computing;
use crate::input::body::LongBodies;
use crate::{ApiError, Metrics, ServerConfig};

/// What every route shares: the engine, the tokenizer, the settings. Cheap to clone.
#[derive(Clone)]
pub struct AppState(Arc<Shared>);

struct Shared {
    engine: Arc<dyn EngineHandle>,
    tokenizer: Arc<Tokenizer>,
    chat_template: Option<ChatTemplate>,
    config: ServerConfig,
    metrics: Arc<Metrics>,
    created: u64,
    longest_token: usize,
    computing: Computing,
    long_bodies: LongBodies,
    load: Arc<AtomicUsize>,
}

/// Counts a request as under way until it is dropped. Routes take it before they receive the body.
#[derive(Debug)]
pub(crate) struct LoadGuard(Arc<AtomicUsize>);

impl AppState {
    /// Puts a front together. `metrics` is the one whose observer the engine was given.
    #[must_use]
    pub fn new(
        engine: Arc<dyn EngineHandle>,
        tokenizer: Arc<Tokenizer>,
        chat_template: Option<ChatTemplate>,
        config: ServerConfig,
        metrics: Arc<Metrics>,
    ) -> Self {
        let ids = 0..u32::try_from(tokenizer.vocab_size()).unwrap_or(u32::MAX);
        let longest_token = ids.map(|id| tokenizer.token_bytes(id).len()).max().unwrap_or(1).max(1);
        Self(Arc::new(Shared {
            engine,
            tokenizer,
            chat_template,
            config,
            metrics,
            created: unix_seconds(),
            longest_token,
            computing: Computing::default(),
            long_bodies: LongBodies::default(),
            load: Arc::default(),
        }))
    }

    /// Returns the engine.
    #[must_use]
    pub fn engine(&self) -> &dyn EngineHandle {
        &*self.0.engine
    }

    /// Returns the settings.
    #[must_use]
    pub fn config(&self) -> &ServerConfig {
        &self.0.config
    }

    /// Returns the metrics.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    /// Returns how many requests for generation or tokenization are under way.
    #[must_use]
    pub fn load(&self) -> usize {
        self.0.load.load(Ordering::Relaxed)
    }

    pub(crate) fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.0.tokenizer
    }

    pub(crate) fn chat_template(&self) -> Option<&ChatTemplate> {
        self.0.chat_template.as_ref()
    }

    /// Returns when the front was put together, in seconds since 1970.
    pub(crate) fn created(&self) -> u64 {
        self.0.created
    }

    /// Returns how many bytes of text a token stands for at most; at least 1.
    pub(crate) fn longest_token(&self) -> usize {
        self.0.longest_token
    }

    pub(crate) fn computing(&self) -> &Computing {
        &self.0.computing
    }

    pub(crate) fn long_bodies(&self) -> &LongBodies {
        &self.0.long_bodies
    }

    /// Checks the name of the model that a request asks for; none means the one there is.
    pub(crate) fn check_model(&self, name: Option<&str>) -> Result<(), ApiError> {
        let served = &self.config().served_model_names;
        match name {
            Some(name) if !served.iter().any(|known| known == name) => {
                Err(ApiError::UnknownModel(name.to_owned()))
            }
            _ => Ok(()),
        }
    }
}

impl fmt::Debug for AppState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AppState")
            .field("engine", &self.0.engine)
            .field("config", &self.0.config)
            .finish_non_exhaustive()
    }
}

impl FromRequestParts<AppState> for LoadGuard {
    type Rejection = ApiError;

    /// Counts a request in, unless there are too many already.
    async fn from_request_parts(_: &mut Parts, state: &AppState) -> Result<Self, ApiError> {
        let guard = Self(Arc::clone(&state.0.load));
        let limit = state.config().limits.max_concurrent_requests;
        if guard.0.fetch_add(1, Ordering::Relaxed) >= limit {
            let message = format!("{limit} requests are under way, which is the limit.");
            return Err(ApiError::Overloaded { message, retry_after: Duration::from_secs(1) });
        }
        Ok(guard)
    }
}

impl Drop for LoadGuard {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Returns the seconds since 1970.
pub(crate) fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
