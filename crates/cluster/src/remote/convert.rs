//! Between the engine's values and the messages that carry them. A field that is added on either side has to find its place here,
//! or this does not compile.

mod output;
mod sequence;
#[cfg(test)]
mod tests;

use std::time::Duration;

use stallfree_core::{SeqId, Time};
use stallfree_engine::{EngineStats, Report, StepModel};

pub(crate) use output::{output_in, output_out};
pub(crate) use sequence::{
    lease_in, lease_out, offer_in, offer_out, progress_in, progress_out, run_in, run_out,
};

use super::message as wire;
use crate::Role;

/// Counts are of things in this machine's memory; a larger one is a lie that some limit refuses.
fn count(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

pub(crate) fn time_out(time: Time) -> u64 {
    nanos(time.since_start())
}

pub(crate) const fn time_in(nanos: u64) -> Time {
    Time::from_start(Duration::from_nanos(nanos))
}

pub(crate) const fn role_out(role: Role) -> wire::Role {
    match role {
        Role::Mixed => wire::Role::Mixed,
        Role::Prefill => wire::Role::Prefill,
        Role::Decode => wire::Role::Decode,
    }
}

pub(crate) const fn role_in(role: wire::Role) -> Role {
    match role {
        wire::Role::Mixed => Role::Mixed,
        wire::Role::Prefill => Role::Prefill,
        wire::Role::Decode => Role::Decode,
    }
}

/// What else is known of an instance beside its engine's figures.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Load {
    /// How many sequences it has been given, ever.
    pub(crate) num_taken: u64,
    /// For how long its step has been late.
    pub(crate) late: Option<Duration>,
    /// How long its queue takes to become empty.
    pub(crate) retry_after: Duration,
}

pub(crate) fn report_out(stats: &EngineStats, load: Load) -> wire::Report {
    let EngineStats {
        num_running,
        num_waiting,
        num_used_blocks,
        num_blocks,
        prompt_tokens,
        generation_tokens,
        prefix_cache_queries,
        prefix_cache_hits,
        num_preemptions,
        num_steps,
    } = stats;
    wire::Report {
        num_taken: load.num_taken,
        num_running: *num_running as u64,
        num_waiting: *num_waiting as u64,
        num_used_blocks: *num_used_blocks as u64,
        num_blocks: *num_blocks as u64,
        prompt_tokens: *prompt_tokens,
        generation_tokens: *generation_tokens,
        prefix_cache_queries: *prefix_cache_queries,
        prefix_cache_hits: *prefix_cache_hits,
        num_preemptions: *num_preemptions,
        num_steps: *num_steps,
        late: load.late.map(nanos),
        retry_after: nanos(load.retry_after),
    }
}

pub(crate) fn report_in(report: &wire::Report) -> (EngineStats, Load) {
    let stats = EngineStats {
        num_running: count(report.num_running),
        num_waiting: count(report.num_waiting),
        num_used_blocks: count(report.num_used_blocks),
        num_blocks: count(report.num_blocks),
        prompt_tokens: report.prompt_tokens,
        generation_tokens: report.generation_tokens,
        prefix_cache_queries: report.prefix_cache_queries,
        prefix_cache_hits: report.prefix_cache_hits,
        num_preemptions: report.num_preemptions,
        num_steps: report.num_steps,
    };
    let load = Load {
        num_taken: report.num_taken,
        late: report.late.map(Duration::from_nanos),
        retry_after: Duration::from_nanos(report.retry_after),
    };
    (stats, load)
}

pub(crate) fn account_out(report: &Report) -> wire::Account {
    let Report { at, num_decodes, decode_tokens, slack_until, first_tokens, steps } = report;
    let StepModel { prefill, decode, max_chunk } = steps;
    wire::Account {
        at: time_out(*at),
        num_decodes: *num_decodes as u64,
        decode_tokens: *decode_tokens as u64,
        slack_until: slack_until.map(time_out),
        first_tokens: first_tokens.iter().map(|seq| seq.0).collect(),
        steps: prefill.iter().chain(decode).copied().collect(),
        max_chunk: *max_chunk as u64,
    }
}

pub(crate) fn account_in(account: &wire::Account) -> Report {
    let step = |index: usize| account.steps.get(index).copied().unwrap_or_default();
    Report {
        at: time_in(account.at),
        num_decodes: count(account.num_decodes),
        decode_tokens: count(account.decode_tokens),
        slack_until: account.slack_until.map(time_in),
        first_tokens: account.first_tokens.iter().map(|&seq| SeqId(seq)).collect(),
        steps: StepModel {
            prefill: [step(0), step(1), step(2)],
            decode: [step(3), step(4), step(5)],
            max_chunk: count(account.max_chunk),
        },
    }
}
