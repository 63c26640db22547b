//! A whole decode step of the Llama-3-8B shape as one graph: every op of every layer, the head and the greedy choice.

use std::cell::RefCell;

use stallfree_device::{DeviceSlice, Dtype};
use stallfree_kernels::cuda::{
    Ceilings, DecodeBatch, Epilogue, Gather, KvLayer, Operands, PagedAttentionDecode, ProductShape,
    Products, RmsNorm, RopeKvWrite,
};

use crate::bench::{HEADS, floor_ms, line, tables};
use crate::rig::{Outcome, Rig};
use crate::sampling::Ready;

const LAYERS: usize = 32;
const HIDDEN: usize = 4096;
const FFN: usize = 14_336;
const QKV: usize = 6144;
const VOCAB: usize = 128_256;

struct Layer {
    qkv: DeviceSlice,
    o: DeviceSlice,
    gate_up: DeviceSlice,
    down: DeviceSlice,
    norms: [DeviceSlice; 2],
}

struct Weights {
    layers: Vec<Layer>,
    head: DeviceSlice,
    norm: DeviceSlice,
    all: DeviceSlice,
}

pub(crate) fn all(rig: &mut Rig, ceilings: Ceilings) -> Outcome<()> {
    let mut layers = Vec::new();
    for _ in 0..LAYERS {
        layers.push(Layer {
            qkv: rig.noise(QKV * HIDDEN * 2, 0.02)?,
            o: rig.noise(HIDDEN * HIDDEN * 2, 0.02)?,
            gate_up: rig.noise(2 * FFN * HIDDEN * 2, 0.02)?,
            down: rig.noise(HIDDEN * FFN * 2, 0.02)?,
            norms: [rig.noise(HIDDEN * 2, 1.0)?, rig.noise(HIDDEN * 2, 1.0)?],
        });
    }
    let head = rig.noise(VOCAB * HIDDEN * 2, 0.02)?;
    let norm = rig.noise(HIDDEN * 2, 1.0)?;
    let weights = Weights { layers, head, norm, all: rig.arena.taken() };
    println!(
        "decode step, Llama-3-8B shape, one graph (vLLM 0.26 on the same GPU: 6.53, 6.82, 7.60, 10.69, 15.53 ms)"
    );
    for (seqs, context) in [(1, 576), (8, 576), (32, 576), (128, 576), (256, 576), (8, 16_384)] {
        let mark = rig.arena.used();
        let ms = step(rig, &weights, seqs, context)?;
        let (bytes, flops) = bytes_and_flops(seqs, context);
        line(&format!("batch {seqs}, context {context}"), ms, floor_ms(ceilings, bytes, flops));
        rig.arena.reset_to(mark);
    }
    Ok(())
}

/// Takes what attention needs beside its operands.
pub(crate) fn scratch(
    rig: &mut Rig,
    attention: &PagedAttentionDecode,
    seqs: usize,
) -> Outcome<[DeviceSlice; 3]> {
    let (partial, counters) = attention.scratch_bytes(seqs);
    let partial = rig.arena.take("partial", partial)?;
    let counters = rig.arena.take("counters", counters)?;
    rig.stream.fill(counters, 0)?;
    Ok([partial, counters, rig.arena.take("plan", attention.plan_bytes(seqs))?])
}

/// Returns the milliseconds of a step.
fn step(rig: &mut Rig, weights: &Weights, seqs: usize, context: usize) -> Outcome<f64> {
    let per_seq = context.div_ceil(16);
    let (num_blocks, [context_lens, block_starts, block_ids]) = tables(rig, &vec![context; seqs])?;
    // Block-major: all layers of a block together.
    let stride = HEADS.layer_block_len() * LAYERS;
    let cache = rig.noise(num_blocks * stride * 2, 1.0)?;
    let as_u32 = |n: usize| n as u32;
    let positions = rig.upload_raw(&vec![as_u32(context - 1); seqs])?;
    // Into any block: only the time counts.
    let slots = rig.upload_raw(
        &(0..seqs).map(|s| as_u32(s * per_seq * 16 + context - 1)).collect::<Vec<_>>(),
    )?;
    let rows = rig.upload_raw(&(0..as_u32(seqs)).collect::<Vec<_>>())?;
    let inv_freq =
        rig.upload_raw(&(0..64).map(|i| 500_000f32.powf(-(i as f32) / 64.0)).collect::<Vec<_>>())?;
    let tokens = rig.upload_raw(&vec![7u32; seqs])?;
    let mut take = |cols: usize| rig.arena.take("activations", seqs * cols);
    let [residual, normed, qkv, query] =
        [take(HIDDEN * 2)?, take(HIDDEN * 2)?, take(QKV * 2)?, take(HIDDEN * 2)?];
    let [attended, projected, wide, ffn] =
        [take(HIDDEN * 2)?, take(HIDDEN * 2)?, take(2 * FFN * 2)?, take(FFN * 2)?];
    let [logits, table] = [take(VOCAB * 4)?, take(64 * 8)?];
    let norm = RmsNorm::load(&rig.tools, HIDDEN)?;
    let rope = RopeKvWrite::load(&rig.tools, HEADS)?;
    let attention = PagedAttentionDecode::load(&rig.tools, HEADS)?;
    let gather = Gather::load(&rig.tools)?;
    let greedy = Ready::greedy(rig, seqs, VOCAB, logits)?;
    let workspace = rig.arena.take("products", 36 << 20)?;
    let products = RefCell::new(Products::new(&rig.tools, &rig.stream, workspace)?);
    let [partial, counters, plan] = scratch(rig, &attention, seqs)?;
    let batch = DecodeBatch { num_seqs: seqs, rows, context_lens, block_starts, block_ids };
    let dtype = rig.dtype();
    let product = |w, [x, y]: [DeviceSlice; 2], (out, inner), output, epilogue| -> Outcome<()> {
        let shape = ProductShape { rows: seqs, out, inner, output, epilogue };
        let operands = Operands { x, w, bias: None, y, wide: Some(wide) };
        let mut products = products.borrow_mut();
        Ok(products.run(&rig.tools, &rig.stream, shape, operands, weights.all)?)
    };
    let linear = |w, operands, shape| product(w, operands, shape, dtype, Epilogue::None);
    let work = || -> Outcome<()> {
        let s = &rig.stream;
        gather.run(s, [weights.head, tokens, residual], (tokens, 0..VOCAB), seqs, HIDDEN)?;
        rope.fill_table(s, [positions, inv_freq, table], seqs)?;
        attention.plan(s, plan, &batch, None)?;
        for (i, layer) in weights.layers.iter().enumerate() {
            let before = if i == 0 {
                [residual, layer.norms[0], normed]
            } else {
                [projected, layer.norms[0], normed]
            };
            norm.run(s, before, (i > 0).then_some(residual), seqs, 1e-5)?;
            linear(layer.qkv, [normed, qkv], (QKV, HIDDEN))?;
            let from = i * HEADS.layer_block_len() * 2;
            let kv = KvLayer { data: cache.slice(from, cache.len()), block_stride: stride };
            rope.run(s, [qkv, table, slots, query], kv, None, seqs)?;
            let operands = [query, attended, partial, counters, plan];
            attention.run(s, operands, kv, &batch, (0.088, None))?;
            linear(layer.o, [attended, projected], (HIDDEN, HIDDEN))?;
            norm.run(s, [projected, layer.norms[1], normed], Some(residual), seqs, 1e-5)?;
            product(layer.gate_up, [normed, ffn], (FFN, HIDDEN), dtype, Epilogue::SiluMul)?;
            linear(layer.down, [ffn, projected], (HIDDEN, FFN))?;
        }
        norm.run(s, [projected, weights.norm, normed], Some(residual), seqs, 1e-5)?;
        product(weights.head, [normed, logits], (VOCAB, HIDDEN), Dtype::F32, Epilogue::None)?;
        greedy.run(rig)
    };
    // The first time around the products are timed.
    let start = rig.stream.record()?;
    work()?;
    let first = rig.stream.record()?.ms_since(&start)?;
    println!("  batch {seqs}: the first step took {first:.0} ms");
    let ms = rig.time(15, work)?;
    let picked: Vec<u32> = rig.download_raw(greedy.tokens())?;
    if picked.iter().any(|&token| token as usize >= VOCAB) {
        return Err(format!("decode step at {seqs}: a NaN in the logits").into());
    }
    Ok(ms)
}

/// Returns the bytes that a step reads, and its products' operations.
fn bytes_and_flops(seqs: usize, context: usize) -> (usize, f64) {
    let params = LAYERS * (QKV * HIDDEN + HIDDEN * HIDDEN + 3 * FFN * HIDDEN) + VOCAB * HIDDEN;
    let kv_bytes = seqs * context * HEADS.layer_block_len() / 16 * 2 * LAYERS;
    (2 * params + kv_bytes, 2.0 * (params * seqs) as f64)
}
