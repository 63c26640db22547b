//! An executor that computes nothing useful, but strictly.

mod network;
mod pace;

use std::collections::{HashSet, VecDeque};
use std::task::Waker;
use std::time::Duration;

use stallfree_core::{
    Batch, BatchId, BlockId, Chunk, Executor, ExecutorError, History, InstanceId, KvFetch,
    KvGeometry, LeaseBook, PENDING_TOKEN, SampledToken, SeqId, StepOutput, Time, TokenId,
};

use crate::{Language, VOCAB_SIZE};
use network::Kv;
pub use network::MockNetwork;
pub use pace::Pace;
use pace::Timer;

/// How a mock executor behaves.
#[derive(Clone, Copy, Debug)]
pub struct MockConfig {
    /// The shape of its cache.
    pub kv: KvGeometry,
    /// How many batches it takes at once.
    pub max_in_flight: usize,
    /// How a batch's time passes.
    pub pace: Pace,
    /// How long a batch takes at least.
    pub step_time: Duration,
    /// How long each of its tokens takes on top.
    pub token_time: Duration,
    /// How long fetching KV from another takes.
    pub fetch_time: Duration,
    /// Of how many fetches one fails when it ends, if any do.
    pub failing_fetch: Option<u64>,
    /// What goes wrong, if anything.
    pub fault: Option<Fault>,
}

/// What goes wrong, and at which batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Collecting the batch's output fails.
    Fails(BatchId),
    /// The batch never completes.
    Hangs(BatchId),
    /// Submitting the batch panics.
    Panics(BatchId),
    /// The sequence's logits are no numbers.
    Unsound(SeqId),
}

impl Default for MockConfig {
    fn default() -> Self {
        Self {
            kv: KvGeometry { num_blocks: 1024, block_size: 16 },
            max_in_flight: 1,
            pace: Pace::Virtual,
            step_time: Duration::from_millis(5),
            token_time: Duration::from_micros(10),
            fetch_time: Duration::from_millis(7),
            failing_fetch: None,
            fault: None,
        }
    }
}

/// Continues sequences in the mock [`Language`], reading and writing its simulated KV cache only as batches tell it to.
///
/// It checks what executors may rely on: blocks suffice, no slot is written twice in a batch, only computed KV is read, and no more
/// batches come than it takes.
#[derive(Debug)]
pub struct MockExecutor {
    config: MockConfig,
    kv: Kv,
    /// Whose caches it can fetch from.
    network: MockNetwork,
    fetches: VecDeque<Fetching>,
    num_fetched: u64,
    in_flight: VecDeque<InFlight>,
    /// When the device is done with all batches, in virtual time.
    busy_until: Time,
    timer: Option<Timer>,
}

#[derive(Debug)]
struct Fetching {
    fetch: KvFetch,
    ready_at: Time,
}

#[derive(Debug)]
struct InFlight {
    id: BatchId,
    ready_at: Time,
    output: StepOutput,
}

impl MockExecutor {
    /// Makes an executor with an empty cache.
    #[must_use]
    pub fn new(config: MockConfig) -> Self {
        let timer = (config.pace == Pace::Real).then(Timer::start);
        let kv = Kv::new(config.kv);
        let (fetches, in_flight) = (VecDeque::new(), VecDeque::new());
        let network = MockNetwork::default();
        Self {
            config,
            kv,
            network,
            fetches,
            num_fetched: 0,
            in_flight,
            busy_until: Time::ZERO,
            timer,
        }
    }

    /// Makes one whose cache others on the network can fetch from, as instance `instance`, under the leases of its engine.
    #[must_use]
    pub fn on(
        network: &MockNetwork,
        instance: InstanceId,
        leases: LeaseBook,
        config: MockConfig,
    ) -> Self {
        let executor = Self { network: network.clone(), ..Self::new(config) };
        network.add(instance, leases, executor.kv.clone());
        executor
    }

    /// Makes one for `Engine::new`.
    #[must_use]
    pub fn boxed(config: MockConfig) -> Box<dyn Executor> {
        Box::new(Self::new(config))
    }

    fn compute(&self, batch: &Batch) -> StepOutput {
        self.check(batch);
        // A chunk may share a block that an earlier one of the same batch fills; so all is written before any is read.
        batch.chunks.iter().for_each(|chunk| self.write(batch, chunk));
        let mut output = StepOutput { device_time: self.predict(batch), ..StepOutput::default() };
        for chunk in &batch.chunks {
            let kv = self.read(batch, chunk, chunk.context_len());
            if let Some(wanted) = &chunk.prompt_logprobs {
                let lists = wanted.targets.iter().enumerate().map(|(i, &target)| {
                    let context =
                        Language::of_all(kv[..=chunk.num_computed_tokens + i].iter().copied());
                    context.logprobs(target, wanted.num_top)
                });
                output.prompt_logprobs.push((chunk.seq, lists.collect()));
            }
            if self.config.fault == Some(Fault::Unsound(chunk.seq)) {
                output.unsound.push(chunk.seq);
                continue;
            }
            if let Some(spec) = &chunk.sample {
                if let Some(history) = &spec.history {
                    check_history(&name(batch, chunk), history, &kv);
                }
                let context = Language::of_all(kv);
                let token = context.next(&spec.params, spec.num_output_tokens, &spec.banned);
                let logprobs = spec.params.logprobs.map(|top| context.logprobs(token, top));
                let logprobs = logprobs.unwrap_or_default();
                output.tokens.push(SampledToken { seq: chunk.seq, token, logprobs });
            }
        }
        output
    }

    /// Writes a chunk's KV, which follows from that of the token before it.
    fn write(&self, batch: &Batch, chunk: &Chunk) {
        let blocks = batch.blocks_of(chunk);
        let before = self.read(batch, chunk, chunk.num_computed_tokens);
        let mut kv = before.last().copied().unwrap_or_default();
        for (i, &token) in batch.tokens_of(chunk).iter().enumerate() {
            let is_pending = token == PENDING_TOKEN;
            kv = kv.of(if is_pending { self.pending(batch, chunk.seq) } else { token });
            let slot = self.slot(blocks, chunk.num_computed_tokens + i);
            self.kv.set(slot, kv);
        }
    }

    /// Writes what a fetch brings.
    fn write_fetched(&self, fetch: &KvFetch) -> Result<(), String> {
        let block_size = self.config.kv.block_size;
        let values = self.network.read(fetch, block_size)?;
        for (block, values) in fetch.blocks.iter().zip(values.chunks(block_size)) {
            for (i, value) in values.iter().enumerate() {
                self.kv.put(block.0 as usize * block_size + i, *value);
            }
        }
        Ok(())
    }

    /// Reads the KV of a sequence's first tokens.
    fn read(&self, batch: &Batch, chunk: &Chunk, num_tokens: usize) -> Vec<Language> {
        let blocks = batch.blocks_of(chunk);
        let at = |position| {
            self.kv.get(self.slot(blocks, position)).unwrap_or_else(|| {
                panic!("{}: position {position} was never computed", name(batch, chunk))
            })
        };
        (0..num_tokens).map(at).collect()
    }

    /// Returns the token that a batch in flight has sampled for a sequence.
    fn pending(&self, batch: &Batch, seq: SeqId) -> TokenId {
        if self.config.fault == Some(Fault::Unsound(seq)) {
            // As on a device, which goes on with anything: nobody wants it any more.
            return 0;
        }
        let tokens = self.in_flight.iter().rev().flat_map(|batch| &batch.output.tokens);
        let mut sampled = tokens.filter(|sampled| sampled.seq == seq);
        let Some(sampled) = sampled.next() else {
            panic!("batch {}: nothing in flight samples for sequence {seq}", batch.id)
        };
        sampled.token
    }

    fn slot(&self, blocks: &[BlockId], position: usize) -> usize {
        let block_size = self.config.kv.block_size;
        blocks[position / block_size].0 as usize * block_size + position % block_size
    }

    fn check(&self, batch: &Batch) {
        assert!(self.in_flight.len() < self.config.max_in_flight, "batch {} too many", batch.id);
        assert!(!batch.chunks.is_empty(), "batch {} is empty", batch.id);
        let (mut seqs, mut slots) = (HashSet::new(), HashSet::new());
        for chunk in &batch.chunks {
            let name = name(batch, chunk);
            let blocks = batch.blocks_of(chunk);
            assert!(seqs.insert(chunk.seq), "{name}: twice");
            assert!(!chunk.tokens.is_empty(), "{name}: no tokens");
            let needed = chunk.context_len().div_ceil(self.config.kv.block_size);
            assert!(blocks.len() >= needed, "{name}: {} blocks, not {needed}", blocks.len());
            let exists = |block: &BlockId| (block.0 as usize) < self.config.kv.num_blocks;
            assert!(blocks.iter().all(exists), "{name}: no such block in {blocks:?}");
            for position in chunk.num_computed_tokens..chunk.context_len() {
                let slot = self.slot(blocks, position);
                assert!(slots.insert(slot), "{name}: slot {slot} is written twice");
            }
        }
    }
}

/// Checks that a history is the text whose KV is in the cache.
fn check_history(name: &str, history: &History, kv: &[Language]) {
    let History { tokens, prompt_len } = history;
    assert_eq!(tokens.len(), kv.len(), "{name}: history");
    assert!((1..=tokens.len()).contains(prompt_len), "{name}: history");
    if tokens.last() != Some(&PENDING_TOKEN) {
        let text = tokens.iter().fold(Language::default(), |text, &token| text.of(token));
        assert_eq!(Some(&text), kv.last(), "{name}: history");
    }
}

fn name(batch: &Batch, chunk: &Chunk) -> String {
    format!("batch {}, sequence {}", batch.id, chunk.seq)
}

impl Executor for MockExecutor {
    fn kv_geometry(&self) -> KvGeometry {
        self.config.kv
    }

    fn max_in_flight(&self) -> usize {
        self.config.max_in_flight
    }

    fn submit(&mut self, batch: Batch, now: Time) {
        assert_ne!(self.config.fault, Some(Fault::Panics(batch.id)), "as the test asked");
        let output = self.compute(&batch);
        let ready_at = self.busy_until.max(now) + output.device_time;
        self.busy_until = ready_at;
        if let Some(timer) = &self.timer {
            timer.start_batch(output.device_time);
        }
        self.in_flight.push_back(InFlight { id: batch.id, ready_at, output });
    }

    fn collect(&mut self, now: Time) -> Result<Option<StepOutput>, ExecutorError> {
        let Some(oldest) = self.in_flight.front() else { return Ok(None) };
        let is_ready = match &self.timer {
            Some(timer) => timer.num_done() > oldest.id.0,
            None => oldest.ready_at <= now,
        };
        if !is_ready || self.config.fault == Some(Fault::Hangs(oldest.id)) {
            return Ok(None);
        }
        if self.config.fault == Some(Fault::Fails(oldest.id)) {
            let reason = "as the test asked".to_owned();
            return Err(ExecutorError { batch: oldest.id, reason });
        }
        Ok(self.in_flight.pop_front().map(|batch| batch.output))
    }

    fn fetch(&mut self, fetch: KvFetch, now: Time) -> Result<(), String> {
        let ready_at = now + self.config.fetch_time;
        self.network.read(&fetch, self.config.kv.block_size)?;
        self.fetches.push_back(Fetching { fetch, ready_at });
        Ok(())
    }

    fn fetched(&mut self, now: Time) -> Vec<(SeqId, Result<(), String>)> {
        let mut ended = Vec::new();
        let is_done = |oldest: &mut Fetching| oldest.ready_at <= now;
        while let Some(Fetching { fetch, .. }) = self.fetches.pop_front_if(is_done) {
            self.num_fetched += 1;
            let number = self.num_fetched;
            let fails = self.config.failing_fetch.is_some_and(|of| number.is_multiple_of(of));
            // The lease has to last to the end: what lies there by then is what a copy beside the steps brings.
            let written = self.write_fetched(&fetch);
            let failed = fails.then(|| Err("as the test asked".to_owned()));
            ended.push((fetch.seq, failed.unwrap_or(written)));
        }
        ended
    }

    fn ready_at(&self) -> Option<Time> {
        if self.config.pace == Pace::Real {
            return None;
        }
        let batch = self.in_flight.front().map(|oldest| oldest.ready_at);
        let fetch = self.fetches.front().map(|oldest| oldest.ready_at);
        batch.into_iter().chain(fetch).min()
    }

    fn set_waker(&mut self, waker: Waker) {
        if let Some(timer) = &self.timer {
            timer.set_waker(waker);
        }
    }

    fn predict(&self, batch: &Batch) -> Duration {
        self.config.step_time + self.config.token_time * batch.num_tokens() as u32
    }

    fn vocab_size(&self) -> Option<usize> {
        Some(VOCAB_SIZE as usize)
    }
}
