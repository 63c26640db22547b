//! Rotation, KV cache and attention, against a sequence-by-sequence reference in double precision.

use stallfree_kernels::cpu::{CpuBackend, CpuConfig, KvType};
use stallfree_kernels::{AttentionSpec, Backend, KvSpec, QkNorm, RaggedSeq, StepInputs};

use crate::support::{bits, configs, floats, normal};

/// A shape of attention and of the cache.
#[derive(Clone, Copy, Debug)]
struct Shape {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    block_size: usize,
    window: Option<usize>,
    norm: bool,
}

impl Shape {
    fn spec(&self) -> AttentionSpec {
        AttentionSpec {
            num_heads: self.heads,
            num_kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            scale: 1.0 / (self.head_dim as f32).sqrt(),
            sliding_window: self.window,
        }
    }

    fn qkv_cols(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    fn inv_freq(&self) -> Vec<f32> {
        let dim = self.head_dim as f32;
        (0..self.head_dim / 2).map(|i| 10_000f32.powf(-2.0 * i as f32 / dim)).collect()
    }
}

/// Tokens of a step: for each sequence, how many come now.
type Step = Vec<(usize, usize)>;

/// Runs steps and returns each sequence's results, token after token.
fn run(shape: &Shape, config: CpuConfig, lens: &[usize], steps: &[Step]) -> Vec<Vec<f32>> {
    let blocks_each = lens.iter().max().unwrap().div_ceil(shape.block_size);
    let num_blocks = blocks_each * lens.len() + 1;
    let mut backend = CpuBackend::new(config).unwrap();
    let kv = KvSpec {
        num_layers: 2,
        num_blocks,
        block_size: shape.block_size,
        num_kv_heads: shape.kv_heads,
        head_dim: shape.head_dim,
    };
    backend.allocate_kv(&kv).unwrap();
    let cols = shape.qkv_cols();
    // All sequences' tokens in one table, so that a step can look them up.
    let all: Vec<f32> =
        (0..lens.len()).flat_map(|seq| normal(lens[seq] * cols, seq as u64 + 10, 1.0)).collect();
    let table = backend.load_matrix(&[floats(&all, &[all.len() / cols, cols])]).unwrap();
    let rope = backend.load_rope(&shape.inv_freq()).unwrap();
    let weight = normal(shape.head_dim, 3, 1.0);
    let norm = shape.norm.then(|| QkNorm {
        query: backend.load_vector(&[floats(&weight, &[shape.head_dim])]).unwrap(),
        key: backend.load_vector(&[floats(&weight, &[shape.head_dim])]).unwrap(),
        eps: 1e-6,
    });
    let mut computed = vec![0; lens.len()];
    let mut results = vec![Vec::new(); lens.len()];
    for step in steps {
        let inputs = step_inputs(shape, lens, step, &mut computed, blocks_each);
        backend.begin_step(&inputs);
        let qkv = backend.embed(&table, 0);
        let query = backend.rope_kv_write(1, qkv, &shape.spec(), &rope, norm.as_ref());
        let out = backend.paged_attention(1, query, &shape.spec());
        let out = backend.read(out);
        let out_cols = shape.heads * shape.head_dim;
        for ((seq, _), ragged) in step.iter().zip(&inputs.seqs) {
            let rows = ragged.rows.start * out_cols..ragged.rows.end * out_cols;
            results[*seq].extend_from_slice(&out[rows]);
        }
    }
    results
}

/// Sequences take every other block from the end, so that tables are not in order.
fn step_inputs(
    shape: &Shape,
    lens: &[usize],
    step: &Step,
    computed: &mut [usize],
    blocks_each: usize,
) -> StepInputs {
    let mut inputs = StepInputs::default();
    for &(seq, count) in step {
        let first_token: usize = lens[..seq].iter().sum();
        let (first_row, first_block) = (inputs.token_ids.len(), inputs.block_ids.len());
        let block = |index: usize| (lens.len() * (blocks_each - 1 - index) + seq + 1) as u32;
        for position in computed[seq]..computed[seq] + count {
            inputs.token_ids.push((first_token + position) as u32);
            inputs.positions.push(position as u32);
            let offset = (position % shape.block_size) as u32;
            let slot = block(position / shape.block_size) * shape.block_size as u32 + offset;
            inputs.slot_mapping.push(slot);
        }
        computed[seq] += count;
        inputs.block_ids.extend((0..computed[seq].div_ceil(shape.block_size)).map(block));
        inputs.seqs.push(RaggedSeq {
            rows: first_row..inputs.token_ids.len(),
            context_len: computed[seq],
            blocks: first_block..inputs.block_ids.len(),
        });
    }
    inputs
}

/// One sequence's attention, position by position.
fn reference(shape: &Shape, len: usize, seq: usize) -> Vec<f64> {
    let (dim, cols) = (shape.head_dim, shape.qkv_cols());
    let weight = normal(dim, 3, 1.0);
    let qkv = normal(len * cols, seq as u64 + 10, 1.0);
    let rotated = |head: &[f32], position: usize| -> Vec<f64> {
        let mut head: Vec<f64> = head.iter().map(|x| f64::from(*x)).collect();
        if shape.norm {
            let mean = head.iter().map(|x| x * x).sum::<f64>() / dim as f64;
            for (x, weight) in head.iter_mut().zip(&weight) {
                *x *= f64::from(*weight) / (mean + 1e-6).sqrt();
            }
        }
        for (i, freq) in shape.inv_freq().into_iter().enumerate() {
            let (sin, cos) = (position as f64 * f64::from(freq)).sin_cos();
            let (a, b) = (head[i], head[i + dim / 2]);
            (head[i], head[i + dim / 2]) = (a * cos - b * sin, b * cos + a * sin);
        }
        head
    };
    let head_at = |position: usize, head: usize| &qkv[position * cols + head * dim..][..dim];
    let mut out = Vec::new();
    let keys: Vec<Vec<Vec<f64>>> = (0..shape.kv_heads)
        .map(|head| (0..len).map(|i| rotated(head_at(i, shape.heads + head), i)).collect())
        .collect();
    for position in 0..len {
        for head in 0..shape.heads {
            let query = rotated(head_at(position, head), position);
            let kv_head = head / (shape.heads / shape.kv_heads);
            let start = (position + 1).saturating_sub(shape.window.unwrap_or(usize::MAX));
            let weights: Vec<f64> = (start..=position)
                .map(|i| {
                    let score: f64 = query.iter().zip(&keys[kv_head][i]).map(|(q, k)| q * k).sum();
                    (score / (dim as f64).sqrt()).exp()
                })
                .collect();
            let total: f64 = weights.iter().sum();
            for d in 0..dim {
                let value =
                    |i: usize| f64::from(head_at(i, shape.heads + shape.kv_heads + kv_head)[d]);
                let sum: f64 =
                    weights.iter().zip(start..).map(|(weight, i)| weight * value(i)).sum();
                out.push(sum / total);
            }
        }
    }
    out
}

const SHAPE: Shape =
    Shape { heads: 9, kv_heads: 3, head_dim: 64, block_size: 16, window: None, norm: false };

const SHAPES: [Shape; 8] = [
    SHAPE,
    Shape { window: Some(40), ..SHAPE },
    Shape { heads: 4, kv_heads: 4, head_dim: 96, block_size: 8, norm: true, ..SHAPE },
    Shape { heads: 8, kv_heads: 1, head_dim: 128, block_size: 32, window: Some(1), ..SHAPE },
    Shape { heads: 2, kv_heads: 1, head_dim: 6, block_size: 1, ..SHAPE },
    Shape { heads: 28, kv_heads: 1, head_dim: 32, block_size: 24, norm: true, ..SHAPE },
    Shape { heads: 5, kv_heads: 1, head_dim: 10, block_size: 5, window: Some(17), ..SHAPE },
    Shape { heads: 1, kv_heads: 1, head_dim: 2, block_size: 64, ..SHAPE },
];

#[test]
fn attention_agrees_with_double_precision() {
    let lens = [1, 150, 16, 67];
    let together: Step = lens.into_iter().enumerate().collect();
    for shape in SHAPES {
        for (kv_type, tolerance) in [(KvType::F32, 1e-5), (KvType::F16, 4e-3)] {
            let config = CpuConfig { kv_type, ..CpuConfig::default() };
            let results = run(&shape, config, &lens, std::slice::from_ref(&together));
            for (seq, got) in results.iter().enumerate() {
                for (i, (got, wanted)) in
                    got.iter().zip(reference(&shape, lens[seq], seq)).enumerate()
                {
                    let difference = (f64::from(*got) - wanted).abs();
                    assert!(
                        difference <= tolerance,
                        "{shape:?}, {kv_type:?}, sequence {seq}, element {i}: {got}, {wanted}"
                    );
                }
            }
        }
    }
}

/// Cuts sequences into steps: chunks of `chunk` tokens, sequence 0 first or all at once.
fn steps(lens: &[usize], chunk: usize, mixed: bool) -> Vec<Step> {
    let mut left = lens.to_vec();
    let mut steps = Vec::new();
    while left.iter().any(|left| *left > 0) {
        let mut step = Step::new();
        for (seq, left) in left.iter_mut().enumerate() {
            let count = chunk.min(*left);
            if count > 0 && (mixed || step.is_empty()) {
                step.push((seq, count));
                *left -= count;
            }
        }
        steps.push(step);
    }
    steps
}

#[test]
fn the_same_bits_however_prompts_are_cut_and_mixed() {
    let lens = [1, 150, 16, 67];
    for shape in SHAPES {
        let wanted = run(&shape, CpuConfig::default(), &lens, &steps(&lens, 1000, true));
        for (chunk, mixed) in [(1, true), (1, false), (7, true), (64, true), (33, false)] {
            let got = run(&shape, CpuConfig::default(), &lens, &steps(&lens, chunk, mixed));
            for (got, wanted) in got.iter().zip(&wanted) {
                assert_eq!(bits(got), bits(wanted), "{shape:?}, chunks of {chunk}");
            }
        }
        for config in configs() {
            let got = run(&shape, config.clone(), &lens, &steps(&lens, 40, true));
            for (got, wanted) in got.iter().zip(&wanted) {
                assert_eq!(bits(got), bits(wanted), "{shape:?}, {config}");
            }
        }
    }
}
