//! A sequence and its KV on the wire.

use prost::Message;

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Run {
    #[prost(uint64, tag = "1")]
    pub(crate) seq: u64,
    #[prost(message, required, tag = "2")]
    pub(crate) request: Request,
    #[prost(uint64, tag = "3")]
    pub(crate) arrived: u64,
    #[prost(uint32, repeated, tag = "4")]
    pub(crate) output_tokens: Vec<u32>,
    #[prost(message, optional, tag = "5")]
    pub(crate) kv: Option<Lease>,
    #[prost(message, required, tag = "6")]
    pub(crate) progress: Progress,
    /// To its next token only.
    #[prost(bool, tag = "7")]
    pub(crate) until_next_token: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Request {
    #[prost(uint32, repeated, tag = "1")]
    pub(crate) prompt: Vec<u32>,
    #[prost(message, required, tag = "2")]
    pub(crate) sampling: Sampling,
    #[prost(uint64, tag = "3")]
    pub(crate) max_tokens: u64,
    #[prost(uint64, tag = "4")]
    pub(crate) min_tokens: u64,
    #[prost(uint32, repeated, tag = "5")]
    pub(crate) stop_token_ids: Vec<u32>,
    #[prost(sint32, tag = "6")]
    pub(crate) priority: i32,
    #[prost(uint64, optional, tag = "7")]
    pub(crate) ttft_slo: Option<u64>,
    #[prost(uint64, optional, tag = "8")]
    pub(crate) tpot_slo: Option<u64>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Sampling {
    #[prost(float, tag = "1")]
    pub(crate) temperature: f32,
    #[prost(uint32, tag = "2")]
    pub(crate) top_k: u32,
    #[prost(float, tag = "3")]
    pub(crate) top_p: f32,
    #[prost(float, tag = "4")]
    pub(crate) min_p: f32,
    #[prost(float, tag = "5")]
    pub(crate) repetition_penalty: f32,
    #[prost(float, tag = "6")]
    pub(crate) presence_penalty: f32,
    #[prost(float, tag = "7")]
    pub(crate) frequency_penalty: f32,
    #[prost(message, repeated, tag = "8")]
    pub(crate) logit_bias: Vec<Bias>,
    #[prost(uint32, repeated, tag = "9")]
    pub(crate) allowed_token_ids: Vec<u32>,
    #[prost(message, repeated, tag = "10")]
    pub(crate) bad_words: Vec<Tokens>,
    #[prost(uint64, tag = "11")]
    pub(crate) seed: u64,
    #[prost(uint32, optional, tag = "12")]
    pub(crate) logprobs: Option<u32>,
    #[prost(uint32, optional, tag = "13")]
    pub(crate) prompt_logprobs: Option<u32>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Bias {
    #[prost(uint32, tag = "1")]
    pub(crate) token: u32,
    #[prost(float, tag = "2")]
    pub(crate) bias: f32,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Tokens {
    #[prost(uint32, repeated, tag = "1")]
    pub(crate) tokens: Vec<u32>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Lease {
    #[prost(uint32, tag = "1")]
    pub(crate) instance: u32,
    #[prost(uint64, tag = "2")]
    pub(crate) seq: u64,
    #[prost(uint64, tag = "3")]
    pub(crate) num_tokens: u64,
    #[prost(uint32, repeated, tag = "4")]
    pub(crate) blocks: Vec<u32>,
    #[prost(uint64, tag = "5")]
    pub(crate) generation: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Offer {
    #[prost(message, required, tag = "1")]
    pub(crate) kv: Lease,
    #[prost(uint32, repeated, tag = "2")]
    pub(crate) tokens: Vec<u32>,
    #[prost(uint64, tag = "3")]
    pub(crate) max_total_len: u64,
    #[prost(bool, tag = "4")]
    pub(crate) reads_prefix_cache: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct HandOver {
    #[prost(uint64, tag = "1")]
    pub(crate) seq: u64,
    #[prost(message, optional, tag = "2")]
    pub(crate) kv: Option<Lease>,
    #[prost(message, required, tag = "3")]
    pub(crate) progress: Progress,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Progress {
    #[prost(message, required, tag = "1")]
    pub(crate) times: Times,
    #[prost(uint64, tag = "2")]
    pub(crate) num_cached_tokens: u64,
    #[prost(uint64, tag = "3")]
    pub(crate) num_prompt_logprobs: u64,
    #[prost(uint64, tag = "4")]
    pub(crate) num_preemptions: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Times {
    #[prost(uint64, tag = "1")]
    pub(crate) arrived: u64,
    #[prost(uint64, optional, tag = "2")]
    pub(crate) scheduled: Option<u64>,
    #[prost(uint64, optional, tag = "3")]
    pub(crate) first_token: Option<u64>,
    #[prost(uint64, optional, tag = "4")]
    pub(crate) last_token: Option<u64>,
    #[prost(uint64, tag = "5")]
    pub(crate) finished: u64,
    #[prost(uint64, optional, tag = "6")]
    pub(crate) kv_transfer_started: Option<u64>,
    #[prost(uint64, optional, tag = "7")]
    pub(crate) kv_transfer_ended: Option<u64>,
    #[prost(uint64, optional, tag = "8")]
    pub(crate) decode_started: Option<u64>,
}
