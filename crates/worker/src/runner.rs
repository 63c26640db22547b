//! One step on one rank: batch → inputs → forward pass → sampled tokens.
//!
//! Knows chunks and blocks, but neither requests nor queues. On the main path it comes after `kvcache/manager.rs`, which gave
//! the blocks out; `models/llama.rs` is next.

use std::fmt;
use std::ops::Range;
use std::time::Duration;

use stallfree_core::{Batch, Chunk, SampledToken, StepOutput, TokenId};
use stallfree_kernels::{Backend, RaggedSeq, StepInputs};
use stallfree_models::Model;

use crate::logprobs::logprobs;
use crate::sampler::is_plain_greedy;
use crate::{Sampler, SamplerError};

/// The most rows that go through the head at once: logits of a row take `4 * vocab_size` bytes.
pub(crate) const HEAD_ROWS: usize = 1024;

/// Runs batches of one model on one backend, whose KV cache is allocated.
pub struct Runner<B: Backend> {
    backend: B,
    model: Box<dyn Model<B>>,
    block_size: usize,
    max_tokens: usize,
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
    /// Makes a runner. Batches of more than `max_tokens` tokens are run in several passes; no single chunk is longer.
    pub fn new(backend: B, model: Box<dyn Model<B>>, block_size: usize, max_tokens: usize) -> Self {
        let (inputs, sampler) = (StepInputs::default(), Sampler::default());
        Self { backend, model, block_size, max_tokens, inputs, wanted: Vec::new(), sampler }
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
        let mut output = StepOutput { device_time: Duration::ZERO, ..StepOutput::default() };
        let mut first = 0;
        while first < batch.chunks.len() {
            let end = self.end_of_pass(batch, first);
            self.run_pass(batch, first..end, &mut output)?;
            first = end;
        }
        Ok(output)
    }

    /// Returns where the pass ends that begins with chunk `first`: after as many chunks as there is memory for, at least one.
    /// A prefix that is shared within a batch is written by the earlier chunk, so in an earlier pass or the same.
    fn end_of_pass(&self, batch: &Batch, first: usize) -> usize {
        let start = batch.chunks[first].tokens.start;
        let fits = |chunk: &&Chunk| chunk.tokens.end - start <= self.max_tokens;
        first + batch.chunks[first..].iter().take_while(fits).count().max(1)
    }

    fn run_pass(
        &mut self,
        batch: &Batch,
        pass: Range<usize>,
        output: &mut StepOutput,
    ) -> Result<(), SamplerError> {
        self.fill_inputs(batch, &batch.chunks[pass.clone()]);
        self.fill_wanted(batch, pass);
        self.backend.begin_step(&self.inputs);
        let mut rows: Vec<u32> = self.wanted.iter().map(|wanted| wanted.row).collect();
        let every_row = (0..self.inputs.token_ids.len() as u32).eq(rows.iter().copied());
        if every_row && rows.len() <= HEAD_ROWS {
            let model = &self.model;
            let logits = self.backend.record(&|backend| {
                let hidden = model.hidden(backend);
                model.logits(backend, hidden, &rows)
            });
            return self.sample(batch, logits, 0..rows.len(), output);
        }
        let mut hidden = self.model.hidden(&mut self.backend);
        let mut done = 0;
        while !rows.is_empty() {
            let num_rows = rows.len().min(HEAD_ROWS);
            let logits = self.model.logits(&mut self.backend, hidden, &rows[..num_rows]);
            self.sample(batch, logits, done..done + num_rows, output)?;
            done += num_rows;
            if num_rows < rows.len() {
                // Logits are large: the next slice's take the memory of the one before the last.
                self.backend.begin_layer();
                hidden = self.backend.gather_rows(hidden, &rows[num_rows..]);
            }
            rows = (0..(rows.len() - num_rows) as u32).collect();
        }
        Ok(())
    }

    fn fill_inputs(&mut self, batch: &Batch, chunks: &[Chunk]) {
        let (Some(first), Some(last)) = (chunks.first(), chunks.last()) else { return };
        let (rows, tables) = (first.tokens.start, first.blocks.start);
        let inputs = &mut self.inputs;
        inputs.token_ids.clear();
        inputs.token_ids.extend_from_slice(&batch.token_ids[rows..last.tokens.end]);
        inputs.block_ids.clear();
        inputs
            .block_ids
            .extend(batch.block_ids[tables..last.blocks.end].iter().map(|block| block.0));
        inputs.positions.clear();
        inputs.slot_mapping.clear();
        inputs.seqs.clear();
        for chunk in chunks {
            let blocks = batch.blocks_of(chunk);
            for position in chunk.num_computed_tokens..chunk.context_len() {
                let block = blocks[position / self.block_size].0 as usize;
                let slot = block * self.block_size + position % self.block_size;
                inputs.positions.push(position as u32);
                inputs.slot_mapping.push(slot as u32);
            }
            inputs.seqs.push(RaggedSeq {
                rows: chunk.tokens.start - rows..chunk.tokens.end - rows,
                context_len: chunk.context_len(),
                blocks: chunk.blocks.start - tables..chunk.blocks.end - tables,
            });
        }
    }

    fn fill_wanted(&mut self, batch: &Batch, pass: Range<usize>) {
        self.wanted.clear();
        let first_row = batch.chunks[pass.start].tokens.start;
        for (index, chunk) in pass.clone().zip(&batch.chunks[pass]) {
            let rows = chunk.tokens.start - first_row..chunk.tokens.end - first_row;
            let targets = chunk.prompt_logprobs.as_ref().map_or(0, |asked| asked.targets.len());
            self.wanted.extend((0..targets).map(|target| Wanted {
                row: (rows.start + target) as u32,
                chunk: index,
                target: Some(target),
            }));
            if chunk.sample.is_some() {
                self.wanted.push(Wanted { row: (rows.end - 1) as u32, chunk: index, target: None });
            }
        }
    }

    /// Takes what the logits of the wanted rows `slice` are for.
    fn sample(
        &mut self,
        batch: &Batch,
        logits: B::Tensor,
        slice: Range<usize>,
        output: &mut StepOutput,
    ) -> Result<(), SamplerError> {
        let wanted = &self.wanted[slice];
        let chunk = |wanted: &Wanted| &batch.chunks[wanted.chunk];
        let is_greedy = |wanted: &Wanted| {
            wanted.target.is_none() && chunk(wanted).sample.as_ref().is_some_and(is_plain_greedy)
        };
        if wanted.iter().all(is_greedy) {
            // Few bytes come back from the device instead of all logits.
            for (wanted, token) in wanted.iter().zip(self.backend.argmax(logits)) {
                if token == TokenId::MAX {
                    return Err(SamplerError);
                }
                let (seq, logprobs) = (chunk(wanted).seq, Vec::new());
                output.tokens.push(SampledToken { seq, token, logprobs });
            }
            return Ok(());
        }
        let rows = wanted.len();
        let logits = self.backend.read(logits);
        let vocab_size = logits.len() / rows;
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
