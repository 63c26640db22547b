//! A whole decode step of the Llama-3-8B shape as one graph: every op of every layer, the head and the greedy choice.

use std::collections::HashMap;

use stallfree_device::{DeviceSlice, Dtype, Gemm, GemmPlan, GemmSpec, Lt};
use stallfree_kernels::cuda::{
    DecodeBatch, Epilogue, Gather, KvLayer, PagedAttentionDecode, RmsNorm, RopeKvWrite, SiluMul,
    SkinnyGemm, SkinnySpec,
};

use crate::bench::{HEADS, line};
use crate::rig::{FLOPS, Outcome, READ_BYTES_PER_S, Rig};
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
}

pub(crate) fn all(rig: &mut Rig) -> Outcome<()> {
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
    let weights = Weights { layers, head, norm: rig.noise(HIDDEN * 2, 1.0)? };
    println!(
        "decode step, Llama-3-8B shape, one graph (vLLM 0.26 on the same GPU: 6.53, 6.82, 7.60, 10.69, 15.53 ms)"
    );
    for (seqs, context) in [(1, 576), (8, 576), (32, 576), (128, 576), (256, 576), (8, 16_384)] {
        let mark = rig.arena.used();
        step(rig, &weights, seqs, context)?;
        rig.arena.reset_to(mark);
    }
    Ok(())
}

/// Chooses between our kernel and cuBLASLt by the number of rows.
struct Products {
    plain: Option<SkinnyGemm>,
    gated: Option<SkinnyGemm>,
    head: Option<SkinnyGemm>,
    silu: SiluMul,
    lt: Lt,
    plans: HashMap<(usize, usize, Dtype), GemmPlan>,
    rows: usize,
}

impl Products {
    fn new(rig: &mut Rig, weights: &Weights, rows: usize, scratch: DeviceSlice) -> Outcome<Self> {
        let skinny = |epilogue, f32_out| {
            // From 9 rows on the library's candidates are as fast or faster.
            SkinnySpec::for_rows(rows, epilogue, f32_out)
                .filter(|spec| spec.max_rows <= 8)
                .map(|spec| SkinnyGemm::load(&rig.tools, spec))
                .transpose()
        };
        let (plain, gated) = (skinny(Epilogue::None, false)?, skinny(Epilogue::SiluMul, false)?);
        let head = skinny(Epilogue::None, true)?;
        let workspace = rig.arena.take("cuBLASLt", 32 << 20)?;
        let lt = Lt::new(&rig.tools.device, workspace)?;
        let silu = SiluMul::load(&rig.tools)?;
        let mut plans = HashMap::new();
        if plain.is_none() {
            let dtype = rig.dtype();
            let x = rig.noise(rows * FFN * 2, 1.0)?;
            let first = &weights.layers[0];
            for (out, inner, output, w) in [
                (QKV, HIDDEN, dtype, first.qkv),
                (HIDDEN, HIDDEN, dtype, first.o),
                (2 * FFN, HIDDEN, dtype, first.gate_up),
                (HIDDEN, FFN, dtype, first.down),
                (VOCAB, HIDDEN, Dtype::F32, weights.head),
            ] {
                let mut plan = lt.plan(GemmSpec { rows, out, inner, input: dtype, output })?;
                lt.tune(&rig.stream, &mut plan, &[Gemm { x, w, y: scratch }], 5)?;
                plans.insert((out, inner, output), plan);
            }
        }
        Ok(Self { plain, gated, head, silu, lt, plans, rows })
    }

    fn run(
        &self,
        rig: &Rig,
        w: DeviceSlice,
        x: DeviceSlice,
        y: DeviceSlice,
        (out, inner): (usize, usize),
    ) -> Outcome<()> {
        let is_head = out == VOCAB;
        if let Some(kernel) = if is_head { &self.head } else { &self.plain } {
            return Ok(kernel.run(&rig.stream, [w, x, y], None, [self.rows, out, inner])?);
        }
        let output = if is_head { Dtype::F32 } else { rig.dtype() };
        Ok(self.lt.run(&rig.stream, &self.plans[&(out, inner, output)], Gemm { x, w, y })?)
    }

    fn gate_up(
        &self,
        rig: &Rig,
        w: DeviceSlice,
        x: DeviceSlice,
        [wide, y]: [DeviceSlice; 2],
    ) -> Outcome<()> {
        if let Some(kernel) = &self.gated {
            return Ok(kernel.run(&rig.stream, [w, x, y], None, [self.rows, FFN, HIDDEN])?);
        }
        self.run(rig, w, x, wide, (2 * FFN, HIDDEN))?;
        Ok(self.silu.run(&rig.stream, [wide, y], self.rows, FFN)?)
    }
}

fn step(rig: &mut Rig, weights: &Weights, seqs: usize, context: usize) -> Outcome<()> {
    let per_seq = context.div_ceil(16);
    let num_blocks = seqs * per_seq;
    // Block-major: all layers of a block together.
    let stride = HEADS.layer_block_len() * LAYERS;
    let cache = rig.noise(num_blocks * stride * 2, 1.0)?;
    let as_u32 = |n: usize| n as u32;
    let positions = rig.upload_raw(&vec![as_u32(context - 1); seqs])?;
    let context_lens = rig.upload_raw(&vec![as_u32(context); seqs])?;
    let slots = rig.upload_raw(
        &(0..seqs).map(|s| as_u32(s * per_seq * 16 + context - 1)).collect::<Vec<_>>(),
    )?;
    let block_starts =
        rig.upload_raw(&(0..seqs).map(|s| as_u32(s * per_seq)).collect::<Vec<_>>())?;
    let block_ids = rig.upload_raw(&(0..as_u32(num_blocks)).collect::<Vec<_>>())?;
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
    let products = Products::new(rig, weights, seqs, logits)?;
    let splits = attention.splits(seqs, context);
    let (partial, counters) = attention.scratch_bytes(seqs, splits);
    let (partial, counters) =
        (rig.arena.take("partial", partial)?, rig.arena.take("counters", counters)?);
    rig.stream.fill(counters, 0)?;
    let batch = DecodeBatch { num_seqs: seqs, rows, context_lens, block_starts, block_ids, splits };
    let work = || -> Outcome<()> {
        let s = &rig.stream;
        gather.run(s, [weights.head, tokens, residual], (tokens, VOCAB), seqs, HIDDEN)?;
        rope.fill_table(s, [positions, inv_freq, table], seqs)?;
        for (i, layer) in weights.layers.iter().enumerate() {
            let before = if i == 0 {
                [residual, layer.norms[0], normed]
            } else {
                [projected, layer.norms[0], normed]
            };
            norm.run(s, before, (i > 0).then_some(residual), seqs, 1e-5)?;
            products.run(rig, layer.qkv, normed, qkv, (QKV, HIDDEN))?;
            let from = i * HEADS.layer_block_len() * 2;
            let kv = KvLayer { data: cache.slice(from, cache.len()), block_stride: stride };
            rope.run(s, [qkv, table, slots, query], kv, None, seqs)?;
            attention.run(s, [query, attended, partial, counters], kv, &batch, (0.088, None))?;
            products.run(rig, layer.o, attended, projected, (HIDDEN, HIDDEN))?;
            norm.run(s, [projected, layer.norms[1], normed], Some(residual), seqs, 1e-5)?;
            products.gate_up(rig, layer.gate_up, normed, [wide, ffn])?;
            products.run(rig, layer.down, ffn, projected, (HIDDEN, FFN))?;
        }
        norm.run(s, [projected, weights.norm, normed], Some(residual), seqs, 1e-5)?;
        products.run(rig, weights.head, normed, logits, (VOCAB, HIDDEN))?;
        greedy.run(rig)
    };
    let ms = rig.time(15, work)?;
    let picked: Vec<u32> = rig.download_raw(greedy.tokens())?;
    if picked.iter().any(|&token| token as usize >= VOCAB) {
        return Err(format!("decode step at {seqs}: a NaN in the logits").into());
    }
    let params = LAYERS * (QKV * HIDDEN + HIDDEN * HIDDEN + 3 * FFN * HIDDEN) + VOCAB * HIDDEN;
    let kv_bytes = seqs * context * HEADS.layer_block_len() / 16 * 2 * LAYERS;
    let floor = ((2 * params + kv_bytes) as f64 / READ_BYTES_PER_S)
        .max(2.0 * (params * seqs) as f64 / FLOPS);
    line(&format!("batch {seqs}, context {context}"), ms, floor * 1e3);
    Ok(())
}
