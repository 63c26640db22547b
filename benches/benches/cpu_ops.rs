//! The CPU's ops at the shapes of SmolLM2-135M, and whole steps of it, beside what the machine's memory can deliver.
//!
//! `cargo bench --bench cpu_ops`; throughput is bytes of weights read for decodes, multiply-adds for prefills, tokens for steps.
//! Weights are random and distinct for each layer, so that a decode streams them from memory as a real model does.

#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on stops")]

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use stallfree_kernels::cpu::{CpuBackend, CpuConfig, Matrix, Rope, Vector};
use stallfree_kernels::{
    AttentionSpec, Backend, KvSpec, RaggedSeq, StepInputs, WeightTensor, WeightType,
};

const HIDDEN: usize = 576;
const FFN: usize = 1536;
const HEADS: usize = 9;
const KV_HEADS: usize = 3;
const HEAD_DIM: usize = 64;
const VOCAB: usize = 49_152;
const LAYERS: usize = 30;
const BLOCK_SIZE: usize = 16;
const MAX_LEN: usize = 2048;

/// Returns bytes of a weight: blocks of one scale and random codes, or small floats.
fn weight_bytes(dtype: WeightType, rows: usize, cols: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    let mut bytes: Vec<u8> = (0..dtype.bytes_for(rows * cols)).map(|_| random()).collect();
    let scale = half::f16::from_f32(0.004).to_le_bytes();
    match dtype {
        WeightType::F32 | WeightType::F16 | WeightType::BF16 => {
            // The exponent's byte: about 0.03.
            bytes.chunks_exact_mut(dtype.block_bytes()).for_each(|x| x[x.len() - 1] = 0x3D & 0x2F);
        }
        _ => bytes.chunks_exact_mut(dtype.block_bytes()).for_each(|block| {
            block[..2].copy_from_slice(&scale);
            if dtype == WeightType::Q4_1 {
                block[2..4].copy_from_slice(&half::f16::from_f32(-0.03).to_le_bytes());
            }
        }),
    }
    bytes
}

fn load(backend: &mut CpuBackend, dtype: WeightType, rows: usize, cols: usize) -> Matrix {
    let bytes = weight_bytes(dtype, rows, cols, (rows * cols) as u64);
    let tensor = WeightTensor { name: "weight", dtype, shape: &[rows, cols], bytes: &bytes };
    backend.load_matrix(&[tensor]).unwrap()
}

struct Layer {
    qkv: Matrix,
    out: Matrix,
    gate_up: Matrix,
    down: Matrix,
    norm: Vector,
}

/// A model of SmolLM2-135M's shape with random weights.
struct Chain {
    backend: CpuBackend,
    layers: Vec<Layer>,
    head: Matrix,
    rope: Rope,
    spec: AttentionSpec,
}

impl Chain {
    fn new(dtype: WeightType) -> Self {
        let mut backend = CpuBackend::new(CpuConfig::default()).unwrap();
        let kv = KvSpec {
            num_layers: LAYERS,
            num_blocks: MAX_LEN / BLOCK_SIZE,
            block_size: BLOCK_SIZE,
            num_kv_heads: KV_HEADS,
            head_dim: HEAD_DIM,
        };
        backend.allocate_kv(&kv).unwrap();
        let ones: Vec<u8> = [1.0f32; HIDDEN].iter().flat_map(|x| x.to_le_bytes()).collect();
        let norm =
            WeightTensor { name: "norm", dtype: WeightType::F32, shape: &[HIDDEN], bytes: &ones };
        let layers = (0..LAYERS)
            .map(|_| Layer {
                qkv: load(&mut backend, dtype, (HEADS + 2 * KV_HEADS) * HEAD_DIM, HIDDEN),
                out: load(&mut backend, dtype, HIDDEN, HIDDEN),
                gate_up: load(&mut backend, dtype, 2 * FFN, HIDDEN),
                down: load(&mut backend, dtype, HIDDEN, FFN),
                norm: backend.load_vector(std::slice::from_ref(&norm)).unwrap(),
            })
            .collect();
        let head = load(&mut backend, WeightType::Q8_0, VOCAB, HIDDEN);
        let inv_freq: Vec<f32> =
            (0..HEAD_DIM / 2).map(|i| 1e5f32.powf(-2.0 * i as f32 / HEAD_DIM as f32)).collect();
        let rope = backend.load_rope(&inv_freq).unwrap();
        let spec = AttentionSpec {
            num_heads: HEADS,
            num_kv_heads: KV_HEADS,
            head_dim: HEAD_DIM,
            scale: 0.125,
            sliding_window: None,
        };
        Self { backend, layers, head, rope, spec }
    }

    /// Runs `count` tokens after `context` tokens, and the head for the last.
    fn step(&mut self, context: usize, count: usize) -> f32 {
        let positions = context as u32..(context + count) as u32;
        let num_blocks = (context + count).div_ceil(BLOCK_SIZE);
        let backend = &mut self.backend;
        backend.begin_step(&StepInputs {
            token_ids: positions.clone().collect(),
            positions: positions.clone().collect(),
            slot_mapping: positions.collect(),
            seqs: vec![RaggedSeq {
                rows: 0..count,
                context_len: context + count,
                blocks: 0..num_blocks,
            }],
            block_ids: (0..num_blocks as u32).collect(),
        });
        let residual = backend.embed(&self.head, 0);
        let mut x = None;
        for (i, layer) in self.layers.iter().enumerate() {
            backend.begin_layer();
            let normed = match x {
                None => backend.rms_norm(residual, &layer.norm, 1e-5),
                Some(x) => backend.add_rms_norm(x, residual, &layer.norm, 1e-5),
            };
            let qkv = backend.linear(normed, &layer.qkv, None);
            let query = backend.rope_kv_write(i, qkv, &self.spec, &self.rope, None);
            let attended = backend.paged_attention(i, query, &self.spec);
            let out = backend.linear(attended, &layer.out, None);
            let normed = backend.add_rms_norm(out, residual, &layer.norm, 1e-5);
            let gate_up = backend.linear(normed, &layer.gate_up, None);
            let activated = backend.silu_mul(gate_up);
            x = Some(backend.linear(activated, &layer.down, None));
        }
        let last = backend.gather_rows(residual, &[count as u32 - 1]);
        let logits = backend.linear(last, &self.head, None);
        backend.read(logits)[0]
    }
}

fn steps(c: &mut Criterion) {
    for dtype in [WeightType::Q4_1, WeightType::Q4_0, WeightType::Q8_0] {
        let mut chain = Chain::new(dtype);
        let mut group = c.benchmark_group(format!("step/{dtype:?}"));
        for (name, context, count) in
            [("decode at 128", 128, 1), ("decode at 1024", 1024, 1), ("prefill 512", 0, 512)]
        {
            group.throughput(Throughput::Elements(count as u64));
            group.bench_function(name, |b| b.iter(|| black_box(chain.step(context, count))));
        }
        group.finish();
    }
}

fn products(c: &mut Criterion) {
    let types = [
        WeightType::F32,
        WeightType::BF16,
        WeightType::Q4_0,
        WeightType::Q4_1,
        WeightType::Q8_0,
        WeightType::Q4K,
        WeightType::Q6K,
    ];
    for dtype in types {
        let mut group = c.benchmark_group(format!("linear/{dtype:?}"));
        let mut backend = CpuBackend::new(CpuConfig::default()).unwrap();
        let (rows, cols) = (FFN, 3 * 512);
        let small = load(&mut backend, dtype, rows, cols);
        let large = load(&mut backend, dtype, 48 << 10, cols);
        let table = load(&mut backend, WeightType::F32, 256, cols);
        for (name, weight, count) in [("decode", &large, 1), ("prefill 256", &small, 256usize)] {
            let macs = weight.rows() * cols * count;
            group.throughput(if count == 1 {
                Throughput::Bytes(weight.num_bytes() as u64)
            } else {
                Throughput::Elements(macs as u64)
            });
            group.bench_function(name, |b| {
                b.iter(|| {
                    backend.begin_step(&StepInputs {
                        token_ids: (0..count as u32).collect(),
                        ..StepInputs::default()
                    });
                    let x = backend.embed(&table, 0);
                    let out = backend.linear(x, weight, None);
                    black_box(backend.read(out)[0])
                });
            });
        }
        group.finish();
    }
}

/// What all threads together can read.
fn floor(c: &mut Criterion) {
    let words = vec![1u64; 32 << 20];
    let num_threads = CpuConfig::default().num_threads;
    let mut group = c.benchmark_group("floor");
    group.throughput(Throughput::Bytes(size_of_val(&words[..]) as u64));
    group.bench_function("read 256 MiB", |b| {
        b.iter(|| {
            std::thread::scope(|scope| {
                for part in words.chunks(words.len() / num_threads) {
                    scope.spawn(|| {
                        black_box(part.chunks_exact(8).fold([0u64; 8], |mut sums, words| {
                            sums.iter_mut().zip(words).for_each(|(sum, word)| *sum ^= word);
                            sums
                        }))
                    });
                }
            });
        });
    });
    group.finish();
}

fn config() -> Criterion {
    Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(2))
}

criterion_group! { name = benches; config = config(); targets = floor, steps, products }
criterion_main!(benches);
