//! Stall-free batching: no decode ever waits for a prefill.
//!
//! On the main path after the engine's `engine.rs`, before the KV cache's `manager.rs`. A policy only picks chunks; see
//! [`Step`] for what it need not know.

use super::run_decodes;
use crate::{Admission, Declaration, Error, Policy, Scheduler, SchedulerConfig, Setting, Step};

pub(crate) const POLICY: Policy = Policy {
    name: "sarathi",
    paper: "Agrawal et al., Taming Throughput-Latency Tradeoff in LLM Inference with Sarathi-Serve, OSDI 2024",
    doc: "Stall-free batching: every step has all decodes, then the next chunks of ongoing prefills, then chunks of new \
          prompts, up to the chunk size together. Decodes never wait; a step's length is bounded by the chunk size.",
    settings: &[
        Setting {
            name: "chunk_size",
            default: "max_num_batched_tokens",
            doc: "tokens a step, decodes included; decodes alone may exceed it",
        },
        Setting {
            name: "enable_dynamic_chunking_schedule",
            default: "false",
            doc: "shrink a prompt's chunks as its context grows, instead of chunk_size",
        },
        Setting { name: "low_chunk_size", default: "128", doc: "the smallest dynamic chunk" },
        Setting { name: "high_chunk_size", default: "2048", doc: "the largest dynamic chunk" },
        Setting {
            name: "chunk_schedule_max_tokens",
            default: "131072",
            doc: "the context at which dynamic chunks are smallest",
        },
        Setting {
            name: "chunk_schedule_stages",
            default: "16",
            doc: "how many sizes dynamic chunks have",
        },
    ],
    build,
};

/// The policy of Sarathi-Serve: algorithm 3, and its dynamic chunk sizes.
#[derive(Debug)]
struct Sarathi {
    chunks: ChunkSizes,
    max_chunk: usize,
    max_num_seqs: usize,
}

fn build(config: &SchedulerConfig) -> Result<Box<dyn Scheduler>, Error> {
    Ok(Box::new(Sarathi {
        chunks: ChunkSizes::new(config)?,
        max_chunk: config.max_chunk(),
        max_num_seqs: config.max_num_seqs,
    }))
}

impl Sarathi {
    /// Returns how many tokens may be scheduled of a prompt of which `num_computed` are computed; 0 once decodes or earlier prompts
    /// used the step up.
    fn limit(&self, step: &Step<'_>, num_computed: usize) -> usize {
        self.chunks.at(num_computed).saturating_sub(step.num_tokens()).min(self.max_chunk)
    }
}

impl Scheduler for Sarathi {
    fn declares(&self) -> Declaration {
        Declaration {
            token_bound: Some(self.chunks.largest().max(self.max_num_seqs)),
            admission: Admission::WholePrompt,
            in_order: true,
        }
    }

    fn schedule(&mut self, step: &mut Step<'_>) {
        run_decodes(step);
        self.continue_prefills(step);
        self.admit(step);
    }
}

impl Sarathi {
    fn continue_prefills(&self, step: &mut Step<'_>) {
        let mut index = 0;
        while let Some(seq) = step.running(index) {
            let limit = self.limit(step, seq.num_computed_tokens);
            step.run(index, limit);
            index += 1;
        }
    }

    fn admit(&self, step: &mut Step<'_>) {
        // What the prefix cache holds of the prompt counts as context already.
        while let Some(uncached) = step.uncached(0) {
            let num_tokens = step.waiting(0).map_or(uncached, |seq| seq.num_tokens());
            if step.admit(0, self.limit(step, num_tokens - uncached)).is_none() {
                break;
            }
        }
    }
}

/// The largest dynamic chunk that may be set, and the most sizes.
const MAX_CHUNK: usize = 1 << 20;
const MAX_SIZES: usize = 1 << 12;

/// How large a prompt's next chunk is.
#[derive(Debug)]
struct ChunkSizes {
    /// Chunk sizes for growing context, the largest first.
    sizes: Vec<usize>,
    /// How many tokens of context each is for.
    tokens_per_size: usize,
}

impl ChunkSizes {
    fn new(config: &SchedulerConfig) -> Result<Self, Error> {
        let chunk_size = config.count_setting("chunk_size", config.max_num_batched_tokens)?;
        let dynamic =
            config.setting("enable_dynamic_chunking_schedule", false, "`true` or `false`")?;
        let low = config.count_setting("low_chunk_size", 128)?;
        let high = config.count_setting("high_chunk_size", 2048)?;
        let max_tokens = config.count_setting("chunk_schedule_max_tokens", 131_072)?;
        let num_sizes = config.count_setting("chunk_schedule_stages", 16)?;
        if !dynamic {
            return Ok(Self { sizes: vec![chunk_size], tokens_per_size: usize::MAX });
        }
        if low > high {
            return Err(config.bad_setting("low_chunk_size", "at most high_chunk_size"));
        }
        if high > MAX_CHUNK {
            return Err(config.bad_setting("high_chunk_size", "at most 1048576"));
        }
        if num_sizes > MAX_SIZES {
            return Err(config.bad_setting("chunk_schedule_stages", "at most 4096"));
        }
        // Evenly spaced, then rounded: whole multiples of a tile keep matrix products efficient.
        let tile = low.min(32);
        let size =
            |i: usize| nearest_multiple(low + (high - low) * i / (num_sizes - 1).max(1), tile);
        let sizes = (0..num_sizes).rev().map(size).collect();
        Ok(Self { sizes, tokens_per_size: max_tokens.div_ceil(num_sizes) })
    }

    fn at(&self, num_computed: usize) -> usize {
        let index = (num_computed / self.tokens_per_size).min(self.sizes.len() - 1);
        self.sizes[index]
    }

    fn largest(&self) -> usize {
        self.sizes[0]
    }
}

/// Rounds to a multiple of `tile`, halves to an even one.
const fn nearest_multiple(value: usize, tile: usize) -> usize {
    let (below, rest) = (value / tile, value % tile);
    let up = 2 * rest > tile || (2 * rest == tile && below % 2 == 1);
    (below + up as usize) * tile
}
