//! The device that isn't there.

use std::collections::VecDeque;
use std::task::Waker;
use std::time::Duration;

use stallfree_core::{
    Batch, Chunk, Executor, ExecutorError, InstanceId, KvFetch, KvGeometry, PENDING_TOKEN,
    Parallel, SampledToken, SeqId, StepOutput, Time, TokenId, TokenLogprob,
};

use crate::pipeline::Pipeline;
use crate::{CostModel, Error, Factors, Gpu, KvRoom, ModelShape, SimNetwork, StepLoad, memory};

/// What to simulate.
#[derive(Clone, Debug, PartialEq)]
pub struct SimConfig {
    /// The GPUs.
    pub gpu: Gpu,
    /// How much of their data sheet they reach.
    pub factors: Factors,
    /// The model.
    pub shape: ModelShape,
    /// Over how many GPUs it is spread.
    pub parallel: Parallel,
    /// Tokens a block.
    pub block_size: usize,
    /// How much KV cache to take.
    pub kv: KvRoom,
}

/// An executor that predicts how long batches take, and draws tokens that mean nothing.
///
/// The tokens are lowercase letters where tokens are bytes. Draw `i` of a sequence depends on its seed and `i` alone, so a run
/// is repeatable. Of the sampling settings only the seed and the allowed and banned tokens count. No sequence ends by itself: the
/// model's stop tokens are no letters.
#[derive(Debug)]
pub struct SimExecutor {
    geometry: KvGeometry,
    cost: CostModel,
    pipeline: Pipeline,
    vocab_size: TokenId,
    weight_bytes: f64,
    kv_bytes: f64,
    in_flight: VecDeque<InFlight>,
    gpu: Gpu,
    /// Bytes of a block on each GPU.
    block_bytes: f64,
    /// The others, and which of all this is.
    network: Option<(SimNetwork, InstanceId)>,
    /// What is being fetched, and when each is there.
    fetches: VecDeque<(SeqId, Time)>,
    /// How long each stage takes for the newest batch.
    stage_times: Vec<Duration>,
}

#[derive(Debug)]
struct InFlight {
    ready_at: Time,
    output: StepOutput,
}

impl SimExecutor {
    /// Makes a device with the model in its memory.
    ///
    /// # Errors
    /// The model doesn't fit into it, or can't be split as asked.
    pub fn new(config: &SimConfig) -> Result<Self, Error> {
        let SimConfig { gpu, factors, shape, parallel, block_size, kv } = config;
        let cost = CostModel::new(shape, *parallel, gpu, *factors)?;
        let geometry = memory::geometry(shape, *parallel, gpu, *kv, *block_size)?;
        let block_bytes = memory::block_bytes(shape, *parallel, *block_size);
        Ok(Self {
            geometry,
            pipeline: Pipeline::new(cost.num_stages()),
            cost,
            vocab_size: TokenId::try_from(shape.vocab_size).unwrap_or(TokenId::MAX),
            weight_bytes: memory::weight_bytes(shape, *parallel),
            kv_bytes: geometry.num_blocks as f64 * block_bytes,
            in_flight: VecDeque::new(),
            gpu: gpu.clone(),
            block_bytes,
            network: None,
            fetches: VecDeque::new(),
            stage_times: Vec::new(),
        })
    }

    /// Makes the device one of several that fetch from each other. `first_gpu` is the first of its GPUs, counted over all of them.
    pub fn join(&mut self, network: &SimNetwork, instance: InstanceId, first_gpu: usize) {
        network.join(instance, first_gpu..first_gpu + self.cost.parallel().world_size());
        self.network = Some((network.clone(), instance));
    }

    /// Returns the bytes of weights on the fullest GPU.
    #[must_use]
    pub const fn weight_bytes(&self) -> u64 {
        self.weight_bytes as u64
    }

    /// Returns the bytes of KV cache on the fullest GPU.
    #[must_use]
    pub const fn kv_bytes(&self) -> u64 {
        self.kv_bytes as u64
    }

    fn load(&self, batch: &Batch) -> StepLoad {
        StepLoad::of(batch, self.cost.shape().window)
    }

    fn sample(&self, chunk: &Chunk) -> Option<SampledToken> {
        let spec = chunk.sample.as_ref()?;
        let draw = mix(spec.params.seed ^ (spec.num_output_tokens as u64) << 32);
        let token = self.choose(draw, &spec.params.allowed_token_ids, &spec.banned);
        let logprobs =
            spec.params.logprobs.map_or_else(Vec::new, |num_top| self.logprobs(token, num_top));
        Some(SampledToken { seq: chunk.seq, token, logprobs })
    }

    /// Chooses a letter, or one of the `allowed` tokens if there are any; not a banned one while there is another.
    fn choose(&self, draw: u64, allowed: &[TokenId], banned: &[TokenId]) -> TokenId {
        // Few enough that they are letters, too, where a handful of control tokens come before the bytes.
        const LETTERS: std::ops::Range<TokenId> = 'd' as TokenId..'z' as TokenId + 1;
        let pick = |count: usize| (draw % count.max(1) as u64) as usize;
        let free = |token: &TokenId| !banned.contains(token);
        if let Some(&token) = allowed.get(pick(allowed.len())) {
            let other = || allowed.iter().copied().find(free);
            return if free(&token) { token } else { other().unwrap_or(token) };
        }
        let letters = if self.vocab_size > LETTERS.end { LETTERS } else { 0..self.vocab_size };
        let token = letters.start + pick(letters.len()) as TokenId;
        if free(&token) { token } else { (0..self.vocab_size).find(free).unwrap_or(token) }
    }

    /// Says that every token was as likely as any other.
    fn logprobs(&self, token: TokenId, num_top: u32) -> Vec<TokenLogprob> {
        let logprob = -(self.vocab_size.max(1) as f32).ln();
        let tokens = std::iter::once(token).chain(0..num_top.min(self.vocab_size));
        tokens.map(|token| TokenLogprob { token, logprob, rank: 1 }).collect()
    }

    fn compute(&self, batch: &Batch) -> StepOutput {
        let tokens = batch.chunks.iter().filter_map(|chunk| self.sample(chunk)).collect();
        let mut prompt_logprobs = Vec::new();
        for chunk in &batch.chunks {
            if let Some(wanted) = &chunk.prompt_logprobs {
                let of = |&target: &TokenId| self.logprobs(target, wanted.num_top);
                prompt_logprobs.push((chunk.seq, wanted.targets.iter().map(of).collect()));
            }
        }
        StepOutput { tokens, prompt_logprobs, ..StepOutput::default() }
    }
}

/// SplitMix64: Steele et al., Fast Splittable Pseudorandom Number Generators, OOPSLA 2014.
const fn mix(state: u64) -> u64 {
    let mixed = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

impl Executor for SimExecutor {
    fn kv_geometry(&self) -> KvGeometry {
        self.geometry
    }

    /// One batch a stage. A further one would only wait before the first stage, and what it holds for longer with it: planning
    /// takes no virtual time that it could hide.
    fn max_in_flight(&self) -> usize {
        self.cost.num_stages()
    }

    fn submit(&mut self, batch: Batch, now: Time) {
        let load = self.load(&batch);
        let mut stage_times = std::mem::take(&mut self.stage_times);
        self.cost.stages(&load, &mut stage_times);
        // A token that is still to be sampled comes out of the last stage.
        let known = self.in_flight.back().filter(|_| batch.token_ids.contains(&PENDING_TOKEN));
        let from = known.map_or(now, |before| now.max(before.ready_at));
        let (entered, ready_at) = self.pipeline.pass(from, &stage_times);
        self.stage_times = stage_times;
        let output = StepOutput { device_time: ready_at - entered, ..self.compute(&batch) };
        self.in_flight.push_back(InFlight { ready_at, output });
    }

    fn collect(&mut self, now: Time) -> Result<Option<StepOutput>, ExecutorError> {
        let is_ready = self.in_flight.front().is_some_and(|oldest| oldest.ready_at <= now);
        Ok(if is_ready { self.in_flight.pop_front().map(|oldest| oldest.output) } else { None })
    }

    /// Over the network's links, beside the batches.
    fn fetch(&mut self, fetch: KvFetch, now: Time) -> Result<(), String> {
        let (network, own) = self.network.as_ref().ok_or("this device has no others beside it")?;
        let bytes = fetch.blocks.len() as f64 * self.block_bytes;
        let there = network.fetch(&self.gpu, (fetch.lease.instance, *own), bytes, now)?;
        // Each begins after the one before it, so they are in order.
        self.fetches.push_back((fetch.seq, there));
        Ok(())
    }

    fn fetched(&mut self, now: Time) -> Vec<(SeqId, Result<(), String>)> {
        let count = self.fetches.iter().take_while(|&&(_, at)| at <= now).count();
        self.fetches.drain(..count).map(|(seq, _)| (seq, Ok(()))).collect()
    }

    fn ready_at(&self) -> Option<Time> {
        let batch = self.in_flight.front().map(|oldest| oldest.ready_at);
        let fetch = self.fetches.front().map(|&(_, at)| at);
        batch.into_iter().chain(fetch).min()
    }

    /// Nobody need be woken: it is always known when the next output is ready.
    fn set_waker(&mut self, _waker: Waker) {}

    fn predict(&self, batch: &Batch) -> Duration {
        Duration::from_secs_f64(self.cost.step_s(&self.load(batch)).clamp(0.0, 1e6))
    }
}
