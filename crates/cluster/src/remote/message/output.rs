//! What a sequence has produced, on the wire.

use prost::{Enumeration, Message};

use super::Times;

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Output {
    #[prost(uint64, tag = "1")]
    pub(crate) seq: u64,
    #[prost(message, optional, tag = "2")]
    pub(crate) admission: Option<Admission>,
    #[prost(message, repeated, tag = "3")]
    pub(crate) tokens: Vec<Token>,
    #[prost(message, repeated, tag = "4")]
    pub(crate) prompt_logprobs: Vec<Logprobs>,
    #[prost(message, optional, tag = "5")]
    pub(crate) finished: Option<Finished>,
    #[prost(string, optional, tag = "6")]
    pub(crate) error: Option<String>,
    #[prost(uint64, optional, tag = "7")]
    pub(crate) retry_after: Option<u64>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Admission {
    #[prost(uint64, tag = "1")]
    pub(crate) at: u64,
    #[prost(uint64, tag = "2")]
    pub(crate) num_cached_tokens: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Token {
    #[prost(uint32, tag = "1")]
    pub(crate) token: u32,
    #[prost(uint64, tag = "2")]
    pub(crate) at: u64,
    #[prost(message, repeated, tag = "3")]
    pub(crate) logprobs: Vec<Logprob>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Logprobs {
    #[prost(message, repeated, tag = "1")]
    pub(crate) list: Vec<Logprob>,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(crate) struct Logprob {
    #[prost(uint32, tag = "1")]
    pub(crate) token: u32,
    #[prost(float, tag = "2")]
    pub(crate) logprob: f32,
    #[prost(uint32, tag = "3")]
    pub(crate) rank: u32,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Finished {
    #[prost(enumeration = "FinishReason", tag = "1")]
    pub(crate) reason: i32,
    #[prost(uint32, optional, tag = "2")]
    pub(crate) stop_token: Option<u32>,
    #[prost(message, required, tag = "3")]
    pub(crate) times: Times,
    #[prost(uint64, tag = "4")]
    pub(crate) num_cached_tokens: u64,
    #[prost(uint64, tag = "5")]
    pub(crate) num_preemptions: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Enumeration)]
#[repr(i32)]
pub(crate) enum FinishReason {
    Stop = 0,
    Length = 1,
    Abort = 2,
}
