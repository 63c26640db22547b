//! One step on one rank: batch → inputs → forward pass → sampled tokens.
//!
//! Knows chunks and blocks, but neither requests nor queues. On the main path it comes after `kvcache/manager.rs`, which gave
//! the blocks out; `models/llama.rs` is next.

use std::fmt;
use std::time::Duration;

use stallfree_core::{Batch, SampledToken, StepOutput};
use stallfree_kernels::{Backend, RaggedSeq, StepInputs};
use stallfree_models::Model;

use crate::logprobs::logprobs;
use crate::{Sampler, SamplerError};

/// The most rows that go through the head at once: logits of a row take `4 * vocab_size` bytes.
const HEAD_ROWS: usize = 1024;

/// Runs batches of one model on one backend, whose KV cache is allocated.
pub struct Runner<B: Backend> {
    backend: B,
    model: Box<dyn Model<B>>,
    block_size: usize,
    inputs: StepInputs,
    wanted: Vec<Wanted>,
    sampler: Sampler,
}

impl<B: Backend> fmt::Debug for Runner<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Runner").field("model", self.model.config()).finish_non_exhaustive()
    }
}

/// A row whose logits are needed.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    row: u32,
    chunk: usize,
    /// Which of the chunk's prompt tokens follows the row; `None` where a token is drawn.
    target: Option<usize>,
}

impl<B: Backend> Runner<B> {
    /// Makes a runner.
    pub fn new(backend: B, model: Box<dyn Model<B>>, block_size: usize) -> Self {
        let (inputs, sampler) = (StepInputs::default(), Sampler::default());
        Self { backend, model, block_size, inputs, wanted: Vec::new(), sampler }
    }

    /// Returns the backend.
    pub const fn backend(&self) -> &B {
        &self.backend
    }

    /// Runs one step; the caller times it.
    ///
    /// # Errors
    /// The model's logits are unsound.
    pub fn run(&mut self, batch: &Batch) -> Result<StepOutput, SamplerError> {
        self.fill_inputs(batch);
        self.fill_wanted(batch);
        self.backend.begin_step(&self.inputs);
        let mut hidden = self.model.hidden(&mut self.backend);
        let mut output = StepOutput { device_time: Duration::ZERO, ..StepOutput::default() };
        let mut rows: Vec<u32> = self.wanted.iter().map(|wanted| wanted.row).collect();
        let mut done = 0;
        while !rows.is_empty() {
            let num_rows = rows.len().min(HEAD_ROWS);
            self.sample(batch, hidden, &rows[..num_rows], done, &mut output)?;
            done += num_rows;
            if num_rows < rows.len() {
                // Logits are large: the next slice's take the memory of the one before the last.
                self.backend.begin_layer();
                hidden = self.backend.gather_rows(hidden, &rows[num_rows..]);
            }
            rows = (0..(rows.len() - num_rows) as u32).collect();
        }
        Ok(output)
    }

    fn fill_inputs(&mut self, batch: &Batch) {
        let inputs = &mut self.inputs;
        inputs.token_ids.clone_from(&batch.token_ids);
        inputs.block_ids.clear();
        inputs.block_ids.extend(batch.block_ids.iter().map(|block| block.0));
        inputs.positions.clear();
        inputs.slot_mapping.clear();
        inputs.seqs.clear();
        for chunk in &batch.chunks {
            let blocks = batch.blocks_of(chunk);
            for position in chunk.num_computed_tokens..chunk.context_len() {
                let block = blocks[position / self.block_size].0 as usize;
                let slot = block * self.block_size + position % self.block_size;
                inputs.positions.push(position as u32);
                inputs.slot_mapping.push(slot as u32);
            }
            inputs.seqs.push(RaggedSeq {
                rows: chunk.tokens.clone(),
                context_len: chunk.context_len(),
                blocks: chunk.blocks.clone(),
            });
        }
    }

    fn fill_wanted(&mut self, batch: &Batch) {
        self.wanted.clear();
        for (index, chunk) in batch.chunks.iter().enumerate() {
            let targets = chunk.prompt_logprobs.as_ref().map_or(0, |asked| asked.targets.len());
            self.wanted.extend((0..targets).map(|target| Wanted {
                row: (chunk.tokens.start + target) as u32,
                chunk: index,
                target: Some(target),
            }));
            if chunk.sample.is_some() {
                let row = (chunk.tokens.end - 1) as u32;
                self.wanted.push(Wanted { row, chunk: index, target: None });
            }
        }
    }

    /// Samples from some rows of `hidden`, which are those wanted from index `first` on.
    fn sample(
        &mut self,
        batch: &Batch,
        hidden: B::Tensor,
        rows: &[u32],
        first: usize,
        output: &mut StepOutput,
    ) -> Result<(), SamplerError> {
        let wanted = &self.wanted[first..first + rows.len()];
        let logits = self.model.logits(&mut self.backend, hidden, rows);
        let logits = self.backend.read(logits);
        let vocab_size = logits.len() / rows.len();
        for (wanted, row) in wanted.iter().zip(logits.chunks_exact(vocab_size)) {
            let chunk = &batch.chunks[wanted.chunk];
            match (wanted.target, &chunk.prompt_logprobs, &chunk.sample) {
                (Some(target), Some(asked), _) => {
                    let found = logprobs(row, asked.targets[target], asked.num_top as usize);
                    match output.prompt_logprobs.last_mut() {
                        Some((seq, list)) if *seq == chunk.seq => list.push(found),
                        _ => output.prompt_logprobs.push((chunk.seq, vec![found])),
                    }
                }
                (None, _, Some(spec)) => {
                    let (token, logprobs) = self.sampler.sample(row, spec)?;
                    output.tokens.push(SampledToken { seq: chunk.seq, token, logprobs });
                }
                _ => {}
            }
        }
        Ok(())
    }
}
