//! One step on one rank: batch → inputs → forward pass → sampled tokens.
//!
//! Knows chunks and blocks, but neither requests nor queues. On the main path it comes after `kvcache/manager.rs`, which gave
//! the blocks out; `models/llama.rs` is next.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;

use rayon::iter::{IndexedParallelIterator, IntoParallelRefIterator, ParallelIterator};
use rayon::slice::ParallelSlice;
use stallfree_core::{
    Batch, Chunk, PENDING_TOKEN, SampledToken, SeqId, StepOutput, TokenId, TokenLogprob,
};
use stallfree_kernels::{Backend, RaggedSeq, StepInputs, chosen_at};
use stallfree_models::Model;

use crate::logprobs::logprobs;
use crate::sampler::is_plain_greedy;
use crate::submitted::Submitted;
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
    /// The tokens of the batch before: what [`PENDING_TOKEN`] stands for.
    newest: HashMap<SeqId, Newest>,
    /// How many of them are still on the device only.
    num_chosen: u32,
}

/// A sequence's newest token.
#[derive(Clone, Copy, Debug)]
enum Newest {
    /// The host knows it.
    Known(TokenId),
    /// It is at this place of the device's choices.
    Chosen(u32),
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
        let inputs = StepInputs::default();
        let (wanted, newest) = (Vec::new(), HashMap::new());
        Self { backend, model, block_size, max_tokens, inputs, wanted, newest, num_chosen: 0 }
    }

    /// Returns the backend.
    pub const fn backend(&self) -> &B {
        &self.backend
    }

    /// Returns how many tokens the model knows.
    pub fn vocab_size(&self) -> usize {
        self.model.config().vocab_size
    }

    /// Runs one step.
    ///
    /// # Errors
    /// The model's logits are unsound.
    pub fn run(&mut self, batch: &Batch) -> Result<StepOutput, SamplerError> {
        self.submit(batch)?.wait()
    }

    /// Starts one step. On a device that runs beside the host it returns before the step is done, and the next one, whose tokens
    /// may be [`PENDING_TOKEN`], can be started at once.
    ///
    /// # Errors
    /// The model's logits are unsound.
    pub fn submit(&mut self, batch: &Batch) -> Result<Submitted<B::Choice>, SamplerError> {
        let mut submitted = Submitted::default();
        if self.end_of_pass(batch, 0) == batch.chunks.len() && !asks_history(batch) {
            self.run_pass(batch, 0..batch.chunks.len(), &mut submitted)?;
            self.remember(&submitted.output);
            if submitted.is_known() {
                submitted.add(std::iter::empty(), self.backend.end_step());
            }
            return Ok(submitted);
        }
        // Several passes would put their choices in one place, and penalties are computed from tokens: the host has to know them.
        let batch = self.with_known_tokens(batch);
        let mut first = 0;
        while first < batch.chunks.len() {
            let end = self.end_of_pass(&batch, first);
            self.run_pass(&batch, first..end, &mut submitted)?;
            first = end;
        }
        let output = submitted.wait()?;
        self.remember(&output);
        Ok(Submitted::from(output))
    }

    /// Takes note of the tokens that the next batch may have as pending.
    fn remember(&mut self, output: &StepOutput) {
        self.newest.clear();
        self.num_chosen = 0;
        for sampled in &output.tokens {
            let newest = if sampled.token == PENDING_TOKEN {
                self.num_chosen += 1;
                Newest::Chosen(self.num_chosen - 1)
            } else {
                Newest::Known(sampled.token)
            };
            self.newest.insert(sampled.seq, newest);
        }
    }

    /// Puts in what is pending, once it is known.
    fn with_known_tokens(&mut self, batch: &Batch) -> Batch {
        let chosen = if self.num_chosen > 0 { self.backend.chosen() } else { Vec::new() };
        let token_of = |seq: SeqId| match self.newest.get(&seq) {
            Some(Newest::Known(token)) => *token,
            Some(Newest::Chosen(place)) => chosen.get(*place as usize).copied().unwrap_or(0),
            None => 0,
        };
        let mut batch = batch.clone();
        for chunk in &mut batch.chunks {
            let history = chunk.sample.as_mut().and_then(|spec| spec.history.as_mut());
            let known = &mut batch.token_ids[chunk.tokens.clone()];
            let history = history.into_iter().flat_map(|history| &mut history.tokens);
            for token in known.iter_mut().chain(history).filter(|token| **token == PENDING_TOKEN) {
                *token = token_of(chunk.seq);
            }
        }
        batch
    }

    /// Records steps of single tokens ahead of time, where the device does that. `progress` hears how many of how many are done.
    pub fn prepare(&mut self, num_seqs: usize, context: usize, progress: &dyn Fn(usize, usize)) {
        let shapes = self.backend.recorded_shapes(num_seqs, context);
        for (done, shape) in shapes.iter().enumerate() {
            progress(done, shapes.len());
            let position = u32::try_from(shape.context - 1).unwrap_or(u32::MAX);
            self.inputs = StepInputs {
                token_ids: vec![0; shape.num_seqs],
                positions: vec![position; shape.num_seqs],
                slot_mapping: vec![0; shape.num_seqs],
                block_ids: vec![0; shape.context.div_ceil(self.block_size)],
                seqs: (0..shape.num_seqs)
                    .map(|row| RaggedSeq {
                        rows: row..row + 1,
                        context_len: shape.context,
                        blocks: 0..shape.context.div_ceil(self.block_size),
                    })
                    .collect(),
            };
            let rows: Vec<u32> = (0..shape.num_seqs as u32).collect();
            self.backend.begin_step(&self.inputs);
            let model = &self.model;
            self.backend.prepare(&|backend| {
                let hidden = model.hidden(backend);
                model.logits(backend, hidden, &rows)
            });
        }
        progress(shapes.len(), shapes.len());
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
        submitted: &mut Submitted<B::Choice>,
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
            return self.sample(batch, logits, 0..rows.len(), submitted);
        }
        let mut hidden = self.model.hidden(&mut self.backend);
        let mut done = 0;
        while !rows.is_empty() {
            let num_rows = rows.len().min(HEAD_ROWS);
            let logits = self.model.logits(&mut self.backend, hidden, &rows[..num_rows]);
            self.sample(batch, logits, done..done + num_rows, submitted)?;
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
        inputs.block_ids.clear();
        inputs
            .block_ids
            .extend(batch.block_ids[tables..last.blocks.end].iter().map(|block| block.0));
        inputs.positions.clear();
        inputs.slot_mapping.clear();
        inputs.seqs.clear();
        for chunk in chunks {
            let newest = match self.newest.get(&chunk.seq) {
                Some(Newest::Known(token)) => *token,
                Some(Newest::Chosen(place)) => chosen_at(*place),
                None => 0,
            };
            let known = |&token: &TokenId| if token == PENDING_TOKEN { newest } else { token };
            inputs.token_ids.extend(batch.tokens_of(chunk).iter().map(known));
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
        submitted: &mut Submitted<B::Choice>,
    ) -> Result<(), SamplerError> {
        let wanted = &self.wanted[slice];
        let chunk = |wanted: &Wanted| &batch.chunks[wanted.chunk];
        let is_greedy = |wanted: &Wanted| {
            wanted.target.is_none() && chunk(wanted).sample.as_ref().is_some_and(is_plain_greedy)
        };
        if wanted.iter().all(is_greedy) {
            // Few bytes come back from the device instead of all logits.
            let seqs = wanted.iter().map(|wanted| chunk(wanted).seq);
            submitted.add(seqs, self.backend.argmax(logits));
            return Ok(());
        }
        let output = &mut submitted.output;
        let rows = wanted.len();
        let logits = self.backend.read(logits);
        // A row's draw depends on the row alone, so they are drawn side by side.
        let found: Result<Vec<Found>, SamplerError> = wanted
            .par_iter()
            .zip(logits.par_chunks_exact(logits.len() / rows))
            .map_init(Sampler::default, |sampler, (wanted, row)| {
                take(sampler, chunk(wanted), wanted, row)
            })
            .collect();
        for (wanted, found) in wanted.iter().zip(found?) {
            let seq = chunk(wanted).seq;
            match (found, output.prompt_logprobs.last_mut()) {
                (Found::Token(token, logprobs), _) => {
                    output.tokens.push(SampledToken { seq, token, logprobs });
                }
                (Found::PromptLogprobs(found), Some((last, list))) if *last == seq => {
                    list.push(found);
                }
                (Found::PromptLogprobs(found), _) => {
                    output.prompt_logprobs.push((seq, vec![found]));
                }
            }
        }
        Ok(())
    }
}

fn asks_history(batch: &Batch) -> bool {
    let mut specs = batch.chunks.iter().filter_map(|chunk| chunk.sample.as_ref());
    specs.any(|spec| spec.history.is_some())
}

/// What a row's logits were for.
enum Found {
    Token(TokenId, Vec<TokenLogprob>),
    PromptLogprobs(Vec<TokenLogprob>),
}

fn take(
    sampler: &mut Sampler,
    chunk: &Chunk,
    wanted: &Wanted,
    row: &[f32],
) -> Result<Found, SamplerError> {
    match (wanted.target, &chunk.prompt_logprobs, &chunk.sample) {
        (Some(target), Some(asked), _) => {
            let found = logprobs(row, asked.targets[target], asked.num_top as usize);
            Ok(Found::PromptLogprobs(found))
        }
        (_, _, Some(spec)) => {
            sampler.sample(row, spec).map(|(token, likely)| Found::Token(token, likely))
        }
        // `fill_wanted` wants a row for one of the two.
        (_, _, None) => Err(SamplerError),
    }
}
