//! What a client asks of an engine.

use std::sync::Arc;
use std::time::Duration;

use crate::{SamplingParams, TokenId};

/// One prompt to be continued once.
///
/// A client's request with `n` choices or several prompts becomes that many of these; the prefix cache shares their prompt.
#[derive(Clone, Debug)]
pub struct Request {
    /// The prompt's tokens; at least one.
    pub prompt: Vec<TokenId>,
    /// How tokens are drawn.
    pub sampling: Arc<SamplingParams>,
    /// When to stop.
    pub stop: StopRules,
    /// Lower runs earlier under priority ordering; ignored under FCFS.
    pub priority: i32,
    /// What it was promised.
    pub slo: Slo,
}

/// Service-level objectives of a request; those that are absent are always met.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slo {
    /// The most time from its arrival to its first token.
    pub ttft: Option<Duration>,
    /// The most time a token after the first, as a mean over the request.
    pub tpot: Option<Duration>,
}

/// When a sequence ends, as far as tokens can tell; stop strings are the server's business.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StopRules {
    /// The most tokens to produce; at least 1.
    pub max_tokens: usize,
    /// Stop tokens are banned before this many tokens were produced.
    pub min_tokens: usize,
    /// Tokens that end the sequence, the model's end-of-sequence tokens included unless they are to be ignored.
    ///
    /// The token that stops is part of the output; the server leaves it out of the text.
    pub stop_token_ids: Arc<[TokenId]>,
}

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FinishReason {
    /// It produced a stop token.
    Stop,
    /// It reached `max_tokens` or the model's maximum length.
    Length,
    /// Its client left, or it was cancelled.
    Abort,
}
