//! One step on one rank: batch → inputs → forward pass → sampled tokens.
//!
//! Knows chunks and blocks, but neither requests nor queues. On the main path it comes after `kvcache/manager.rs`, which gave
//! the blocks out; `models/llama.rs` is next.

use std::fmt;
use std::ops::Range;

use stallfree_comm::Part;
use stallfree_core::{Batch, Chunk, PENDING_TOKEN, SampleSpec, SeqId, SeqMap, StepOutput, TokenId};
use stallfree_kernels::{Backend, MAX_BLOCK_IDS, RaggedSeq, SampleRows, StepInputs, chosen_at};
use stallfree_models::Model;
use stallfree_transfer::{KvPart, RankMemory};

use crate::submitted::{Purpose, Submitted};

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
    rows: SampleRows,
    /// The tokens of the batch before, or [`chosen_at`] their places: what [`PENDING_TOKEN`] stands for.
    newest: SeqMap<TokenId>,
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
        let rows = SampleRows::new(model.config().vocab_size);
        let (wanted, newest) = (Vec::new(), SeqMap::default());
        Self { backend, model, block_size, max_tokens, inputs, wanted, rows, newest }
    }

    /// Returns the backend.
    pub const fn backend(&self) -> &B {
        &self.backend
    }

    /// Returns the backend, to join it to others.
    pub(crate) const fn backend_mut(&mut self) -> &mut B {
        &mut self.backend
    }

    /// Returns the part of the model that it runs.
    pub fn part(&self) -> Part {
        self.model.part()
    }

    /// Returns how many tokens the model knows.
    pub fn vocab_size(&self) -> usize {
        self.model.config().vocab_size
    }

    /// Returns which part of the model's KV it holds.
    pub(crate) fn kv_part(&self) -> KvPart {
        let (config, part) = (self.model.config(), self.model.part());
        KvPart { layers: config.layers_of(part), heads: config.kv_heads_of(part.tensor) }
    }

    /// Returns the KV cache, where others can copy from it and into it.
    pub(crate) fn kv_memory(&self) -> Option<RankMemory> {
        Some(RankMemory { part: self.kv_part(), cache: self.backend.device_kv()? })
    }

    /// Runs one step.
    pub fn run(&mut self, batch: &Batch) -> StepOutput {
        self.submit(batch).wait()
    }

    /// Starts one step. On a device that runs beside the host it returns before the step is done, and the next one, whose tokens
    /// may be [`PENDING_TOKEN`], can be started at once.
    pub fn submit(&mut self, batch: &Batch) -> Submitted<B::Choice> {
        let mut submitted = Submitted::default();
        if self.end_of_pass(batch, 0) == batch.chunks.len() && !needs_known_tokens(batch) {
            self.run_pass(batch, 0..batch.chunks.len(), &mut submitted);
            self.newest.clear();
            self.newest.extend(submitted.drawn().map(|(seq, place)| (seq, chosen_at(place))));
            if submitted.is_empty() {
                submitted.add(Vec::new(), self.backend.end_step());
            }
            return submitted;
        }
        // Several passes would put their choices in one place.
        let batch = self.with_known_tokens(batch);
        let mut first = 0;
        while first < batch.chunks.len() {
            let end = self.end_of_pass(&batch, first);
            self.run_pass(&batch, first..end, &mut submitted);
            first = end;
        }
        let output = submitted.wait();
        self.newest.clear();
        self.newest.extend(output.tokens.iter().map(|sampled| (sampled.seq, sampled.token)));
        Submitted::known(output)
    }

    /// Puts in what is pending, once it is known.
    fn with_known_tokens(&mut self, batch: &Batch) -> Batch {
        let is_known = |token: &TokenId| *token >> 31 == 0;
        let all_known = self.newest.values().all(is_known);
        let chosen = if all_known { Vec::new() } else { self.backend.chosen() };
        let token_of = |seq: SeqId| match self.newest.get(&seq) {
            Some(token) if is_known(token) => *token,
            Some(token) => chosen.get((token & !(1 << 31)) as usize).copied().unwrap_or(0),
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
    pub fn prepare(&mut self, num_seqs: usize, progress: &dyn Fn(usize, usize)) {
        let sizes = self.backend.recorded_sizes(num_seqs);
        for (done, &num_seqs) in sizes.iter().enumerate() {
            progress(done, sizes.len());
            let seq = |row| RaggedSeq { rows: row..row + 1, context_len: 1, blocks: 0..1 };
            self.inputs = StepInputs {
                token_ids: vec![0; num_seqs],
                positions: vec![0; num_seqs],
                slot_mapping: vec![0; num_seqs],
                block_ids: vec![0],
                seqs: (0..num_seqs).map(seq).collect(),
            };
            let rows: Vec<u32> = (0..num_seqs as u32).collect();
            self.backend.begin_step(&self.inputs);
            let model = &self.model;
            self.backend.prepare(&|backend| {
                let hidden = model.hidden(backend);
                if model.part().stage.is_last() {
                    model.logits(backend, hidden, &rows)
                } else {
                    hidden
                }
            });
        }
        progress(sizes.len(), sizes.len());
    }

    /// Returns where the pass ends that begins with chunk `first`: after as many chunks as there is memory for, at least one.
    /// A prefix that is shared within a batch is written by the earlier chunk, so in an earlier pass or the same.
    fn end_of_pass(&self, batch: &Batch, first: usize) -> usize {
        first + chunks_of_pass(&batch.chunks[first..], self.max_tokens)
    }

    fn run_pass(
        &mut self,
        batch: &Batch,
        pass: Range<usize>,
        submitted: &mut Submitted<B::Choice>,
    ) {
        self.fill_inputs(batch, &batch.chunks[pass.clone()]);
        self.fill_wanted(batch, pass);
        self.backend.begin_step(&self.inputs);
        if !self.part().stage.is_last() {
            let model = &self.model;
            self.backend.record(&|backend| model.hidden(backend));
            return;
        }
        let mut rows: Vec<u32> = self.wanted.iter().map(|wanted| wanted.row).collect();
        let every_row = (0..self.inputs.token_ids.len() as u32).eq(rows.iter().copied());
        if every_row && rows.len() <= HEAD_ROWS {
            let model = &self.model;
            let logits = self.backend.record(&|backend| {
                let hidden = model.hidden(backend);
                model.logits(backend, hidden, &rows)
            });
            self.sample(batch, logits, 0..rows.len(), submitted);
            return;
        }
        let mut hidden = self.model.hidden(&mut self.backend);
        let mut done = 0;
        while !rows.is_empty() {
            let num_rows = rows.len().min(HEAD_ROWS);
            let logits = self.model.logits(&mut self.backend, hidden, &rows[..num_rows]);
            self.sample(batch, logits, done..done + num_rows, submitted);
            done += num_rows;
            if num_rows < rows.len() {
                // Logits are large: the next slice's take the memory of the one before the last.
                self.backend.begin_layer();
                hidden = self.backend.gather_rows(hidden, &rows[num_rows..]);
            }
            rows = (0..(rows.len() - num_rows) as u32).collect();
        }
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
            let newest = self.newest.get(&chunk.seq).copied().unwrap_or(0);
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

    /// Asks for what the logits of the wanted rows `slice` are for.
    fn sample(
        &mut self,
        batch: &Batch,
        logits: B::Tensor,
        slice: Range<usize>,
        submitted: &mut Submitted<B::Choice>,
    ) {
        self.rows.clear();
        let mut purposes = Vec::with_capacity(slice.len());
        for wanted in &self.wanted[slice] {
            let chunk = &batch.chunks[wanted.chunk];
            match (wanted.target, &chunk.prompt_logprobs, &chunk.sample) {
                (Some(target), Some(asked), _) => {
                    self.rows.push_target(asked.targets[target], asked.num_top);
                    purposes.push(Purpose::PromptLogprobs(chunk.seq));
                }
                (_, _, Some(spec)) => {
                    let newest = spec.history.as_ref().and_then(|_| self.newest.get(&chunk.seq));
                    self.rows.push_draw(spec, newest.copied().unwrap_or(PENDING_TOKEN));
                    purposes.push(Purpose::Token(chunk.seq));
                }
                // `fill_wanted` wants a row for one of the two.
                (_, _, None) => {}
            }
        }
        submitted.add(purposes, self.backend.sample(logits, &self.rows));
    }
}

/// Returns how many of `chunks` one pass takes.
fn chunks_of_pass(chunks: &[Chunk], max_tokens: usize) -> usize {
    let Some(first) = chunks.first() else { return 0 };
    let fits = |chunk: &&Chunk| {
        chunk.tokens.end - first.tokens.start <= max_tokens
            && chunk.blocks.end - first.blocks.start <= MAX_BLOCK_IDS
    };
    chunks.iter().take_while(fits).count().max(1)
}

/// Returns whether the host has to know the tokens of the batch before.
fn needs_known_tokens(batch: &Batch) -> bool {
    let ends_pending = |spec: &SampleSpec| {
        let tokens = spec.history.as_ref().map(|history| &history.tokens);
        tokens.is_some_and(|tokens| tokens.last() == Some(&PENDING_TOKEN))
    };
    let num_wanted = |chunk: &Chunk| {
        let targets = chunk.prompt_logprobs.as_ref().map_or(0, |asked| asked.targets.len());
        targets + usize::from(chunk.sample.is_some())
    };
    // A device puts pending tokens into the first choice of a step only, and knows nothing of words.
    let one_choice = batch.chunks.iter().map(num_wanted).sum::<usize>() <= HEAD_ROWS;
    let by_device =
        |spec: &SampleSpec| one_choice && spec.params.bad_words.iter().all(|word| word.len() == 1);
    let mut specs = batch.chunks.iter().filter_map(|chunk| chunk.sample.as_ref());
    specs.any(|spec| ends_pending(spec) && !by_device(spec))
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use stallfree_core::{Chunk, SeqId};
    use stallfree_kernels::MAX_BLOCK_IDS;

    use super::chunks_of_pass;

    #[test]
    fn a_pass_ends_where_memory_does() {
        let check = |max_tokens: usize, each: [usize; 2], first: usize, expected: usize| {
            let range = |seq: usize, len: usize| -> Range<usize> { seq * len..(seq + 1) * len };
            let chunk = |seq: usize| Chunk {
                seq: SeqId(seq as u64),
                num_computed_tokens: 0,
                tokens: range(seq, each[0]),
                blocks: range(seq, each[1]),
                sample: None,
                prompt_logprobs: None,
            };
            let chunks: Vec<_> = (0..1024).map(chunk).collect();
            assert_eq!(chunks_of_pass(&chunks[first..], max_tokens), expected, "{each:?}");
        };
        check(2048, [1, 10], 0, 1024);
        check(100, [1, 10], 0, 100);
        check(100, [1, 10], 1000, 24);
        check(100, [101, 10], 1000, 1);
        // Block tables of 131,072 tokens, in blocks of 16 and of 1.
        check(2048, [1, 8192], 0, 512);
        check(2048, [1, 8192], 700, 324);
        check(2048, [1, 131_072], 5, 32);
        check(2048, [1, MAX_BLOCK_IDS + 1], 0, 1);
    }
}
