//! A worker that is given every token and asked for all logprobs.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use stallfree_core::{
    Batch, BatchId, BlockId, Chunk, Executor, PromptLogprobs, SampleSpec, SamplingParams, SeqId,
    StepOutput, Time, TokenId,
};
use stallfree_kernels::cpu::{CpuConfig, KvType};
use stallfree_models::{Checkpoint, DtypeChoice, LoadOptions};
use stallfree_worker::{CpuWorkerConfig, CudaWorkerConfig, KvSize, start_cpu, start_cuda};

pub(crate) type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

const BLOCK_SIZE: usize = 16;

/// How a GPU computes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GpuMode {
    pub(crate) dtype: DtypeChoice,
    /// Keeps to Ampere's instructions.
    pub(crate) ampere_path: bool,
    /// Steps of single tokens are recorded before the first one; otherwise one of each size runs as it is before.
    pub(crate) is_recorded: bool,
}

/// How sequences are cut into steps.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Cut {
    /// Each in one chunk, one after the other.
    Prompts,
    /// Each in chunks of so many tokens, one after the other.
    Chunks(usize),
    /// All side by side, a token a step.
    Decodes,
}

pub(crate) struct Forced {
    executor: Box<dyn Executor>,
    vocab_size: usize,
    /// Blocks for each sequence.
    num_blocks: usize,
    num_batches: u64,
}

/// A part of a sequence for a step.
struct Part<'a> {
    seq: usize,
    tokens: &'a [TokenId],
    range: Range<usize>,
    sample: Option<SampleSpec>,
}

impl Forced {
    /// Starts the CPU in single precision, with room for so many sequences of so many tokens.
    pub(crate) fn on_cpu(checkpoint: &Checkpoint, rooms: (usize, usize)) -> Outcome<Self> {
        let num_blocks = rooms.1.div_ceil(BLOCK_SIZE);
        let config = CpuWorkerConfig {
            cpu: CpuConfig { kv_type: KvType::F32, ..CpuConfig::default() },
            block_size: BLOCK_SIZE,
            kv_size: KvSize::Blocks(num_blocks * rooms.0),
            max_kv_tokens: rooms.0 * rooms.1,
            max_model_len: rooms.1,
            measure_step: false,
        };
        let options = LoadOptions { dtype: DtypeChoice::F32, ..LoadOptions::default() };
        let (executor, _) = start_cpu(checkpoint, &config, &options)?;
        Ok(Self::new(checkpoint, Box::new(executor), num_blocks))
    }

    /// Starts the GPU, with room for so many sequences of so many tokens.
    pub(crate) fn on_gpu(
        checkpoint: &Checkpoint,
        mode: GpuMode,
        rooms: (usize, usize),
    ) -> Outcome<Self> {
        let num_blocks = rooms.1.div_ceil(BLOCK_SIZE);
        let config = CudaWorkerConfig {
            ordinal: 0,
            kernel_cache: std::env::temp_dir().join("stallfree-kernels"),
            ampere_path: mode.ampere_path,
            block_size: BLOCK_SIZE,
            kv_size: KvSize::Blocks(num_blocks * rooms.0),
            gpu_memory_utilization: 0.9,
            max_kv_tokens: rooms.0 * rooms.1,
            max_tokens: rooms.1.max(rooms.0).max(32),
            recorded: if mode.is_recorded { rooms } else { (0, 0) },
        };
        let options = LoadOptions { dtype: mode.dtype, ..LoadOptions::default() };
        let (executor, _) = start_cuda(checkpoint, &config, &options, &|_, _| ())?;
        Ok(Self::new(checkpoint, Box::new(executor), num_blocks))
    }

    fn new(checkpoint: &Checkpoint, executor: Box<dyn Executor>, num_blocks: usize) -> Self {
        let vocab_size = checkpoint.config().vocab_size;
        Self { executor, vocab_size, num_blocks, num_batches: 0 }
    }

    /// Samples texts.
    pub(crate) fn make_up(
        &mut self,
        num_sequences: usize,
        len: usize,
        params: impl Fn(u64) -> SamplingParams,
    ) -> Outcome<Vec<Vec<TokenId>>> {
        let params: Vec<_> = (0..num_sequences as u64).map(|seed| Arc::new(params(seed))).collect();
        let first = |seq: usize| vec![(seq * 997 % self.vocab_size) as TokenId];
        let mut texts: Vec<Vec<TokenId>> = (0..num_sequences).map(first).collect();
        for done in 0..len - 1 {
            let part = |seq: usize| Part {
                seq,
                tokens: &texts[seq],
                range: done..done + 1,
                sample: Some(SampleSpec {
                    params: Arc::clone(&params[seq]),
                    num_output_tokens: done,
                    banned: Arc::new([]),
                    history: None,
                }),
            };
            let parts: Vec<_> = (0..num_sequences).map(part).collect();
            for sampled in self.step(&parts)?.tokens {
                texts[sampled.seq.0 as usize].push(sampled.token);
            }
        }
        Ok(texts)
    }

    /// Returns, for each sequence, the logprobs of all tokens after each of its tokens but the last.
    pub(crate) fn logprobs(
        &mut self,
        sequences: &[Vec<TokenId>],
        cut: Cut,
    ) -> Outcome<Vec<Vec<f32>>> {
        let mut found: Vec<Vec<f32>> = vec![Vec::new(); sequences.len()];
        let (chunk, abreast) = match cut {
            Cut::Prompts => (usize::MAX, 1),
            Cut::Chunks(len) => (len, 1),
            Cut::Decodes => (1, sequences.len()),
        };
        for first in (0..sequences.len()).step_by(abreast) {
            let group = first..sequences.len().min(first + abreast);
            let longest = sequences[group.clone()].iter().map(Vec::len).max().unwrap_or(0);
            let mut start = 0;
            while start + 1 < longest {
                let end = longest.min(start.saturating_add(chunk) + 1) - 1;
                let part = |seq: usize| {
                    let tokens = &sequences[seq][..];
                    let range = start..end.min(tokens.len() - 1);
                    Part { seq, tokens, range, sample: None }
                };
                let parts: Vec<_> =
                    group.clone().map(part).filter(|part| !part.range.is_empty()).collect();
                for (seq, lists) in self.step(&parts)?.prompt_logprobs {
                    for list in lists {
                        let mut row = vec![f32::NAN; self.vocab_size];
                        for entry in list {
                            row[entry.token as usize] = entry.logprob;
                        }
                        found[seq.0 as usize].extend(row);
                    }
                }
                start = end;
            }
        }
        Ok(found)
    }

    /// Says whether the last step of the first `num_sequences` gives the same bits as it is, recorded and replayed. The earlier
    /// tokens are in the cache.
    pub(crate) fn replays_alike(
        &mut self,
        sequences: &[Vec<TokenId>],
        num_sequences: usize,
    ) -> Outcome<bool> {
        let part = |seq: usize| {
            let tokens = &sequences[seq][..];
            Part { seq, tokens, range: tokens.len() - 2..tokens.len() - 1, sample: None }
        };
        let parts: Vec<_> = (0..num_sequences).map(part).collect();
        let as_it_is = self.step(&parts)?.prompt_logprobs;
        let recorded = self.step(&parts)?.prompt_logprobs;
        Ok(as_it_is == recorded && as_it_is == self.step(&parts)?.prompt_logprobs)
    }

    fn step(&mut self, parts: &[Part<'_>]) -> Outcome<StepOutput> {
        let mut batch = Batch {
            id: BatchId(self.num_batches),
            chunks: Vec::new(),
            token_ids: Vec::new(),
            block_ids: Vec::new(),
        };
        self.num_batches += 1;
        for part in parts {
            let targets = match part.sample {
                Some(_) => Vec::new(),
                None => part.tokens[part.range.start + 1..=part.range.end].to_vec(),
            };
            let first = (batch.token_ids.len(), batch.block_ids.len());
            batch.token_ids.extend_from_slice(&part.tokens[part.range.clone()]);
            let used = part.range.end.div_ceil(BLOCK_SIZE);
            // A sequence's blocks lie apart, as they do after a while of serving.
            let num_sequences = self.executor.kv_geometry().num_blocks / self.num_blocks;
            batch
                .block_ids
                .extend((0..used).map(|block| BlockId((block * num_sequences + part.seq) as u32)));
            batch.chunks.push(Chunk {
                seq: SeqId(part.seq as u64),
                num_computed_tokens: part.range.start,
                tokens: first.0..batch.token_ids.len(),
                blocks: first.1..batch.block_ids.len(),
                sample: part.sample.clone(),
                prompt_logprobs: (!targets.is_empty())
                    .then_some(PromptLogprobs { num_top: self.vocab_size as u32, targets }),
            });
        }
        self.executor.submit(batch, Time::ZERO);
        loop {
            if let Some(output) = self.executor.collect(Time::ZERO)? {
                return Ok(output);
            }
            std::thread::sleep(Duration::from_micros(50));
        }
    }
}
