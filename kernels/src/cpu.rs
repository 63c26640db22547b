//! The ops on the CPU.
//!
//! Every kernel is written once over sixteen lanes (`simd`) and gives the same bits with AVX-512, AVX2 or neither, with any
//! number of threads, whatever the batch mates and the chunks. Weights lie in panels (`matrix`), activations in an arena
//! (`memory`). What a model is, and who owns which block, is not known here. Next: `linear`.

mod attention;
mod float_gemm;
mod int_gemm;
mod kv_cache;
mod linear;
mod matrix;
mod memory;
mod pool;
mod quantize;
mod rope;
mod rows;
mod sampling;
mod simd;
mod unpack;

use std::fmt;

use attention::{Attention, AttentionScratch};
use half::{bf16, f16};
use kv_cache::KvCache;
use linear::Linear;
use memory::{Arena, Shared};
use pool::Pool;
use quantize::QuantRows;
use rope::{Angles, MAX_HEAD_DIM, RopeWrite};
use rows::{Norm, for_each_row};
use simd::dispatch;
use stallfree_comm::{Lost, Peers};

pub use kv_cache::KvType;
pub use matrix::{Matrix, dequantize};
pub use memory::Tensor;
pub use rope::Rope;
pub use sampling::Sampler;
pub use simd::Isa;

use crate::{
    AttentionSpec, Backend, KernelError, KvSpec, QkNorm, SampleRows, Sampled, StepInputs,
    WeightTensor, WeightType,
};

/// How to run on the CPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuConfig {
    /// Threads that compute, the caller's among them.
    pub num_threads: usize,
    /// The instructions to use; those that the CPU lacks fall back to portable code.
    pub isa: Isa,
    /// The element type of the KV cache.
    pub kv_type: KvType,
}

impl Default for CpuConfig {
    /// All cores, the fastest instructions, a KV cache of half-precision floats.
    fn default() -> Self {
        let num_threads = std::thread::available_parallelism().map_or(1, usize::from);
        Self { num_threads, isa: Isa::detect(), kv_type: KvType::default() }
    }
}

impl fmt::Display for CpuConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = if self.num_threads == 1 { "" } else { "s" };
        write!(f, "{}, {} thread{plural}", self.isa, self.num_threads)
    }
}

/// The CPU as a device that models run on.
#[derive(Debug)]
pub struct CpuBackend {
    config: CpuConfig,
    peers: Peers,
    pool: Pool,
    arena: Arena,
    inputs: StepInputs,
    cache: Option<KvCache>,
    quantized: QuantRows,
    angles: Angles,
    attention: AttentionScratch,
    samplers: Vec<Sampler>,
    num_ropes: usize,
    chosen: Vec<u32>,
    /// What the step before chose.
    chosen_before: Vec<u32>,
}

/// A loaded vector.
#[derive(Debug)]
pub struct Vector(Vec<f32>);

impl CpuBackend {
    /// Starts the threads of a rank that has no others.
    ///
    /// # Errors
    /// The system refuses a thread.
    pub fn new(config: CpuConfig) -> Result<Self, KernelError> {
        Self::with_peers(config, Peers::none())
    }

    /// Starts the threads of one rank of several.
    ///
    /// # Errors
    /// The system refuses a thread.
    pub fn with_peers(mut config: CpuConfig, peers: Peers) -> Result<Self, KernelError> {
        if !config.isa.is_available() {
            config.isa = Isa::Portable;
        }
        let pool = Pool::new(config.num_threads).map_err(|error| KernelError::OutOfMemory {
            what: format!("starting {} threads ({error})", config.num_threads),
            bytes: 0,
            hint: "use fewer threads".to_owned(),
        })?;
        Ok(Self {
            config,
            peers,
            pool,
            arena: Arena::default(),
            inputs: StepInputs::default(),
            cache: None,
            quantized: QuantRows::default(),
            angles: Angles::default(),
            attention: AttentionScratch::default(),
            samplers: Vec::new(),
            num_ropes: 0,
            chosen: Vec::new(),
            chosen_before: Vec::new(),
        })
    }

    /// Returns how it was configured; its text is fit for a log, such as "AVX-512 VNNI, 2 threads".
    #[must_use]
    pub const fn config(&self) -> &CpuConfig {
        &self.config
    }

    /// Returns how many bytes the activations take by now.
    #[must_use]
    pub fn activation_bytes(&self) -> usize {
        self.arena.num_bytes()
    }

    /// Returns how many bytes the KV cache takes.
    #[must_use]
    pub fn kv_bytes(&self) -> usize {
        self.cache.as_ref().map_or(0, KvCache::num_bytes)
    }

    fn norm(&mut self, x: Tensor, residual: Option<Tensor>, weight: &Vector, eps: f32) -> Tensor {
        let out = self.arena.take(x.rows, x.cols);
        let (x_values, residual, to) = match residual {
            Some(residual) => {
                let ([x], [residual, to]) = self.arena.split([x], [residual, out]);
                (x, Some(Shared::new(residual)), Shared::new(to))
            }
            None => {
                let ([x], [to]) = self.arena.split([x], [out]);
                (x, None, Shared::new(to))
            }
        };
        let (isa, cols) = (self.config.isa, x.cols);
        for_each_row(&mut self.pool, x.rows, cols, &|row| {
            let part = row * cols..(row + 1) * cols;
            let x = &x_values[part.clone()];
            // SAFETY: each row is visited once.
            let residual = residual.map(|residual| unsafe { residual.part(part.clone()) });
            // SAFETY: as above.
            let to = unsafe { to.part(part) };
            dispatch(isa, Norm { x, residual, weight: &weight.0, eps, to });
        });
        out
    }
}

/// Ends the rank: without the others it can do nothing.
#[expect(clippy::panic, reason = "the executor's thread turns it into the loss of the engine")]
fn must<T>(result: Result<T, Lost>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => panic!("{error}"),
    }
}

/// Appends a part's elements as single-precision floats.
fn append_floats(part: &WeightTensor<'_>, to: &mut Vec<f32>) -> Result<(), KernelError> {
    let len = part.shape.iter().product();
    matrix::check_bytes(part, len)?;
    let (singles, halves) = (part.bytes.as_chunks::<4>().0, part.bytes.as_chunks::<2>().0);
    let half = |bytes: &[u8; 2]| f16::from_le_bytes(*bytes).to_f32();
    let brain = |bytes: &[u8; 2]| bf16::from_le_bytes(*bytes).to_f32();
    match part.dtype {
        WeightType::F32 => to.extend(singles.iter().map(|bytes| f32::from_le_bytes(*bytes))),
        WeightType::F16 => to.extend(halves.iter().map(half)),
        WeightType::BF16 => to.extend(halves.iter().map(brain)),
        _ => {
            return Err(KernelError::Type {
                operand: part.name.to_owned(),
                expected: "F32, F16 or BF16, as a vector has",
                got: part.dtype,
            });
        }
    }
    Ok(())
}

impl Backend for CpuBackend {
    type Matrix = Matrix;
    type Vector = Vector;
    type Rope = Rope;
    type Tensor = Tensor;
    type Choice = Vec<Sampled>;

    const MAX_IN_FLIGHT: usize = 1;

    fn load_matrix(&mut self, parts: &[WeightTensor<'_>]) -> Result<Matrix, KernelError> {
        Matrix::load(parts, &mut self.pool)
    }

    fn load_vector(&mut self, parts: &[WeightTensor<'_>]) -> Result<Vector, KernelError> {
        let mut values = Vec::new();
        for part in parts {
            append_floats(part, &mut values)?;
        }
        Ok(Vector(values))
    }

    fn load_rope(&mut self, inv_freq: &[f32]) -> Result<Rope, KernelError> {
        self.num_ropes += 1;
        Ok(Rope { id: self.num_ropes, inv_freq: inv_freq.to_vec() })
    }

    fn allocate_kv(&mut self, spec: &KvSpec) -> Result<(), KernelError> {
        if spec.head_dim > MAX_HEAD_DIM || !spec.head_dim.is_multiple_of(2) {
            return Err(KernelError::Shape {
                operand: format!("head_dim (even, at most {MAX_HEAD_DIM})"),
                expected: vec![MAX_HEAD_DIM],
                got: vec![spec.head_dim],
            });
        }
        self.cache = Some(KvCache::new(spec, self.config.kv_type)?);
        Ok(())
    }

    fn kv_piece_bytes(&self) -> usize {
        self.cache.as_ref().map_or(0, KvCache::piece_bytes)
    }

    fn read_kv(&mut self, blocks: &[u32]) -> Vec<u8> {
        self.cache.as_ref().map(|cache| cache.read(blocks)).unwrap_or_default()
    }

    fn write_kv(&mut self, blocks: &[u32], pieces: &[u8]) {
        if let Some(cache) = &mut self.cache {
            cache.write(blocks, pieces);
        }
    }

    fn begin_step(&mut self, inputs: &StepInputs) {
        self.pool.wake();
        self.inputs.clone_from(inputs);
        self.chosen_before = std::mem::take(&mut self.chosen);
        for token in self.inputs.token_ids.iter_mut().filter(|token| **token >> 31 == 1) {
            *token = self.chosen_before.get((*token & !(1 << 31)) as usize).copied().unwrap_or(0);
        }
        self.arena.clear();
        self.angles.clear();
    }

    fn begin_layer(&mut self) {
        self.arena.begin_layer();
    }

    fn embed(&mut self, table: &Matrix, first_token: usize) -> Tensor {
        let cols = table.cols;
        let out = self.arena.take(self.inputs.token_ids.len(), cols);
        let token_ids = &self.inputs.token_ids;
        let to = Shared::new(self.arena.get_mut(out));
        for_each_row(&mut self.pool, token_ids.len(), cols, &|row| {
            // SAFETY: each row is visited once.
            let to = unsafe { to.part(row * cols..(row + 1) * cols) };
            match (token_ids[row] as usize).checked_sub(first_token) {
                Some(token) if token < table.rows => table.read_row(token, to),
                _ => to.fill(0.0),
            }
        });
        out
    }

    fn rms_norm(&mut self, x: Tensor, weight: &Vector, eps: f32) -> Tensor {
        self.norm(x, None, weight, eps)
    }

    fn add_rms_norm(&mut self, x: Tensor, residual: Tensor, weight: &Vector, eps: f32) -> Tensor {
        self.norm(x, Some(residual), weight, eps)
    }

    fn linear(&mut self, x: Tensor, weight: &Matrix, bias: Option<&Vector>) -> Tensor {
        assert_eq!(x.cols, weight.cols, "linear: the input's columns and the weight's");
        let out_tensor = self.arena.take(x.rows, weight.rows);
        let ([x], [out]) = self.arena.split([x], [out_tensor]);
        let bias = bias.map(|bias| bias.0.as_slice());
        let linear = Linear { isa: self.config.isa, x, matrix: weight, bias, out };
        linear.run(&mut self.pool, &mut self.quantized);
        out_tensor
    }

    fn rope_kv_write(
        &mut self,
        layer: usize,
        qkv: Tensor,
        spec: &AttentionSpec,
        rope: &Rope,
        qk_norm: Option<&QkNorm<Vector>>,
    ) -> Tensor {
        self.angles.prepare(rope, &self.inputs.positions, &mut self.pool);
        let out = self.arena.take(qkv.rows, spec.num_heads * spec.head_dim);
        let Some(cache) = &mut self.cache else { return out };
        let ([qkv], [queries]) = self.arena.split([qkv], [out]);
        let op = RopeWrite {
            layer,
            qkv,
            slot_mapping: &self.inputs.slot_mapping,
            spec,
            angles: &self.angles,
            norms: qk_norm.map(|norm| (&norm.query.0[..], &norm.key.0[..], norm.eps)),
            layout: cache.layout,
        };
        op.run(self.config.isa, &mut self.pool, cache.elements(), queries);
        out
    }

    fn paged_attention(&mut self, layer: usize, query: Tensor, spec: &AttentionSpec) -> Tensor {
        let out_tensor = self.arena.take(query.rows, query.cols);
        let Some(cache) = &mut self.cache else { return out_tensor };
        let ([query], [out]) = self.arena.split([query], [out_tensor]);
        let layout = cache.layout;
        let op = Attention { layer, query, spec, inputs: &self.inputs, layout };
        let scratch = &mut self.attention;
        op.run(self.config.isa, &mut self.pool, cache.elements(), scratch, out);
        out_tensor
    }

    fn silu_mul(&mut self, gate_up: Tensor) -> Tensor {
        let ffn = gate_up.cols / 2;
        let out = self.arena.take(gate_up.rows, ffn);
        let ([gate_up], [to]) = self.arena.split([gate_up], [out]);
        rows::silu_mul(self.config.isa, &mut self.pool, gate_up, ffn, to);
        out
    }

    fn all_reduce(&mut self, x: Tensor) -> Tensor {
        must(self.peers.tensor.all_reduce(self.arena.get_mut(x)));
        x
    }

    fn all_reduce_add(&mut self, x: Tensor, residual: Tensor) {
        let x = self.all_reduce(x);
        let ([x], [sum]) = self.arena.split([x], [residual]);
        sum.iter_mut().zip(x).for_each(|(sum, x)| *sum += x);
    }

    fn gather_columns(&mut self, x: Tensor, cols: usize) -> Tensor {
        if self.peers.tensor.world_size() == 1 {
            return x;
        }
        let out = self.arena.take(x.rows, cols);
        let parts = must(self.peers.tensor.all_gather(self.arena.get(x)));
        let to = self.arena.get_mut(out);
        let mut first = 0;
        for part in parts {
            let width = part.len() / x.rows.max(1);
            for (to, part) in to.chunks_exact_mut(cols).zip(part.chunks_exact(width)) {
                to[first..first + width].copy_from_slice(part);
            }
            first += width;
        }
        out
    }

    fn send(&mut self, x: Tensor) {
        let stages = &self.peers.stages;
        must(stages.send(stages.rank() + 1, self.arena.get(x)));
    }

    fn receive(&mut self, cols: usize) -> Tensor {
        let stages = &self.peers.stages;
        let values = must(stages.recv(stages.rank().wrapping_sub(1)));
        let out = self.arena.take(self.inputs.token_ids.len(), cols);
        self.arena.get_mut(out).copy_from_slice(&values);
        out
    }

    fn gather_rows(&mut self, x: Tensor, rows: &[u32]) -> Tensor {
        let out = self.arena.take(rows.len(), x.cols);
        let ([x_values], [to]) = self.arena.split([x], [out]);
        for (row, to) in rows.iter().zip(to.chunks_exact_mut(x.cols)) {
            to.copy_from_slice(&x_values[*row as usize * x.cols..][..x.cols]);
        }
        out
    }

    fn sample(&mut self, logits: Tensor, rows: &SampleRows) -> Vec<Sampled> {
        let cols = logits.cols;
        self.samplers.resize_with(self.pool.num_threads(), Sampler::default);
        let mut found = vec![None; logits.rows];
        let (values, chosen) = (self.arena.get(logits), &self.chosen_before[..]);
        let (to, samplers) = (Shared::new(&mut found), Shared::new(&mut self.samplers));
        self.pool.run(logits.rows, &|thread, i| {
            // SAFETY: a thread has one task at a time.
            let sampler = unsafe { samplers.part(thread..thread + 1) };
            let row = &values[i * cols..(i + 1) * cols];
            let sampled = sampler[0].sample(row, (rows, i), chosen);
            // SAFETY: each row is visited once.
            unsafe { to.write(i, Some(sampled)) };
        });
        let found: Vec<Sampled> = found.into_iter().flatten().collect();
        self.chosen.extend(found.iter().map(|sampled| sampled.token));
        found
    }

    fn end_step(&mut self) -> Vec<Sampled> {
        Vec::new()
    }

    fn chosen(&mut self) -> Vec<u32> {
        self.chosen.clone()
    }

    fn read(&mut self, x: Tensor) -> &[f32] {
        self.arena.get(x)
    }
}
