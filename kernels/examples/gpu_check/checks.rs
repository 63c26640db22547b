//! Every kernel against the reference, over odd shapes.

use stallfree_device::{DeviceSlice, Gemm, GemmSpec, Lt};
use stallfree_kernels::chosen_at;
use stallfree_kernels::cuda::{
    DecodeBatch, DecodeGemm, DecodeGemmSpec, Epilogue, Gather, HeadShape, KvLayer,
    PagedAttentionDecode, PagedAttentionPrefill, PrefillBatch, QkNorms, RmsNorm, RopeKvWrite,
    SiluMul, SkinnyGemm, SkinnySpec,
};

use crate::reference;
use crate::rig::{Outcome, Rig, from_f32, to_f32};
use crate::sampling;

/// A family of kernels and its checks.
pub(crate) type Family = (&'static str, fn(&mut Rig) -> Outcome<()>);

/// All of them.
pub(crate) const FAMILIES: &[Family] = &[
    ("rows", rows),
    ("skinny_gemm", skinny_gemms),
    ("decode_gemm", decode_gemms),
    ("blas", blas_gemms),
    ("attention", attention),
    (SAMPLING, sampling::check),
];
pub(crate) const SAMPLING: &str = "sampling";

/// What follows a product, and whether its result is single precision.
const ENDS: [(Epilogue, bool); 3] =
    [(Epilogue::None, false), (Epilogue::None, true), (Epilogue::SiluMul, false)];

fn rows(rig: &mut Rig) -> Outcome<()> {
    let mark = rig.arena.used();
    for (rows, cols) in [(1, 8), (3, 576), (7, 1000), (2, 4096), (5, 8192), (1, 16384)] {
        rms_norm(rig, rows, cols)?;
        rig.arena.reset_to(mark);
    }
    for (rows, cols) in [(1, 8), (5, 1544), (3, 14336)] {
        silu_mul(rig, rows, cols)?;
        gather(rig, rows, cols)?;
        rig.arena.reset_to(mark);
    }
    Ok(())
}

fn skinny_gemms(rig: &mut Rig) -> Outcome<()> {
    let mark = rig.arena.used();
    for rows in [1, 2, 7, 8, 9, 16, 17, 32] {
        for (out, inner) in [(17, 32), (576, 576), (1000, 1536), (33, 4128)] {
            for (epilogue, f32_out) in ENDS {
                skinny(rig, [rows, out, inner], epilogue, f32_out)?;
                rig.arena.reset_to(mark);
            }
        }
    }
    Ok(())
}

fn decode_gemms(rig: &mut Rig) -> Outcome<()> {
    let mark = rig.arena.used();
    for rows in [1, 7, 9, 24, 33, 64, 100, 129, 256] {
        for (out, inner) in [(24, 8), (1000, 520), (584, 576), (4096, 1536)] {
            for (epilogue, f32_out) in ENDS {
                if DecodeGemm::takes(&rig.tools, epilogue, [out, inner]) {
                    decode_gemm(rig, [rows, out, inner], epilogue, f32_out)?;
                    rig.arena.reset_to(mark);
                }
            }
        }
    }
    if DecodeGemm::takes(&rig.tools, Epilogue::None, [1001, 72]) {
        decode_gemm(rig, [13, 1001, 72], Epilogue::None, false)?;
        rig.arena.reset_to(mark);
    }
    Ok(())
}

fn blas_gemms(rig: &mut Rig) -> Outcome<()> {
    let mark = rig.arena.used();
    for (rows, out, inner) in [(1, 576, 576), (33, 1000, 1536), (300, 512, 4096)] {
        blas(rig, rows, out, inner)?;
        rig.arena.reset_to(mark);
    }
    Ok(())
}

fn attention(rig: &mut Rig) -> Outcome<()> {
    let mark = rig.arena.used();
    for (num_heads, num_kv_heads, head_dim, block_size) in [
        (9, 3, 64, 16),
        (4, 4, 96, 32),
        (8, 2, 128, 16),
        (14, 2, 128, 16),
        (16, 1, 128, 64),
        (4, 2, 256, 16),
        (8, 1, 256, 16),
    ] {
        let heads = HeadShape { num_heads, num_kv_heads, head_dim, block_size };
        rope(rig, heads, head_dim == 128)?;
        for window in [None, Some(37)] {
            decode(rig, heads, window, &[1, 16, 17, 63, 300, 1025])?;
            let ragged = [(1, 1), (5, 5), (70, 133), (1, 200), (33, 33), (129, 300), (150, 700)];
            prefill(rig, heads, window, &ragged)?;
            // More tiles than a GPU has multiprocessors.
            prefill(rig, heads, window, &[(3, 40); 150])?;
        }
        rig.arena.reset_to(mark);
    }
    // More sequences than there are threads that share the work out.
    let heads = HeadShape { num_heads: 6, num_kv_heads: 2, head_dim: 64, block_size: 16 };
    let mut contexts: Vec<usize> = (0..600).map(|seq| 1 + seq * 7 % 90).collect();
    contexts[444] = 3000;
    decode(rig, heads, None, &contexts)?;
    rig.arena.reset_to(mark);
    Ok(())
}

fn rms_norm(rig: &mut Rig, rows: usize, cols: usize) -> Outcome<()> {
    let (x, mut residual) = (rig.random(rows * cols, 1.0), rig.random(rows * cols, 2.0));
    let weight = rig.random(cols, 1.0);
    let kernel = RmsNorm::load(&rig.tools, cols)?;
    let (dx, dw) = (rig.upload(&x)?, rig.upload(&weight)?);
    let (out, sum) = (rig.output(rows * cols * 2)?, rig.output(rows * cols * 2)?);
    kernel.run(&rig.stream, [dx, dw, out.data], None, rows, 1e-5)?;
    rig.compare(&format!("rms_norm {rows}x{cols}"), &out, &reference::rms_norm(&x, &weight, 1e-5))?;
    let before = rig.upload(&residual)?;
    rig.stream.copy(sum.data, before)?;
    kernel.run(&rig.stream, [dx, dw, out.data], Some(sum.data), rows, 1e-5)?;
    let dtype = rig.dtype();
    for (r, v) in residual.iter_mut().zip(&x) {
        *r = to_f32(from_f32(*r + v, dtype), dtype);
    }
    rig.compare(&format!("add_rms_norm {rows}x{cols}: sum"), &sum, &residual)?;
    let expected = reference::rms_norm(&residual, &weight, 1e-5);
    rig.compare(&format!("add_rms_norm {rows}x{cols}"), &out, &expected)
}

fn silu_mul(rig: &mut Rig, rows: usize, cols: usize) -> Outcome<()> {
    let x = rig.random(rows * cols * 2, 2.0);
    let (dx, out) = (rig.upload(&x)?, rig.output(rows * cols * 2)?);
    SiluMul::load(&rig.tools)?.run(&rig.stream, [dx, out.data], rows, cols)?;
    let expected: Vec<f32> = x
        .chunks(cols * 2)
        .flat_map(|row| (0..cols).map(|i| reference::silu_mul(row[i], row[cols + i])))
        .collect();
    rig.compare(&format!("silu_mul {rows}x{cols}"), &out, &expected)
}

fn gather(rig: &mut Rig, rows: usize, cols: usize) -> Outcome<()> {
    let table = rig.random(11 * cols, 1.0);
    let index: Vec<u32> = (0..rows).map(|i| (i as u32 * 7 + 10) % 11).collect();
    // Every third row's index is named by its place in the device's own choices, and one of them is no row of the table.
    let place = |i: usize| if i % 3 == 1 { chosen_at(i as u32 / 3) } else { index[i] };
    let named: Vec<u32> = (0..rows).map(place).collect();
    let mut chosen: Vec<u32> = index.iter().skip(1).step_by(3).copied().collect();
    let mut index = index.clone();
    let mut rows_of_table = table.clone();
    rows_of_table.resize(12 * cols, 0.0);
    if let Some(first) = chosen.first_mut() {
        (*first, index[1]) = (u32::MAX, 11);
    }
    chosen.push(3);
    let (dt, di, dc) = (rig.upload(&table)?, rig.upload_raw(&named)?, rig.upload_raw(&chosen)?);
    let out = rig.output(rows * cols * 2)?;
    Gather::load(&rig.tools)?.run(&rig.stream, [dt, di, out.data], (dc, 0..11), rows, cols)?;
    let expected: Vec<f32> = index
        .iter()
        .flat_map(|&i| rows_of_table[i as usize * cols..][..cols].iter().copied())
        .collect();
    rig.compare(&format!("gather {rows}x{cols}"), &out, &expected)
}

/// `x · wᵀ` with its bias or epilogue, in double precision.
fn product(x: &[f32], w: &[f32], bias: &[f32], inner: usize, epilogue: Epilogue) -> Vec<f32> {
    let out = bias.len();
    let plain = epilogue == Epilogue::None;
    let products = reference::matmul(x, w, inner);
    let rows = products.chunks(if plain { out } else { 2 * out });
    let value = |row: &[f32], i: usize| {
        if plain { row[i] + bias[i] } else { reference::silu_mul(row[i], row[out + i]) }
    };
    rows.flat_map(|row| (0..out).map(|i| value(row, i)).collect::<Vec<_>>()).collect()
}

fn skinny(rig: &mut Rig, shape: [usize; 3], epilogue: Epilogue, f32_out: bool) -> Outcome<()> {
    let [rows, out, inner] = shape;
    let Some(spec) = SkinnySpec::for_rows(rows, epilogue, f32_out) else {
        return Err(format!("no skinny kernel for {rows} rows").into());
    };
    let plain = epilogue == Epilogue::None;
    let w_rows = if plain { out } else { 2 * out };
    let (x, w) = (rig.random(rows * inner, 1.0), rig.random(w_rows * inner, 0.05));
    let bias = rig.random(out, 1.0);
    let (dx, dw, db) = (rig.upload(&x)?, rig.upload(&w)?, rig.upload(&bias)?);
    let y = rig.output(rows * out * if f32_out { 4 } else { 2 })?;
    let kernel = SkinnyGemm::load(&rig.tools, spec)?;
    kernel.run(&rig.stream, [dw, dx, y.data], plain.then_some(db), shape)?;
    let expected = product(&x, &w, &bias, inner, epilogue);
    let what = format!("skinny_gemm {rows}x{out}x{inner} {epilogue:?} f32={f32_out}");
    if f32_out {
        rig.check_guards(&what, &y)?;
        return crate::rig::compare(&what, &rig.download_raw(y.data)?, &expected, 1e-5);
    }
    rig.compare(&what, &y, &expected)
}

/// Every specialization and division of a shape, twice: the second result has the first's bits.
fn decode_gemm(rig: &mut Rig, shape: [usize; 3], epilogue: Epilogue, f32_out: bool) -> Outcome<()> {
    let [rows, out, inner] = shape;
    let plain = epilogue == Epilogue::None;
    let w_rows = if plain { out } else { 2 * out };
    let (x, w) = (rig.random(rows * inner, 1.0), rig.random(w_rows * inner, 0.05));
    let bias = rig.random(out, 1.0);
    let (dx, dw, db) = (rig.upload(&x)?, rig.upload(&w)?, rig.upload(&bias)?);
    let expected = product(&x, &w, &bias, inner, epilogue);
    for spec in DecodeGemmSpec::for_rows(rows, epilogue, f32_out) {
        let kernel = DecodeGemm::load(&rig.tools, spec)?;
        for division in kernel.divisions(out, inner) {
            let mark = rig.arena.used();
            let (partial, counters) = kernel.scratch_bytes(out, division);
            let partial = rig.output(partial)?.data;
            let counters = rig.arena.take("counters", counters)?;
            rig.stream.fill(counters, 0)?;
            let y = rig.output(rows * out * if f32_out { 4 } else { 2 })?;
            let what = format!("decode_gemm {rows}x{out}x{inner} {spec:?} {division:?}");
            let mut bits = Vec::new();
            for _ in 0..2 {
                let operands = [dw, dx, y.data, partial, counters];
                kernel.run(&rig.stream, operands, plain.then_some(db), shape, division)?;
                let got: Vec<u8> = rig.download_raw(y.data)?;
                if !bits.is_empty() && bits != got {
                    return Err(format!("{what}: another result the second time").into());
                }
                bits = got;
            }
            rig.check_guards(&what, &y)?;
            if f32_out {
                crate::rig::compare(&what, &rig.download_raw(y.data)?, &expected, 1e-5)?;
            } else {
                rig.compare(&what, &y, &expected)?;
            }
            rig.arena.reset_to(mark);
        }
    }
    Ok(())
}

fn blas(rig: &mut Rig, rows: usize, out: usize, inner: usize) -> Outcome<()> {
    let (x, w) = (rig.random(rows * inner, 1.0), rig.random(out * inner, 0.05));
    let (dx, dw) = (rig.upload(&x)?, rig.upload(&w)?);
    let y = rig.output(rows * out * 2)?;
    let workspace = rig.arena.take("cuBLASLt", 32 << 20)?;
    let lt = Lt::new(&rig.tools.device, workspace)?;
    let dtype = rig.dtype();
    let mut plan = lt.plan(GemmSpec { rows, out, inner, input: dtype, output: dtype })?;
    let gemm = Gemm { x: dx, w: dw, y: y.data };
    let expected = reference::matmul(&x, &w, inner);
    for candidate in 0..plan.candidates() {
        plan.choose(candidate);
        rig.stream.fill(y.data, 0xff)?;
        lt.run(&rig.stream, &plan, gemm)?;
        rig.compare(&format!("cublasLt {rows}x{out}x{inner}, {candidate}"), &y, &expected)?;
    }
    Ok(())
}

fn rope(rig: &mut Rig, heads: HeadShape, normed: bool) -> Outcome<()> {
    let HeadShape { num_heads, num_kv_heads, head_dim, block_size } = heads;
    let (tokens, blocks, all) = (5, 7, num_heads + 2 * num_kv_heads);
    let qkv = rig.random(tokens * all * head_dim, 1.0);
    let positions = [0u32, 1, 4095, 31, 131_071];
    let slots: Vec<u32> = [3, 5, 0, 6, 1]
        .iter()
        .zip([0, 5, 15, 2, 9])
        .map(|(b, o)| b * block_size as u32 + o)
        .collect();
    let inv_freq: Vec<f32> =
        (0..head_dim / 2).map(|i| 500_000f32.powf(-2.0 * i as f32 / head_dim as f32)).collect();
    let norms = [rig.random(head_dim, 1.0), rig.random(head_dim, 1.0)];
    let uploads = [rig.upload_raw(&positions)?, rig.upload_raw(&inv_freq)?];
    let table = rig.arena.take("table", tokens * head_dim / 2 * 8)?;
    let (dq, ds) = (rig.upload(&qkv)?, rig.upload_raw(&slots)?);
    let query = rig.output(tokens * num_heads * head_dim * 2)?;
    let stride = heads.layer_block_len() + 64; // blocks need not be packed
    let kv = rig.output(blocks * stride * 2)?;
    let kernel = RopeKvWrite::load(&rig.tools, heads)?;
    kernel.fill_table(&rig.stream, [uploads[0], uploads[1], table], tokens)?;
    let given = if normed {
        Some(QkNorms { query: rig.upload(&norms[0])?, key: rig.upload(&norms[1])?, eps: 1e-6 })
    } else {
        None
    };
    let layer = KvLayer { data: kv.data, block_stride: stride };
    kernel.run(&rig.stream, [dq, table, ds, query.data], layer, given, tokens)?;
    rig.check_guards("rope_kv_write: cache", &kv)?;
    let cache = rig.download(kv.data)?;
    let (mut queries, mut cached, mut expected) = (Vec::new(), Vec::new(), Vec::new());
    for (token, &position) in positions.iter().enumerate() {
        for head in 0..all {
            let at = (token * all + head) * head_dim;
            let raw = &qkv[at..at + head_dim];
            let is_value = head >= num_heads + num_kv_heads;
            let prepared = if normed && !is_value {
                reference::rms_norm(raw, &norms[usize::from(head >= num_heads)], 1e-6)
            } else {
                raw.to_vec()
            };
            if head < num_heads {
                queries.extend(reference::rotate(&prepared, position, &inv_freq));
                continue;
            }
            expected.extend(if is_value {
                prepared
            } else {
                reference::rotate(&prepared, position, &inv_freq)
            });
            let (block, offset) =
                (slots[token] as usize / block_size, slots[token] as usize % block_size);
            let at = block * stride + ((head - num_heads) * block_size + offset) * head_dim;
            cached.extend_from_slice(&cache[at..at + head_dim]);
        }
    }
    let untouched = cache.iter().filter(|v| v.is_nan()).count();
    if untouched != cache.len() - cached.len() {
        return Err("rope_kv_write: wrote outside its slots".into());
    }
    crate::rig::compare(&format!("rope_kv_write {heads:?}: cache"), &cached, &expected, 8e-3)?;
    rig.compare(&format!("rope_kv_write {heads:?}: query"), &query, &queries)
}

/// A random cache, poisoned where no token lies, and block tables in random order.
struct Cache {
    layer: KvLayer,
    values: Vec<f32>,
    tables: Vec<Vec<u32>>,
    starts: DeviceSlice,
    ids: DeviceSlice,
    contexts: DeviceSlice,
}

fn cache(rig: &mut Rig, heads: HeadShape, contexts: &[usize]) -> Outcome<Cache> {
    let needed: Vec<usize> = contexts.iter().map(|c| c.div_ceil(heads.block_size)).collect();
    let num_blocks: usize = needed.iter().sum::<usize>() + 3;
    let stride = heads.layer_block_len() + 128;
    let mut free: Vec<u32> = (0..num_blocks as u32).collect();
    let mut values = vec![f32::NAN; num_blocks * stride];
    let mut tables = Vec::new();
    for (&context, &count) in contexts.iter().zip(&needed) {
        let table: Vec<u32> = (0..count)
            .map(|_| {
                let at = rig.below(free.len());
                free.swap_remove(at)
            })
            .collect();
        for position in 0..context {
            for side_head in 0..2 * heads.num_kv_heads {
                let at = slot(heads, stride, &table, side_head, position);
                let row = rig.random(heads.head_dim, 1.0);
                values[at..at + heads.head_dim].copy_from_slice(&row);
            }
        }
        tables.push(table);
    }
    let starts: Vec<u32> = tables
        .iter()
        .scan(0, |start, table| {
            let now = *start;
            *start += table.len() as u32;
            Some(now)
        })
        .collect();
    let data = rig.upload(&values)?;
    Ok(Cache {
        layer: KvLayer { data, block_stride: stride },
        starts: rig.upload_raw(&starts)?,
        ids: rig.upload_raw(&tables.concat())?,
        contexts: rig.upload_raw(&contexts.iter().map(|&c| c as u32).collect::<Vec<_>>())?,
        values,
        tables,
    })
}

/// Where a position's key (`side_head` below the KV heads) or value begins.
fn slot(
    heads: HeadShape,
    stride: usize,
    table: &[u32],
    side_head: usize,
    position: usize,
) -> usize {
    table[position / heads.block_size] as usize * stride
        + (side_head * heads.block_size + position % heads.block_size) * heads.head_dim
}

/// Attends all heads of one token at `position` of sequence `seq`.
fn attend_token(
    cache: &Cache,
    heads: HeadShape,
    query: &[f32],
    (seq, position): (usize, usize),
    window: Option<usize>,
) -> Vec<f32> {
    let first = window.map_or(0, |w| (position + 1).saturating_sub(w));
    let rows = |side_head: usize| -> Vec<&[f32]> {
        (first..=position)
            .map(|p| {
                &cache.values
                    [slot(heads, cache.layer.block_stride, &cache.tables[seq], side_head, p)..]
                    [..heads.head_dim]
            })
            .collect()
    };
    let scale = (heads.head_dim as f32).sqrt().recip();
    (0..heads.num_heads)
        .flat_map(|head| {
            let kv_head = head * heads.num_kv_heads / heads.num_heads;
            let query = &query[head * heads.head_dim..][..heads.head_dim];
            reference::attend(query, &rows(kv_head), &rows(heads.num_kv_heads + kv_head), scale)
        })
        .collect()
}

fn decode(
    rig: &mut Rig,
    heads: HeadShape,
    window: Option<usize>,
    contexts: &[usize],
) -> Outcome<()> {
    let cols = heads.num_heads * heads.head_dim;
    let cache = cache(rig, heads, contexts)?;
    let query = rig.random(contexts.len() * cols, 1.0);
    let dq = rig.upload(&query)?;
    let order: Vec<u32> = (0..contexts.len() as u32).rev().collect();
    let rows = rig.upload_raw(&order)?;
    let mut expected = vec![0.0; query.len()];
    for (seq, (&context, &row)) in contexts.iter().zip(&order).enumerate() {
        let at = row as usize * cols..(row as usize + 1) * cols;
        expected[at.clone()].copy_from_slice(&attend_token(
            &cache,
            heads,
            &query[at],
            (seq, context - 1),
            window,
        ));
    }
    let scale = (heads.head_dim as f32).sqrt().recip();
    // From one block for all to more than there is work for.
    for num_blocks in [1, 3, 7, 40, 10_000] {
        let kernel = PagedAttentionDecode::load(&rig.tools, heads)?.limited_to(num_blocks);
        let (partial, counters) = kernel.scratch_bytes(contexts.len());
        let (partial, counters) =
            (rig.arena.take("partial", partial)?, rig.arena.take("counters", counters)?);
        rig.stream.fill(partial, 0xff)?;
        rig.stream.fill(counters, 0)?;
        let batch = DecodeBatch {
            num_seqs: contexts.len(),
            rows,
            context_lens: cache.contexts,
            block_starts: cache.starts,
            block_ids: cache.ids,
        };
        let plan = rig.arena.take("plan", kernel.plan_bytes(contexts.len()))?;
        rig.stream.fill(plan, 0xff)?;
        kernel.plan(&rig.stream, plan, &batch, window)?;
        for round in 0..2 {
            let out = rig.output(query.len() * 2)?;
            kernel.run(
                &rig.stream,
                [dq, out.data, partial, counters, plan],
                cache.layer,
                &batch,
                (scale, window),
            )?;
            rig.compare(
                &format!("decode {heads:?} {window:?} at most {num_blocks} blocks round {round}"),
                &out,
                &expected,
            )?;
        }
    }
    Ok(())
}

fn prefill(
    rig: &mut Rig,
    heads: HeadShape,
    window: Option<usize>,
    chunks: &[(usize, usize)],
) -> Outcome<()> {
    let cols = heads.num_heads * heads.head_dim;
    let contexts: Vec<usize> = chunks.iter().map(|c| c.1).collect();
    let cache = cache(rig, heads, &contexts)?;
    let tokens: usize = chunks.iter().map(|c| c.0).sum();
    let query = rig.random(tokens * cols, 1.0);
    let (mut row, mut rows, mut expected) = (0, Vec::new(), Vec::new());
    for (seq, &(len, context)) in chunks.iter().enumerate() {
        rows.push(row as u32);
        for i in 0..len {
            let query = &query[(row + i) * cols..][..cols];
            expected.extend(attend_token(&cache, heads, query, (seq, context - len + i), window));
        }
        row += len;
    }
    let kernel = PagedAttentionPrefill::load(&rig.tools, heads)?;
    let tiles = kernel.tiles(chunks);
    let batch = PrefillBatch {
        num_tiles: tiles.len(),
        tiles: rig.upload_raw(tiles.as_flattened())?,
        seq_rows: rig.upload_raw(&rows)?,
        seq_lens: rig.upload_raw(&chunks.iter().map(|c| c.0 as u32).collect::<Vec<_>>())?,
        context_lens: cache.contexts,
        block_starts: cache.starts,
        block_ids: cache.ids,
        num_keys: contexts.iter().sum(),
    };
    let dq = rig.upload(&query)?;
    let scale = (heads.head_dim as f32).sqrt().recip();
    for round in 0..2 {
        let out = rig.output(query.len() * 2)?;
        kernel.run(&rig.stream, [dq, out.data], cache.layer, &batch, (scale, window))?;
        let what = format!("prefill {heads:?} {window:?} {} chunks round {round}", chunks.len());
        rig.compare(&what, &out, &expected)?;
    }
    Ok(())
}
