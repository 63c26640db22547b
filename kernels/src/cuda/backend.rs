//! The op vocabulary on a CUDA GPU.
//!
//! Every op submits to one queue and returns at once; only [`Backend::read`] waits. A CUDA error is fatal for the rank, so ops
//! have no error to return: they panic, and the executor's thread turns that into the loss of the engine.

mod joining;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use stallfree_device::{
    CubinCache, Device, DeviceArena, DeviceSlice, Dtype, Stream, begin_capture, end_capture,
};

use super::activations::{ActivationBytes, Activations, CudaTensor};
use super::choice::{Chosen, CudaChoice};
use super::exchange::{Exchange, column_share};
use super::kv_block::KvBlock;
use super::must;
use super::peers::Then;
use super::recordings::{Recording, Recordings, padded_seqs, sizes};
use super::step::{Padding, Staging, Step, input_bytes, tiles};
use super::upload::WeightUpload;
use super::{
    CudaError, CudaKv, CudaKvHost, Epilogue, Gather, HeadShape, KvLayer, Operands,
    PagedAttentionDecode, PagedAttentionPrefill, ProductShape, Products, QkNorms, RmsNorm,
    RopeKvWrite, Sample, SampleOperands, SamplePart, SiluMul, Toolchain,
};
use crate::{
    AttentionSpec, Backend, KernelError, KvSpec, QkNorm, SampleRows, StepInputs, WeightTensor,
};

/// Bytes of scratch memory for products: parts of split sums.
const WORKSPACE_BYTES: usize = 36 << 20;
/// Bytes of the counters by which the parts of a split attention find out who is last.
const COUNTER_BYTES: usize = 1 << 20;

/// How to run on a GPU.
#[derive(Clone, Debug)]
pub struct CudaConfig {
    /// Which GPU.
    pub ordinal: usize,
    /// The element type of weights, activations and KV cache: bf16 or f16.
    pub dtype: Dtype,
    /// Where compiled kernels are kept.
    pub kernel_cache: PathBuf,
    /// Keeps to Ampere's instructions, whatever the GPU.
    pub ampere_path: bool,
    /// Bytes of weights to make room for.
    pub weight_bytes: usize,
    /// The most tokens of a step.
    pub max_tokens: usize,
    /// Bytes of activations.
    pub activation_bytes: ActivationBytes,
    /// Whether steps of single tokens are recorded as graphs.
    pub records: bool,
}

/// A CUDA GPU as a device that models run on.
#[derive(Debug)]
pub struct CudaBackend {
    config: CudaConfig,
    tools: Toolchain,
    stream: Stream,
    weights: DeviceArena,
    /// While weights are loaded.
    weight_upload: Option<WeightUpload>,
    activations: Activations,
    inputs: DeviceSlice,
    counters: DeviceSlice,
    cache: Option<Cache>,
    staging: Staging,
    step: Option<Step>,
    products: Products,
    gather: Gather,
    silu_mul: SiluMul,
    sample: Sample,
    /// Where settings of rows of logits are copied to, what is found in them, and what the step before chose.
    sampling: [DeviceSlice; 3],
    norms: HashMap<usize, RmsNorm>,
    attention: HashMap<HeadShape, Attention>,
    /// This step's tiles of chunks, and for which heads.
    tiles: Option<(HeadShape, DeviceSlice, usize)>,
    /// How this step's attention of single tokens is shared out, for heads of a shape that see so far.
    plans: HashMap<(HeadShape, Option<usize>), DeviceSlice>,
    /// The rope whose table holds this step's angles.
    angles_of: Option<DeviceSlice>,
    host: Vec<f32>,
    recordings: Recordings,
    chosen: Chosen,
    /// To the other ranks, once it is joined to them. After the recordings, which name it, and so dropped after them.
    exchange: Option<Exchange>,
    _working: DeviceArena,
}

#[derive(Debug)]
struct Attention {
    write: RopeKvWrite,
    decode: PagedAttentionDecode,
    prefill: PagedAttentionPrefill,
}

/// Blocks one after the other, all layers of a block together.
#[derive(Debug)]
struct Cache {
    arena: Arc<DeviceArena>,
    all: DeviceSlice,
    spec: KvSpec,
}

/// A loaded matrix `[rows, cols]`.
#[derive(Clone, Copy, Debug)]
pub struct CudaMatrix {
    data: DeviceSlice,
    rows: usize,
    cols: usize,
}

/// A loaded vector.
#[derive(Clone, Copy, Debug)]
pub struct CudaVector(DeviceSlice);

/// Loaded rotary frequencies, and room for a step's angles.
#[derive(Clone, Copy, Debug)]
pub struct CudaRope {
    inv_freq: DeviceSlice,
    table: DeviceSlice,
}

fn no_memory(what: &str, bytes: usize, error: &impl std::fmt::Display) -> KernelError {
    let hint = format!("free some of the GPU's memory or take a smaller model ({error})");
    KernelError::OutOfMemory { what: what.to_owned(), bytes, hint }
}

impl CudaBackend {
    /// Opens the GPU and takes the memory of weights and activations.
    ///
    /// # Errors
    /// No driver, library or GPU, or too little memory.
    pub fn new(config: CudaConfig) -> Result<Self, CudaError> {
        let device = Device::open(config.ordinal)?;
        let cache = CubinCache::new(&config.kernel_cache);
        let tools = Toolchain {
            device: Arc::clone(&device),
            cache,
            ampere_path: config.ampere_path,
            dtype: config.dtype,
        };
        let stream = Stream::new(&device)?;
        let weights = DeviceArena::new(&device, config.weight_bytes)?;
        let chosen_bytes = config.max_tokens.max(1024) * 4;
        let sampling_bytes = Sample::ROOM_BYTES + Sample::FOUND_BYTES + chosen_bytes;
        let input_bytes = input_bytes(config.max_tokens);
        let fixed =
            input_bytes + WORKSPACE_BYTES + COUNTER_BYTES + chosen_bytes + sampling_bytes + 4096;
        let all = config.activation_bytes.total() + fixed;
        let mut working = DeviceArena::new(&device, all)?;
        let activations = Activations::new(&mut working, config.activation_bytes)?;
        let inputs = working.take("a step's inputs", input_bytes)?;
        let counters = working.take("counters", COUNTER_BYTES)?;
        stream.fill(counters, 0)?;
        let chosen = Chosen::new(working.take("choices", chosen_bytes)?);
        let sampling = [
            working.take("sampling settings", Sample::ROOM_BYTES)?,
            working.take("sampling results", Sample::FOUND_BYTES)?,
            working.take("choices before", chosen_bytes)?,
        ];
        let staging = Staging::new(&device)?;
        let products = Products::new(&tools, &stream, working.take("products", WORKSPACE_BYTES)?)?;
        Ok(Self {
            gather: Gather::load(&tools)?,
            silu_mul: SiluMul::load(&tools)?,
            sample: Sample::load(&tools)?,
            sampling,
            config,
            tools,
            stream,
            weights,
            weight_upload: None,
            activations,
            inputs,
            counters,
            cache: None,
            staging,
            step: None,
            products,
            norms: HashMap::new(),
            attention: HashMap::new(),
            tiles: None,
            plans: HashMap::new(),
            angles_of: None,
            host: Vec::new(),
            recordings: Recordings::default(),
            chosen,
            exchange: None,
            _working: working,
        })
    }

    /// Returns the GPU.
    #[must_use]
    pub const fn device(&self) -> &Arc<Device> {
        &self.tools.device
    }

    /// Returns what joins it to the ranks that share its layers, if there are others.
    fn sharers(&self) -> Option<&Exchange> {
        self.exchange.as_ref().filter(|exchange| exchange.num_ranks() > 1)
    }

    /// Submits a sum over ranks; before it is joined to any, nothing follows.
    fn all_reduce_then(&self, x: CudaTensor, then: Then) {
        if let Some(exchange) = &self.exchange {
            must(exchange.all_reduce(&self.stream, x, then));
        }
    }

    /// Returns the GPU's free memory and all of it, in bytes.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn memory(&self) -> Result<(usize, usize), CudaError> {
        Ok(self.tools.device.memory()?)
    }

    /// Returns the GPU's name.
    #[must_use]
    pub fn device_name(&self) -> String {
        self.tools.device.props().name.clone()
    }

    /// Returns how many bytes the KV cache takes.
    #[must_use]
    pub fn kv_bytes(&self) -> usize {
        self.cache.as_ref().map_or(0, |cache| cache.arena.used())
    }

    /// Returns how many bytes the activations may take.
    #[must_use]
    pub const fn activation_bytes(&self) -> usize {
        self.config.activation_bytes.total()
    }

    fn step(&self) -> Step {
        must(self.step.ok_or("an op before the step began"))
    }

    fn take(&mut self, rows: usize, cols: usize) -> CudaTensor {
        must(self.activations.take(rows, cols, self.config.dtype))
    }

    fn upload_weights<T: bytemuck::NoUninit>(
        &mut self,
        what: &str,
        values: &[T],
    ) -> Result<DeviceSlice, KernelError> {
        let bytes = size_of_val(values);
        let slice = self.weights.take(what, bytes).map_err(|e| no_memory(what, bytes, &e))?;
        self.stream.upload(slice, values).map_err(|e| no_memory(what, bytes, &e))?;
        Ok(slice)
    }

    fn load_parts(&mut self, parts: &[WeightTensor<'_>]) -> Result<DeviceSlice, KernelError> {
        let what = parts.first().map_or("a weight", |part| part.name);
        let lens = parts.iter().map(|part| part.shape.iter().product::<usize>() * 2);
        let bytes = lens.clone().sum();
        let slice = self.weights.take(what, bytes).map_err(|e| no_memory(what, bytes, &e))?;
        if self.weight_upload.is_none() {
            let upload = WeightUpload::new(&self.tools.device);
            self.weight_upload = Some(upload.map_err(|e| no_memory(what, bytes, &e))?);
        }
        let mut first = 0;
        for (part, len) in parts.iter().zip(lens) {
            if let Some(upload) = &mut self.weight_upload {
                upload.run(&self.stream, slice.slice(first, len), part, self.config.dtype)?;
            }
            first += len;
        }
        Ok(slice)
    }

    fn norm(
        &mut self,
        x: CudaTensor,
        residual: Option<CudaTensor>,
        weight: &CudaVector,
        eps: f32,
    ) -> CudaTensor {
        let out = self.take(x.rows, x.cols);
        if !self.norms.contains_key(&x.cols) {
            self.norms.insert(x.cols, must(RmsNorm::load(&self.tools, x.cols)));
        }
        let residual = residual.map(|residual| residual.data);
        let kernel = &self.norms[&x.cols];
        must(kernel.run(&self.stream, [x.data, weight.0, out.data], residual, x.rows, eps));
        out
    }

    fn heads(&mut self, spec: &AttentionSpec) -> HeadShape {
        let block_size = self.cache.as_ref().map_or(0, |cache| cache.spec.block_size);
        let AttentionSpec { num_heads, num_kv_heads, head_dim, .. } = *spec;
        let heads = HeadShape { num_heads, num_kv_heads, head_dim, block_size };
        if !self.attention.contains_key(&heads) {
            let kernels = Attention {
                write: must(RopeKvWrite::load(&self.tools, heads)),
                decode: must(PagedAttentionDecode::load(&self.tools, heads)),
                prefill: must(PagedAttentionPrefill::load(&self.tools, heads)),
            };
            self.attention.insert(heads, kernels);
        }
        heads
    }

    fn kv_layer(&self, layer: usize, heads: HeadShape) -> KvLayer {
        let cache = must(self.cache.as_ref().ok_or("an op before the KV cache was taken"));
        let from = layer * heads.layer_block_len() * 2;
        let block_stride = heads.layer_block_len() * cache.spec.num_layers;
        KvLayer { data: cache.all.slice(from, cache.all.len()), block_stride }
    }

    /// Returns what copies blocks, once the steps before are done.
    fn host_kv(&self) -> CudaKvHost {
        must(self.tools.device.bind());
        must(self.stream.synchronize());
        let cache = must(self.device_kv().ok_or("blocks are copied before the KV cache was taken"));
        must(CudaKvHost::new(cache))
    }

    /// Steps of single tokens are filled up to a number for which they are recorded.
    fn padding(&self, inputs: &StepInputs) -> Padding {
        let num_rows = inputs.token_ids.len();
        let only_singles = num_rows == inputs.seqs.len();
        let to = if only_singles { padded_seqs(num_rows) } else { num_rows };
        let block = self.cache.as_ref().map_or(0, |cache| cache.spec.num_blocks);
        let slot = self.cache.as_ref().map_or(0, |cache| block * cache.spec.block_size);
        Padding { rows: to - num_rows, block, slot }
    }

    /// Returns how many sequences a step of single tokens has.
    fn num_singles(&self) -> Option<usize> {
        let batch = self.step().singles()?;
        self.staging.chunks.is_empty().then_some(batch.num_seqs)
    }

    fn capture(&mut self, num_seqs: usize, ops: &dyn Fn(&mut Self) -> CudaTensor) {
        must(begin_capture(&self.stream));
        let result = ops(self);
        let graph = must(end_capture(&self.stream));
        let activations = self.activations.clone();
        self.recordings.insert(num_seqs, Recording { graph, result, activations });
    }

    /// Cuts off the rows that a step was filled up with.
    fn without_padding(&self, x: CudaTensor) -> CudaTensor {
        CudaTensor { rows: x.rows.min(self.step().num_given), ..x }
    }

    fn product(
        &mut self,
        x: CudaTensor,
        weight: &CudaMatrix,
        bias: Option<&CudaVector>,
        y: CudaTensor,
    ) -> CudaTensor {
        let (rows, out, inner, output) = (x.rows, y.cols, weight.cols, y.dtype);
        let shape = ProductShape { rows, out, inner, output, epilogue: Epilogue::None };
        let bias = bias.map(|bias| bias.0);
        let operands = Operands { x: x.data, w: weight.data, bias, y: y.data, wide: None };
        let weights = self.weights.taken();
        must(self.products.run(&self.tools, &self.stream, shape, operands, weights));
        y
    }
}

impl Backend for CudaBackend {
    type Matrix = CudaMatrix;
    type Vector = CudaVector;
    type Rope = CudaRope;
    type Tensor = CudaTensor;
    type Choice = CudaChoice;

    const MAX_IN_FLIGHT: usize = 2;

    fn load_matrix(&mut self, parts: &[WeightTensor<'_>]) -> Result<CudaMatrix, KernelError> {
        let cols = parts.first().and_then(|part| part.shape.last()).copied().unwrap_or(0);
        for part in parts {
            if part.shape.len() != 2 || part.shape[1] != cols {
                let expected = vec![part.shape.first().copied().unwrap_or(0), cols];
                let (operand, got) = (part.name.to_owned(), part.shape.to_vec());
                return Err(KernelError::Shape { operand, expected, got });
            }
        }
        let rows = parts.iter().map(|part| part.shape[0]).sum();
        Ok(CudaMatrix { data: self.load_parts(parts)?, rows, cols })
    }

    fn load_vector(&mut self, parts: &[WeightTensor<'_>]) -> Result<CudaVector, KernelError> {
        self.load_parts(parts).map(CudaVector)
    }

    fn load_rope(&mut self, inv_freq: &[f32]) -> Result<CudaRope, KernelError> {
        let bytes = self.config.max_tokens * inv_freq.len() * 8;
        let table = self.weights.take("rotary angles", bytes);
        let table = table.map_err(|e| no_memory("rotary angles", bytes, &e))?;
        Ok(CudaRope { inv_freq: self.upload_weights("rotary frequencies", inv_freq)?, table })
    }

    fn allocate_kv(&mut self, spec: &KvSpec) -> Result<(), KernelError> {
        let KvSpec { num_layers, num_blocks, block_size, num_kv_heads, head_dim } = *spec;
        self.weight_upload = None; // all weights are there
        // One more than asked for: where the rows that fill a recorded step up write.
        let num_blocks = num_blocks + 1;
        let bytes = num_layers * num_blocks * block_size * num_kv_heads * head_dim * 2 * 2;
        let error = |e| no_memory("the KV cache", bytes, &e);
        let mut arena = DeviceArena::new(&self.tools.device, bytes).map_err(error)?;
        let all = arena.take("the KV cache", bytes).map_err(error)?;
        // A masked key's value is multiplied by zero, which a NaN left by others survives.
        self.stream.fill(all, 0).map_err(error)?;
        self.cache = Some(Cache { arena: Arc::new(arena), all, spec: spec.clone() });
        Ok(())
    }

    fn kv_piece_bytes(&self) -> usize {
        self.cache.as_ref().map_or(0, |cache| KvBlock::new(&cache.spec).piece_bytes())
    }

    fn device_kv(&self) -> Option<CudaKv> {
        let Cache { arena, all, spec } = self.cache.as_ref()?;
        Some(CudaKv::new(&self.tools.device, arena, *all, spec))
    }

    fn read_kv(&mut self, blocks: &[u32]) -> Vec<u8> {
        must(self.host_kv().read(blocks))
    }

    fn write_kv(&mut self, blocks: &[u32], pieces: &[u8]) {
        must(self.host_kv().write(blocks, pieces));
    }

    fn begin_step(&mut self, inputs: &StepInputs) {
        must(self.tools.device.bind());
        must(self.exchange.as_ref().map_or(Ok(()), Exchange::check));
        self.activations.clear();
        self.angles_of = None;
        self.tiles = None;
        self.plans.clear();
        self.chosen.begin_step();
        let padding = self.padding(inputs);
        let step = self.staging.upload(&self.stream, self.inputs, inputs, padding);
        self.step = Some(must(step));
    }

    fn begin_layer(&mut self) {
        self.activations.begin_layer();
    }

    fn embed(&mut self, table: &CudaMatrix, first_token: usize) -> CudaTensor {
        let step = self.step();
        let out = self.take(step.num_tokens, table.cols);
        let operands = [table.data, step.token_ids, out.data];
        let chosen = (self.chosen.all(), first_token..first_token + table.rows);
        must(self.gather.run(&self.stream, operands, chosen, step.num_tokens, table.cols));
        out
    }

    fn rms_norm(&mut self, x: CudaTensor, weight: &CudaVector, eps: f32) -> CudaTensor {
        self.norm(x, None, weight, eps)
    }

    fn add_rms_norm(
        &mut self,
        x: CudaTensor,
        residual: CudaTensor,
        weight: &CudaVector,
        eps: f32,
    ) -> CudaTensor {
        self.norm(x, Some(residual), weight, eps)
    }

    fn linear(
        &mut self,
        x: CudaTensor,
        weight: &CudaMatrix,
        bias: Option<&CudaVector>,
    ) -> CudaTensor {
        let y = self.take(x.rows, weight.rows);
        self.product(x, weight, bias, y)
    }

    fn linear_silu_mul(&mut self, x: CudaTensor, weight: &CudaMatrix) -> CudaTensor {
        let y = self.take(x.rows, weight.rows / 2);
        let wide = self.take(x.rows, weight.rows);
        let (rows, out, inner, output) = (x.rows, y.cols, weight.cols, y.dtype);
        let shape = ProductShape { rows, out, inner, output, epilogue: Epilogue::SiluMul };
        let wide = Some(wide.data);
        let operands = Operands { x: x.data, w: weight.data, bias: None, y: y.data, wide };
        let weights = self.weights.taken();
        must(self.products.run(&self.tools, &self.stream, shape, operands, weights));
        y
    }

    fn head(&mut self, x: CudaTensor, weight: &CudaMatrix) -> CudaTensor {
        let y = must(self.activations.take_logits(x.rows, weight.rows));
        self.product(x, weight, None, y)
    }

    fn rope_kv_write(
        &mut self,
        layer: usize,
        qkv: CudaTensor,
        spec: &AttentionSpec,
        rope: &CudaRope,
        qk_norm: Option<&QkNorm<CudaVector>>,
    ) -> CudaTensor {
        let step = self.step();
        let heads = self.heads(spec);
        let query = self.take(qkv.rows, spec.num_heads * spec.head_dim);
        let kernel = &self.attention[&heads].write;
        if self.angles_of != Some(rope.table) {
            let operands = [step.positions, rope.inv_freq, rope.table];
            must(kernel.fill_table(&self.stream, operands, step.num_tokens));
            self.angles_of = Some(rope.table);
        }
        let norms =
            qk_norm.map(|norm| QkNorms { query: norm.query.0, key: norm.key.0, eps: norm.eps });
        let operands = [qkv.data, rope.table, step.slot_mapping, query.data];
        let kv = self.kv_layer(layer, heads);
        must(kernel.run(&self.stream, operands, kv, norms, qkv.rows));
        query
    }

    fn paged_attention(
        &mut self,
        layer: usize,
        query: CudaTensor,
        spec: &AttentionSpec,
    ) -> CudaTensor {
        let step = self.step();
        let heads = self.heads(spec);
        let kv = self.kv_layer(layer, heads);
        let out = self.take(query.rows, query.cols);
        let settings = (spec.scale, spec.sliding_window);
        let kernels = &self.attention[&heads];
        if let Some(batch) = step.singles() {
            let plan = *self.plans.entry((heads, spec.sliding_window)).or_insert_with(|| {
                let bytes = kernels.decode.plan_bytes(batch.num_seqs);
                let plan = must(self.activations.take_for_step(bytes));
                must(kernels.decode.plan(&self.stream, plan, &batch, spec.sliding_window));
                plan
            });
            let (partial, counters) = kernels.decode.scratch_bytes(batch.num_seqs);
            let partial = must(self.activations.take_bytes(partial));
            let counters = self.counters.slice(0, counters);
            let operands = [query.data, out.data, partial, counters, plan];
            must(kernels.decode.run(&self.stream, operands, kv, &batch, settings));
        }
        if !self.staging.chunks.is_empty() {
            let (region, num_tiles) = match self.tiles {
                Some((for_heads, region, num_tiles)) if for_heads == heads => (region, num_tiles),
                _ => {
                    let words = tiles(&kernels.prefill, &self.staging);
                    let region = must(self.activations.take_for_step(words.len() * 4));
                    must(self.staging.push(&self.stream, region, &words));
                    self.tiles = Some((heads, region, words.len() / 2));
                    (region, words.len() / 2)
                }
            };
            let batch = step.chunks(region, num_tiles);
            let operands = [query.data, out.data];
            must(kernels.prefill.run(&self.stream, operands, kv, &batch, settings));
        }
        out
    }

    fn silu_mul(&mut self, gate_up: CudaTensor) -> CudaTensor {
        let out = self.take(gate_up.rows, gate_up.cols / 2);
        must(self.silu_mul.run(&self.stream, [gate_up.data, out.data], out.rows, out.cols));
        out
    }

    fn all_reduce(&mut self, x: CudaTensor) -> CudaTensor {
        if self.sharers().is_none() {
            return x;
        }
        let out = self.take(x.rows, x.cols);
        self.all_reduce_then(x, Then::Nothing(out));
        out
    }

    fn all_reduce_add_rms_norm(
        &mut self,
        x: CudaTensor,
        residual: CudaTensor,
        weight: &CudaVector,
        eps: f32,
    ) -> CudaTensor {
        if self.sharers().is_none() {
            return self.norm(x, Some(residual), weight, eps);
        }
        let out = self.take(x.rows, x.cols);
        self.all_reduce_then(x, Then::AddNorm { residual, weight: weight.0, out, eps });
        out
    }

    fn all_reduce_add(&mut self, x: CudaTensor, residual: CudaTensor) {
        self.all_reduce_then(x, Then::Add(residual));
    }

    fn gather_columns(&mut self, x: CudaTensor, cols: usize) -> CudaTensor {
        let Some(exchange) = self.sharers() else { return x };
        let out = must(self.activations.take_all_logits(x, cols));
        let share = column_share(cols, exchange.num_ranks());
        must(exchange.gather_columns(&self.stream, (x, out), share));
        out
    }

    fn send(&mut self, x: CudaTensor) {
        if let Some(exchange) = &self.exchange {
            must(exchange.send(&self.stream, x));
        }
    }

    fn receive(&mut self, cols: usize) -> CudaTensor {
        let out = self.take(self.step().num_tokens, cols);
        match &self.exchange {
            Some(exchange) => must(exchange.receive(&self.stream, out)),
            // A step that only warms up leaves numbers in the cache.
            None => must(self.stream.fill(out.data, 0)),
        }
        out
    }

    fn sample(&mut self, logits: CudaTensor, rows: &SampleRows) -> CudaChoice {
        let [room, all_found, before] = self.sampling;
        if rows.has_pending() {
            // This step's choices take the place of those that rows ask for.
            must(self.stream.copy(before, self.chosen.all()));
        }
        let mut choice = self.chosen.choice();
        for part in SamplePart::all(rows, logits.cols, room.len(), all_found.len()) {
            let range = part.range();
            let from = range.start * logits.cols * 4;
            let tokens = self.chosen.take(range.len());
            let found = all_found.slice(0, part.found_bytes());
            let logits = logits.data.slice(from, logits.data.len());
            let operands = SampleOperands { logits, room, chosen: before, tokens, found };
            let upload = &mut |to, words: &[u32]| self.staging.push(&self.stream, to, words);
            must(self.sample.run(&self.stream, upload, &part, &operands));
            let sent = if part.wants_tokens_only() {
                self.chosen.send(&self.stream, &mut choice, tokens, None)
            } else {
                self.chosen.send(&self.stream, &mut choice, found, Some(part.reader()))
            };
            must(sent);
        }
        choice
    }

    fn end_step(&mut self) -> CudaChoice {
        let mut choice = self.chosen.choice();
        let nothing = self.chosen.take(0);
        must(self.chosen.send(&self.stream, &mut choice, nothing, None));
        choice
    }

    fn chosen(&mut self) -> Vec<u32> {
        must(self.tools.device.bind());
        must(self.chosen.download(&self.stream))
    }

    fn recorded_sizes(&self, num_seqs: usize) -> Vec<usize> {
        if self.config.records { sizes(num_seqs) } else { Vec::new() }
    }

    fn record(&mut self, ops: &dyn Fn(&mut Self) -> CudaTensor) -> CudaTensor {
        let Some(num_seqs) = self.num_singles() else { return ops(self) };
        if !self.config.records || !self.recordings.has_run(num_seqs) {
            let result = ops(self);
            return self.without_padding(result);
        }
        if self.recordings.get(num_seqs).is_none() {
            self.capture(num_seqs, ops);
        }
        let recording = must(self.recordings.get(num_seqs).ok_or("a recording is gone"));
        must(recording.graph.launch(&self.stream));
        self.activations = recording.activations.clone();
        self.without_padding(recording.result)
    }

    fn prepare(&mut self, ops: &dyn Fn(&mut Self) -> CudaTensor) {
        let Some(num_seqs) = self.num_singles() else { return };
        if !self.recordings.has_run(num_seqs) {
            // Compiles, loads and chooses, which is no time to wait for others.
            let joined = self.exchange.take();
            ops(self);
            self.exchange = joined;
            self.activations.clear();
            self.angles_of = None;
            self.plans.clear();
        }
        if self.recordings.get(num_seqs).is_none() {
            self.capture(num_seqs, ops);
        }
    }

    fn gather_rows(&mut self, x: CudaTensor, rows: &[u32]) -> CudaTensor {
        let step = self.step();
        let all = rows.len() == x.rows || (x.rows, rows.len()) == (step.num_tokens, step.num_given);
        if all && rows.iter().enumerate().all(|(i, &row)| row as usize == i) {
            return x;
        }
        let index = must(self.activations.take_bytes(rows.len() * 4));
        must(self.staging.push(&self.stream, index, rows));
        let out = self.take(rows.len(), x.cols);
        let chosen = (self.chosen.all(), 0..x.rows);
        must(self.gather.run(&self.stream, [x.data, index, out.data], chosen, rows.len(), x.cols));
        out
    }

    fn read(&mut self, x: CudaTensor) -> &[f32] {
        self.host.resize(x.rows * x.cols, 0.0);
        if x.dtype == Dtype::F32 {
            must(self.stream.download(&mut self.host, x.data));
        } else {
            let mut bits = vec![0u16; x.rows * x.cols];
            must(self.stream.download(&mut bits, x.data));
            let dtype = x.dtype;
            for (value, bits) in self.host.iter_mut().zip(bits) {
                *value = match dtype {
                    Dtype::F16 => half::f16::from_bits(bits).to_f32(),
                    Dtype::Bf16 | Dtype::F32 => half::bf16::from_bits(bits).to_f32(),
                };
            }
        }
        &self.host
    }
}
