//! What the front is told at launch. The command line fills it in, but for the timeouts of [`Limits`], which no flag sets.

use std::time::Duration;

use serde_json::{Map, Value};
use stallfree_core::{Slo, TokenId};

/// The front's settings, under vLLM's names where the meaning is the same.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// The names under which clients may ask for the model; the first one is reported. At least one.
    pub served_model_names: Vec<String>,
    /// Where the model came from: `root` in `/v1/models`.
    pub model_root: String,
    /// Keys that open the routes under `/v1` and `/admin`; none leaves them open.
    pub api_keys: Vec<String>,
    /// Which web pages may call.
    pub cors: CorsConfig,
    /// What protects the process from its clients.
    pub limits: Limits,
    /// Sampling where a request says nothing.
    pub default_sampling: DefaultSampling,
    /// What a request is promised that says nothing.
    pub default_slo: Slo,
    /// The model's end-of-sequence tokens.
    pub eos_token_ids: Vec<TokenId>,
    /// How the beginning-of-sequence token is written, for chat templates.
    pub bos_token: Option<String>,
    /// How the end-of-sequence token is written, for chat templates.
    pub eos_token: Option<String>,
    /// Variables that every chat template sees unless the request says otherwise.
    pub default_chat_template_kwargs: Map<String, Value>,
    /// What is reported beyond the defaults.
    pub report: ReportConfig,
}

/// Cross-origin rules.
#[derive(Clone, Debug)]
pub struct CorsConfig {
    /// Origins; `*` stands for all.
    pub allowed_origins: Vec<String>,
    /// Methods; `*` stands for all.
    pub allowed_methods: Vec<String>,
    /// Headers; `*` stands for all.
    pub allowed_headers: Vec<String>,
    /// Whether browsers may send credentials along.
    pub allow_credentials: bool,
}

/// Bounds on what clients may ask.
#[derive(Clone, Debug)]
pub struct Limits {
    /// The most requests under way at once, received or not; further ones are answered 429.
    pub max_concurrent_requests: usize,
    /// How long a connection may take to begin a request and to send its head; then it is closed.
    pub header_timeout: Duration,
    /// How long a request's body may take; then it is answered 408.
    pub body_timeout: Duration,
    /// The most alternatives that logprobs may list for a token.
    pub max_logprobs: u32,
    /// Whether a request may bring its own chat template, which is a program.
    pub trust_request_chat_template: bool,
}

/// The sampling of a request that says nothing: neutral, or the model's `generation_config.json`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DefaultSampling {
    /// As in [`stallfree_core::SamplingParams`].
    pub temperature: f32,
    /// As in [`stallfree_core::SamplingParams`].
    pub top_k: u32,
    /// As in [`stallfree_core::SamplingParams`].
    pub top_p: f32,
    /// As in [`stallfree_core::SamplingParams`].
    pub min_p: f32,
    /// As in [`stallfree_core::SamplingParams`].
    pub repetition_penalty: f32,
    /// The most tokens to produce, where the model's publisher sets one.
    pub max_tokens: Option<usize>,
}

/// Switches for what responses, headers and the log carry.
#[derive(Clone, Copy, Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "independent switches, each a vLLM flag")]
pub struct ReportConfig {
    /// `--enable-force-include-usage`: every stream ends with its usage.
    pub enable_force_include_usage: bool,
    /// `--enable-request-id-headers`: responses carry `X-Request-Id`.
    pub enable_request_id_headers: bool,
    /// `--return-tokens-as-token-ids`: logprobs name tokens `token_id:N`.
    pub return_tokens_as_token_ids: bool,
    /// `--disable-log-stats`: no throughput line.
    pub disable_log_stats: bool,
}

impl ServerConfig {
    /// Returns the defaults for a model served under `name`.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        let name = name.into();
        Self {
            served_model_names: vec![name.clone()],
            model_root: name,
            api_keys: Vec::new(),
            cors: CorsConfig::default(),
            limits: Limits::default(),
            default_sampling: DefaultSampling::default(),
            default_slo: Slo::default(),
            eos_token_ids: Vec::new(),
            bos_token: None,
            eos_token: None,
            default_chat_template_kwargs: Map::new(),
            report: ReportConfig::default(),
        }
    }

    /// Returns the name that responses carry.
    #[must_use]
    pub fn model_name(&self) -> &str {
        self.served_model_names.first().map_or("", String::as_str)
    }
}

impl Default for CorsConfig {
    fn default() -> Self {
        let all = || vec!["*".to_owned()];
        Self {
            allowed_origins: all(),
            allowed_methods: all(),
            allowed_headers: all(),
            allow_credentials: false,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_concurrent_requests: 4096,
            // As long as nginx keeps idle connections: longer than the pools of most clients do.
            header_timeout: Duration::from_secs(75),
            body_timeout: Duration::from_secs(60),
            max_logprobs: 20,
            trust_request_chat_template: false,
        }
    }
}

impl Default for DefaultSampling {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            max_tokens: None,
        }
    }
}
