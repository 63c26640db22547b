//! Kernels one at a time, each beside its floor.

use stallfree_device::{Dtype, Gemm, GemmSpec, Lt};
use stallfree_kernels::cuda::{
    Ceilings, DecodeBatch, DecodeGemm, DecodeGemmSpec, Epilogue, HeadShape, KvLayer,
    PagedAttentionDecode, PagedAttentionPrefill, PrefillBatch, RmsNorm, SkinnyGemm, SkinnySpec,
    Toolchain,
};

use crate::rig::{Outcome, Rig};
use crate::{checks, sampling};

pub(crate) const HEADS: HeadShape =
    HeadShape { num_heads: 32, num_kv_heads: 8, head_dim: 128, block_size: 16 };
/// The products of a Llama-3-8B layer, and its head: output and inner features.
const SHAPES: [(usize, usize); 5] =
    [(6144, 4096), (4096, 4096), (28_672, 4096), (4096, 14_336), (128_256, 4096)];

/// Times kernels that these families are made of.
type Bench = (&'static [&'static str], fn(&mut Rig, Ceilings) -> Outcome<()>);

pub(crate) const BENCHES: &[Bench] = &[
    (&["attention"], attention),
    (&["rows"], rows),
    (&["skinny_gemm", "decode_gemm", "blas"], all_products),
    (&[checks::SAMPLING], sampling::bench),
];

pub(crate) fn line(what: &str, ms: f64, floor_ms: f64) {
    println!(
        "  {what:48} {:10.1} us  floor {:10.1} us  {:.3} of floor",
        ms * 1e3,
        floor_ms * 1e3,
        floor_ms / ms
    );
}

/// Returns how long reading `bytes` and computing `flops`, side by side, takes at least.
pub(crate) fn floor_ms(ceilings: Ceilings, bytes: usize, flops: f64) -> f64 {
    (bytes as f64 / ceilings.read_bytes_per_s).max(flops / ceilings.gemm_flops) * 1e3
}

fn attention(rig: &mut Rig, ceilings: Ceilings) -> Outcome<()> {
    let mark = rig.arena.used();
    println!("decode attention, one layer, block-major and layer-major cache");
    for (seqs, context) in [(1, 576), (8, 16_384), (64, 4096), (8, 576), (32, 576), (256, 576)] {
        for layers in [1, 32] {
            decode(rig, ceilings, &vec![context; seqs], layers, &format!("{seqs} x {context}"))?;
            rig.arena.reset_to(mark);
        }
    }
    println!("decode attention, contexts spread evenly up to the longest");
    for (seqs, longest) in [(8, 8192), (24, 8192), (48, 8192), (64, 8192), (128, 4096)] {
        let contexts: Vec<usize> = (1..=seqs).map(|seq| seq * longest / seqs).collect();
        decode(rig, ceilings, &contexts, 1, &format!("{seqs} up to {longest}"))?;
        rig.arena.reset_to(mark);
    }
    println!("prefill attention, one layer, ours for Hopper and for Ampere");
    for (seqs, len, context) in
        [(1, 2048, 2048), (1, 8192, 8192), (8, 2048, 2048), (1, 512, 8192), (16, 64, 2048)]
    {
        for ampere_path in [false, true] {
            prefill(rig, ceilings, ampere_path, [seqs, len, context])?;
            rig.arena.reset_to(mark);
        }
    }
    Ok(())
}

fn rows(rig: &mut Rig, ceilings: Ceilings) -> Outcome<()> {
    let mark = rig.arena.used();
    println!("rms_norm with residual, 32 in a graph");
    for rows in [1, 256, 2048] {
        norm(rig, ceilings, rows)?;
        rig.arena.reset_to(mark);
    }
    Ok(())
}

fn all_products(rig: &mut Rig, ceilings: Ceilings) -> Outcome<()> {
    let mark = rig.arena.used();
    println!("matrix products: ours, cuBLASLt's best of its candidates, its first guess");
    for rows in [1, 8, 16, 32, 64, 128, 256, 2048] {
        for (out, inner) in SHAPES {
            // The head takes no more than the last rows, as floats.
            if (rows, out) != (2048, 128_256) {
                products(rig, ceilings, [rows, out, inner])?;
                rig.arena.reset_to(mark);
            }
        }
    }
    Ok(())
}

fn norm(rig: &mut Rig, ceilings: Ceilings, rows: usize) -> Outcome<()> {
    let bytes = rows * 4096 * 2;
    let [x, residual, weight] =
        [rig.noise(bytes, 1.0)?, rig.noise(bytes, 1.0)?, rig.noise(8192, 1.0)?];
    let out = rig.noise(bytes, 1.0)?;
    let kernel = RmsNorm::load(&rig.tools, 4096)?;
    let ms = rig.time(20, || {
        for _ in 0..32 {
            kernel.run(&rig.stream, [x, weight, out], Some(residual), rows, 1e-5)?;
        }
        Ok(())
    })? / 32.0;
    line(&format!("{rows} x 4096"), ms, floor_ms(ceilings, 4 * bytes, 0.0));
    Ok(())
}

pub(crate) fn tables(
    rig: &mut Rig,
    contexts: &[usize],
) -> Outcome<(usize, [stallfree_device::DeviceSlice; 3])> {
    let mut num_blocks = 0;
    let mut starts = Vec::new();
    for context in contexts {
        starts.push(num_blocks as u32);
        num_blocks += context.div_ceil(16);
    }
    let mut ids: Vec<u32> = (0..num_blocks as u32).collect();
    for i in (1..num_blocks).rev() {
        let other = rig.below(i + 1);
        ids.swap(i, other);
    }
    let contexts: Vec<u32> = contexts.iter().map(|&context| context as u32).collect();
    let (contexts, starts) = (rig.upload_raw(&contexts)?, rig.upload_raw(&starts)?);
    Ok((num_blocks, [contexts, starts, rig.upload_raw(&ids)?]))
}

fn decode(
    rig: &mut Rig,
    ceilings: Ceilings,
    contexts: &[usize],
    layers: usize,
    what: &str,
) -> Outcome<()> {
    let seqs = contexts.len();
    let (num_blocks, [context_lens, block_starts, block_ids]) = tables(rig, contexts)?;
    let stride = HEADS.layer_block_len() * layers;
    if num_blocks * stride * 2 > 20 << 30 {
        return Ok(());
    }
    let data = rig.noise(num_blocks * stride * 2, 1.0)?;
    let layer_bytes = num_blocks * HEADS.layer_block_len() * 2;
    let (query, out) = (rig.noise(seqs * 4096 * 2, 1.0)?, rig.noise(seqs * 4096 * 2, 1.0)?);
    let kernel = PagedAttentionDecode::load(&rig.tools, HEADS)?;
    let rows = rig.upload_raw(&(0..seqs as u32).collect::<Vec<_>>())?;
    let [partial, counters, plan] = crate::step::scratch(rig, &kernel, seqs)?;
    let batch = DecodeBatch { num_seqs: seqs, rows, context_lens, block_starts, block_ids };
    kernel.plan(&rig.stream, plan, &batch, None)?;
    // Layers in turn where there are several, so that a small cache is not read from L2.
    let ms = rig.time(10, || {
        for layer in 0..layers {
            let from = layer * HEADS.layer_block_len() * 2;
            let kv = KvLayer { data: data.slice(from, data.len()), block_stride: stride };
            kernel.run(
                &rig.stream,
                [query, out, partial, counters, plan],
                kv,
                &batch,
                (0.088, None),
            )?;
        }
        Ok(())
    })? / layers as f64;
    let floor = floor_ms(ceilings, layer_bytes, 0.0);
    line(&format!("{what}, {layers} layers in a block"), ms, floor);
    Ok(())
}

fn prefill(
    rig: &mut Rig,
    ceilings: Ceilings,
    ampere_path: bool,
    [seqs, len, context]: [usize; 3],
) -> Outcome<()> {
    let (num_blocks, [context_lens, block_starts, block_ids]) = tables(rig, &vec![context; seqs])?;
    let stride = HEADS.layer_block_len();
    let data = rig.noise(num_blocks * stride * 2, 1.0)?;
    let bytes = seqs * len * 4096 * 2;
    let (query, out) = (rig.noise(bytes, 1.0)?, rig.noise(bytes, 1.0)?);
    let ampere_path = ampere_path || rig.tools.ampere_path;
    let kernel =
        PagedAttentionPrefill::load(&Toolchain { ampere_path, ..rig.tools.clone() }, HEADS)?;
    let tiles = kernel.tiles(&vec![(len, context); seqs]);
    let seq_rows = rig.upload_raw(&(0..seqs).map(|s| (s * len) as u32).collect::<Vec<_>>())?;
    let seq_lens = rig.upload_raw(&vec![len as u32; seqs])?;
    let batch = PrefillBatch {
        num_tiles: tiles.len(),
        tiles: rig.upload_raw(tiles.as_flattened())?,
        seq_rows,
        seq_lens,
        context_lens,
        block_starts,
        block_ids,
        num_keys: seqs * context,
    };
    let kv = KvLayer { data, block_stride: stride };
    let ms =
        rig.time(10, || Ok(kernel.run(&rig.stream, [query, out], kv, &batch, (0.088, None))?))?;
    let flops = 4.0 * (seqs * len * (context - len / 2)) as f64 * 4096.0;
    let rate = flops / ms / 1e9;
    let what = format!("{seqs} x {len} of {context}, sm80={ampere_path}: {rate:.0} TFLOP/s");
    line(&what, ms, floor_ms(ceilings, 0, flops));
    Ok(())
}

fn products(rig: &mut Rig, ceilings: Ceilings, shape: [usize; 3]) -> Outcome<()> {
    let [rows, out, inner] = shape;
    let f32_out = out > 100_000;
    let (x, y) = (rig.noise(rows * inner * 2, 1.0)?, rig.noise(rows * out * 4, 1.0)?);
    // Enough weights that none stays in the cache.
    let copies = ((512 << 20) / (out * inner * 2)).max(3);
    let weights =
        (0..copies).map(|_| rig.noise(out * inner * 2, 0.02)).collect::<Outcome<Vec<_>>>()?;
    let floor = floor_ms(ceilings, out * inner * 2, 2.0 * (rows * out * inner) as f64);
    let name = format!("{rows} x {out} x {inner}");
    if let Some(spec) = SkinnySpec::for_rows(rows, Epilogue::None, f32_out) {
        let kernel = SkinnyGemm::load(&rig.tools, spec)?;
        let run = |&w| Ok(kernel.run(&rig.stream, [w, x, y], None, shape)?);
        let ms = rig.time(10, || weights.iter().try_for_each(run))? / copies as f64;
        line(&format!("{name} skinny_gemm"), ms, floor);
    }
    if DecodeGemm::takes(&rig.tools, Epilogue::None, [out, inner]) {
        let mut best = (f64::INFINITY, String::new());
        for spec in DecodeGemmSpec::for_rows(rows, Epilogue::None, f32_out) {
            let kernel = DecodeGemm::load(&rig.tools, spec)?;
            for division in kernel.divisions(out, inner) {
                let mark = rig.arena.used();
                let (partial, counters) = kernel.scratch_bytes(out, division);
                let partial = rig.arena.take("partial", partial)?;
                let counters = rig.arena.take("counters", counters)?;
                rig.stream.fill(counters, 0)?;
                let run = |&w| {
                    let operands = [w, x, y, partial, counters];
                    Ok(kernel.run(&rig.stream, operands, None, shape, division)?)
                };
                let ms = rig.time(10, || weights.iter().try_for_each(run))? / copies as f64;
                if ms < best.0 {
                    let blocks = format!("{} blocks, {}", division.blocks, division.sharers);
                    best = (ms, format!("{} x {}, {blocks}", spec.tokens, spec.warpgroups));
                }
                rig.arena.reset_to(mark);
            }
        }
        if best.0.is_finite() {
            line(&format!("{name} decode_gemm {}", best.1), best.0, floor);
        }
    }
    let workspace = rig.arena.take("cuBLASLt", 32 << 20)?;
    let lt = Lt::new(&rig.tools.device, workspace)?;
    let input = rig.dtype();
    let output = if f32_out { Dtype::F32 } else { input };
    let mut plan = lt.plan(GemmSpec { rows, out, inner, input, output })?;
    let mut times = Vec::new();
    for candidate in 0..plan.candidates() {
        plan.choose(candidate);
        let run = |&w| Ok(lt.run(&rig.stream, &plan, Gemm { x, w, y })?);
        times.push(rig.time(10, || weights.iter().try_for_each(run))? / copies as f64);
    }
    let best = times.iter().copied().fold(f64::INFINITY, f64::min);
    line(&format!("{name} cuBLASLt ({:.1} us guess)", times[0] * 1e3), best, floor);
    Ok(())
}
