//! The policies, one file each, and what several of them do alike.

pub(crate) mod chunked;
pub(crate) mod fastertransformer;
pub(crate) mod orca;
pub(crate) mod sarathi;
pub(crate) mod vllm;
pub(crate) mod vllm_v1;

use crate::{Admission, Error, SchedulerConfig, Setting, Step};

/// Schedules a token of each sequence that decodes, first come first served; the last to have come makes room for the others.
///
/// The last token of a prompt whose others are computed counts as a decode: to the device it is one.
fn run_decodes(step: &mut Step<'_>) {
    let mut index = 0;
    while index < step.num_running() {
        if step.work(index) == 1 {
            step.run(index, 1);
        }
        index += 1;
    }
}

/// Admits waiting sequences with their whole prompts, in order, while there is room.
fn admit_prompts(step: &mut Step<'_>) {
    while step.admit(0, usize::MAX).is_some() {}
}

/// How much the policies reserve that never preempt.
const RESERVE: Setting = Setting {
    name: "reserve",
    default: "max_model_len",
    doc: "blocks set aside for a sequence: for `max_model_len` tokens, or for `max_tokens`: its prompt and as many as it asked for",
};

fn reserve_of(config: &SchedulerConfig) -> Result<Admission, Error> {
    match config.settings.get(RESERVE.name).map(String::as_str) {
        None | Some("max_model_len") => Ok(Admission::MaxModelLen),
        Some("max_tokens") => Ok(Admission::MaxTokens),
        Some(_) => Err(config.bad_setting(RESERVE.name, "`max_model_len` or `max_tokens`")),
    }
}
