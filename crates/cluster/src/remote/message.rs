//! What goes over the wire between a server and its instances, as protocol buffers.
//!
//! The messages are derived from these types, so that building needs no compiler of protocol buffers. Both ends are of one version,
//! which is checked when an instance joins. Times are nanoseconds on the deployment's clock.

mod output;
mod sequence;

use prost::{Enumeration, Message, Oneof};

pub(crate) use output::{Admission, FinishReason, Finished, Logprob, Logprobs, Output, Token};
pub(crate) use sequence::{
    Bias, HandOver, Lease, Offer, Progress, Request, Run, Sampling, Times, Tokens,
};

/// From the server to an instance: all that there is to tell, or nothing, which shows that the server is alive.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct ToInstance {
    /// Counts messages from 1.
    #[prost(uint64, tag = "1")]
    pub(crate) number: u64,
    /// When it was sent.
    #[prost(uint64, tag = "2")]
    pub(crate) now: u64,
    #[prost(message, repeated, tag = "3")]
    pub(crate) orders: Vec<Order>,
}

/// From an instance to its server: the news of a step, or none, which shows that the instance is alive.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct FromInstance {
    /// Counts messages from 1.
    #[prost(uint64, tag = "1")]
    pub(crate) number: u64,
    #[prost(message, repeated, tag = "2")]
    pub(crate) news: Vec<News>,
    /// Absent while the model is being loaded.
    #[prost(message, optional, tag = "3")]
    pub(crate) report: Option<Report>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Order {
    #[prost(oneof = "OrderKind", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10")]
    pub(crate) kind: Option<OrderKind>,
}

#[derive(Clone, PartialEq, Oneof)]
pub(crate) enum OrderKind {
    /// The first: it belongs to the deployment.
    #[prost(message, tag = "1")]
    Welcome(Welcome),
    #[prost(message, tag = "2")]
    Run(Box<Run>),
    /// End this sequence.
    #[prost(uint64, tag = "3")]
    Cancel(u64),
    /// Free what is kept of this sequence.
    #[prost(uint64, tag = "4")]
    Release(u64),
    #[prost(message, tag = "5")]
    Renew(Seqs),
    /// There is another instance.
    #[prost(message, tag = "6")]
    Came(Neighbour),
    /// This one is gone.
    #[prost(uint32, tag = "7")]
    Left(u32),
    /// Leave everything to the others.
    #[prost(message, tag = "8")]
    LeaveAll(()),
    /// Another instance computes KV that can be fetched.
    #[prost(message, tag = "9")]
    Offer(Offer),
    /// What was offered of this sequence does not come.
    #[prost(uint64, tag = "10")]
    Retract(u64),
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct News {
    #[prost(oneof = "NewsKind", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10")]
    pub(crate) kind: Option<NewsKind>,
}

#[derive(Clone, PartialEq, Oneof)]
pub(crate) enum NewsKind {
    /// The first: somebody wants to join.
    #[prost(message, tag = "1")]
    Hello(Hello),
    /// The model is loaded.
    #[prost(message, tag = "2")]
    Ready(Ready),
    #[prost(message, tag = "3")]
    Output(Box<Output>),
    #[prost(message, tag = "4")]
    HandOver(HandOver),
    /// What another instance keeps is needed no more.
    #[prost(message, tag = "5")]
    Release(Lease),
    /// The last: the instance ends, and why.
    #[prost(string, tag = "6")]
    Lost(String),
    /// How it is after a step.
    #[prost(message, tag = "7")]
    Account(Account),
    /// What there is so far of KV that others can fetch.
    #[prost(message, tag = "8")]
    Offer(Offer),
    /// What was offered of this sequence does not come.
    #[prost(uint64, tag = "9")]
    TakeBack(u64),
    /// It is to end, once others have what it has.
    #[prost(message, tag = "10")]
    Leaving(()),
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Hello {
    #[prost(message, required, tag = "1")]
    pub(crate) agreement: Agreed,
    #[prost(enumeration = "Role", tag = "2")]
    pub(crate) role: i32,
    /// Where its KV is read, in the words of the transport.
    #[prost(bytes = "vec", tag = "3")]
    pub(crate) kv_address: Vec<u8>,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct Agreed {
    #[prost(string, tag = "1")]
    pub(crate) version: String,
    #[prost(string, tag = "2")]
    pub(crate) model: String,
    #[prost(uint64, tag = "3")]
    pub(crate) vocab_size: u64,
    #[prost(uint64, tag = "4")]
    pub(crate) block_size: u64,
    #[prost(string, tag = "5")]
    pub(crate) kv_type: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Enumeration)]
#[repr(i32)]
pub(crate) enum Role {
    Mixed = 0,
    Prefill = 1,
    Decode = 2,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Welcome {
    /// The instance's number.
    #[prost(uint32, tag = "1")]
    pub(crate) instance: u32,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Neighbour {
    #[prost(uint32, tag = "1")]
    pub(crate) instance: u32,
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) kv_address: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Ready {
    #[prost(string, tag = "1")]
    pub(crate) scheduler: String,
    #[prost(uint64, tag = "2")]
    pub(crate) max_model_len: u64,
    #[prost(uint64, tag = "3")]
    pub(crate) num_blocks: u64,
    #[prost(bool, tag = "4")]
    pub(crate) enable_prefix_caching: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Report {
    /// How many sequences it has been given.
    #[prost(uint64, tag = "1")]
    pub(crate) num_taken: u64,
    #[prost(uint64, tag = "2")]
    pub(crate) num_running: u64,
    #[prost(uint64, tag = "3")]
    pub(crate) num_waiting: u64,
    #[prost(uint64, tag = "4")]
    pub(crate) num_used_blocks: u64,
    #[prost(uint64, tag = "5")]
    pub(crate) num_blocks: u64,
    #[prost(uint64, tag = "6")]
    pub(crate) prompt_tokens: u64,
    #[prost(uint64, tag = "7")]
    pub(crate) generation_tokens: u64,
    #[prost(uint64, tag = "8")]
    pub(crate) prefix_cache_queries: u64,
    #[prost(uint64, tag = "9")]
    pub(crate) prefix_cache_hits: u64,
    #[prost(uint64, tag = "10")]
    pub(crate) num_preemptions: u64,
    #[prost(uint64, tag = "11")]
    pub(crate) num_steps: u64,
    /// For how long its step has been late.
    #[prost(uint64, optional, tag = "12")]
    pub(crate) late: Option<u64>,
    /// How long its queue takes.
    #[prost(uint64, tag = "13")]
    pub(crate) retry_after: u64,
}

/// What decides who is given what.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Account {
    #[prost(uint64, tag = "1")]
    pub(crate) at: u64,
    #[prost(uint64, tag = "2")]
    pub(crate) num_decodes: u64,
    #[prost(uint64, tag = "3")]
    pub(crate) decode_tokens: u64,
    #[prost(uint64, optional, tag = "4")]
    pub(crate) slack_until: Option<u64>,
    #[prost(uint64, repeated, tag = "5")]
    pub(crate) first_tokens: Vec<u64>,
    /// The coefficients of steps with prompt tokens, then those of others.
    #[prost(double, repeated, tag = "6")]
    pub(crate) steps: Vec<f64>,
    #[prost(uint64, tag = "7")]
    pub(crate) max_chunk: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Seqs {
    #[prost(uint64, repeated, tag = "1")]
    pub(crate) seqs: Vec<u64>,
}
