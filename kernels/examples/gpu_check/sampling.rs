//! Tokens drawn on the GPU against those of the CPU, which must be the same; and how long drawing takes.

use std::sync::Arc;

use stallfree_core::{History, PENDING_TOKEN, SampleSpec, SamplingParams, TokenId};
use stallfree_device::DeviceSlice;
use stallfree_kernels::cpu::Sampler;
use stallfree_kernels::cuda::{Ceilings, Sample, SampleOperands, SamplePart};
use stallfree_kernels::{SampleRows, Sampled, chosen_at};

use crate::bench::{floor_ms, line};
use crate::rig::{Outcome, Rig};

/// What rows of logits look like.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Shape {
    /// About the normal distribution: many tokens are likely.
    Flat,
    /// The same, with a few likely tokens.
    Peaked,
    /// Few values, so that many tokens are alike.
    Ties,
    /// One value.
    Equal,
    /// Mostly minus infinity.
    Holes,
    /// Rising with the token, so that one warp has all that is likely.
    Rising,
    /// As large and as small as floats are.
    Extreme,
}

const SHAPES: [Shape; 7] = [
    Shape::Flat,
    Shape::Peaked,
    Shape::Ties,
    Shape::Equal,
    Shape::Holes,
    Shape::Rising,
    Shape::Extreme,
];

/// Rows and tokens. From 133 rows on, blocks are of another size.
const SIZES: &[(usize, usize)] = &[
    (70, 1),
    (70, 2),
    (70, 5),
    (160, 31),
    (70, 1001),
    (160, 4099),
    (70, 49_152),
    (40, 151_937),
    (140, 32_003),
];

/// Every setting once, and either size of block.
const SMALL: &[(usize, usize)] = &[(18, 1), (18, 31), (134, 31), (18, 300)];

pub(crate) fn check(rig: &mut Rig) -> Outcome<()> {
    let mark = rig.arena.used();
    let mut faults = Vec::new();
    for &(num_rows, cols) in if rig.is_small { SMALL } else { SIZES } {
        for shape in SHAPES {
            faults.extend(same_as_cpu(rig, num_rows, cols, shape)?);
            rig.arena.reset_to(mark);
        }
    }
    if !rig.is_small {
        distribution(rig)?;
        rig.arena.reset_to(mark);
    }
    if faults.is_empty() { Ok(()) } else { Err(faults.join("\n").into()) }
}

fn random(rig: &mut Rig) -> f32 {
    rig.below(1 << 24) as f32 / (1 << 24) as f32
}

fn logits(rig: &mut Rig, cols: usize, shape: Shape) -> Vec<f32> {
    let mut row: Vec<f32> = (0..cols)
        .map(|token| {
            let normal = (0..4).map(|_| random(rig) - 0.5).sum::<f32>() * 5.0;
            match shape {
                Shape::Flat | Shape::Peaked => normal,
                Shape::Ties => (normal * 2.0).round() / 2.0,
                Shape::Equal => -3.25,
                Shape::Holes if rig.below(8) > 0 => f32::NEG_INFINITY,
                Shape::Holes => normal,
                Shape::Rising => token as f32 * 40.0 / cols as f32,
                Shape::Extreme => normal * 1e38,
            }
        })
        .collect();
    if shape == Shape::Peaked {
        for _ in 0..20 {
            let token = rig.below(cols);
            row[token] += 16.0 + 4.0 * random(rig);
        }
    }
    row
}

/// Returns settings of every kind, one after the other.
fn settings(rig: &mut Rig, index: usize, cols: usize) -> SampleSpec {
    let greedy = SamplingParams::greedy();
    let warm =
        SamplingParams { temperature: 1.0, seed: rig.below(1 << 30) as u64, ..greedy.clone() };
    let mut token = || rig.below(cols) as TokenId;
    let params = match index % 18 {
        0 => greedy,
        1 => warm,
        2 => SamplingParams { temperature: 0.7, ..warm },
        3 => SamplingParams { temperature: 1e-40, ..warm },
        4 => SamplingParams { temperature: f32::MAX, top_p: 0.5, ..warm },
        5 => SamplingParams { top_k: 50, top_p: 0.9, ..warm },
        6 => SamplingParams { top_k: 1, ..warm },
        7 => SamplingParams { top_k: 256, ..warm },
        8 => SamplingParams { top_k: 257, temperature: 2.0, ..warm },
        9 => SamplingParams { top_k: 1000, top_p: 0.97, min_p: 1e-4, ..warm },
        10 => SamplingParams { top_p: 0.9, temperature: 0.5, ..warm },
        11 => SamplingParams { top_p: 0.999, ..warm },
        12 => SamplingParams { top_p: 1e-9, ..warm },
        13 => SamplingParams { min_p: 0.05, ..warm },
        14 => SamplingParams { top_p: 0.95, min_p: 0.01, temperature: 1.5, ..warm },
        15 => SamplingParams { logit_bias: Arc::new([(token(), 5.0), (token(), -100.0)]), ..warm },
        16 => SamplingParams {
            repetition_penalty: 1.3,
            presence_penalty: 0.5,
            frequency_penalty: 0.1,
            top_k: 20,
            ..warm
        },
        _ => SamplingParams { allowed_token_ids: Arc::new([token(), token(), token()]), ..warm },
    };
    let logprobs = [None, None, Some(0), Some(5), None, Some(20), Some(257)][index % 7];
    let params = SamplingParams { logprobs, ..params };
    // Now and then everything is banned.
    let num_banned = if index.is_multiple_of(31) { cols.min(31) } else { index % 3 };
    let banned: Vec<TokenId> = if num_banned == cols {
        (0..cols as u32).collect()
    } else {
        (0..num_banned).map(|_| token()).collect()
    };
    let history = params
        .needs_history()
        .then(|| History { tokens: (0..300).map(|_| token()).collect(), prompt_len: 100 });
    SampleSpec {
        params: Arc::new(params),
        num_output_tokens: index,
        banned: banned.into(),
        history,
    }
}

/// Draws on the GPU, in as many launches as it takes with so many bytes of settings and results.
fn draw(
    rig: &mut Rig,
    logits: &[f32],
    (rows, cols): (&SampleRows, usize),
    chosen: &[TokenId],
    limits: [usize; 2],
) -> Outcome<Vec<Sampled>> {
    let (dx, chosen) = (rig.upload_raw(logits)?, rig.upload_raw(chosen)?);
    let room = rig.arena.take("room", limits[0])?;
    let kernel = Sample::load(&rig.tools)?;
    let mut all = Vec::new();
    for part in SamplePart::all(rows, cols, limits[0], limits[1]) {
        let num_rows = part.range().len();
        let (tokens, found) = (rig.output(num_rows * 4)?, rig.output(part.found_bytes())?);
        let operands = SampleOperands {
            logits: dx.slice(part.range().start * cols * 4, num_rows * cols * 4),
            room,
            chosen,
            tokens: tokens.data,
            found: found.data,
        };
        let stream = &rig.stream;
        kernel.run(stream, &mut |to, words| stream.upload(to, words), &part, &operands)?;
        for (what, out) in [("tokens", &tokens), ("found", &found)] {
            rig.check_guards(what, out)?;
        }
        let tokens: Vec<u32> = rig.download_raw(tokens.data)?;
        let sampled = part.reader().read(&rig.download_raw(found.data)?);
        if tokens.iter().zip(&sampled).any(|(token, sampled)| *token != sampled.token) {
            return Err("the tokens are not those that were found".into());
        }
        all.extend(sampled);
    }
    let after: Vec<f32> = rig.download_raw(dx)?;
    if after.iter().zip(logits).any(|(a, b)| a.to_bits() != b.to_bits()) {
        return Err("sampling changed the logits".into());
    }
    Ok(all)
}

/// Returns how the first row that differs does.
fn same_as_cpu(
    rig: &mut Rig,
    num_rows: usize,
    cols: usize,
    shape: Shape,
) -> Outcome<Option<String>> {
    let one = logits(rig, cols * 8, shape);
    let mut all: Vec<f32> =
        (0..num_rows).flat_map(|r| one[r % 8 * cols..][..cols].to_vec()).collect();
    let mut rows = SampleRows::new(cols);
    for index in 0..num_rows {
        if index % 11 == 10 {
            rows.push_target(rig.below(cols) as TokenId, (index % 9) as u32);
        } else {
            rows.push_draw(&settings(rig, index, cols), chosen_at(index as u32 % 5));
        }
    }
    let (nan, infinite) = (num_rows / 3, num_rows / 2);
    all[nan * cols + rig.below(cols)] = f32::NAN;
    all[infinite * cols + rig.below(cols)] = f32::INFINITY;
    // One is not there, another is no token.
    let chosen = [0, 1, 2, u32::MAX].map(|token: u32| token.min(cols as u32));
    let mut sampler = Sampler::default();
    let expected: Vec<Sampled> = (0..num_rows)
        .map(|r| sampler.sample(&all[r * cols..][..cols], (&rows, r), &chosen))
        .collect();
    // In one launch, and in several.
    for limits in [[128 << 20, 64 << 20], [2000 + cols * 40, 20_000], [1 << 20, 10_000]] {
        let got = draw(rig, &all, (&rows, cols), &chosen, limits)?;
        for (r, (got, expected)) in got.iter().zip(&expected).enumerate() {
            if got != expected {
                let what = format!("sampling {num_rows} x {cols} {shape:?}, row {r}");
                return Ok(Some(format!("{what}: {got:?}, not {expected:?}")));
            }
        }
    }
    let broken = expected.iter().filter(|sampled| sampled.token == TokenId::MAX).count();
    println!(
        "  sampling {num_rows} x {cols} {shape:?}: the CPU's tokens and logprobs, {broken} damaged rows"
    );
    Ok(None)
}

/// Draws many tokens and holds their counts against the softmax: a chi-squared test, whose statistic is within five standard
/// deviations of its mean.
fn distribution(rig: &mut Rig) -> Outcome<()> {
    let (num_rows, cols) = (20_000, 1001);
    let row = logits(rig, cols, Shape::Flat);
    let all: Vec<f32> = (0..num_rows).flat_map(|_| row.iter().copied()).collect();
    let mut rows = SampleRows::new(cols);
    let params = Arc::new(SamplingParams { temperature: 1.3, seed: 5, ..SamplingParams::greedy() });
    for index in 0..num_rows {
        let spec = SampleSpec {
            params: Arc::clone(&params),
            num_output_tokens: index,
            banned: Arc::new([]),
            history: None,
        };
        rows.push_draw(&spec, PENDING_TOKEN);
    }
    let mut counts = vec![0.0; cols];
    for sampled in draw(rig, &all, (&rows, cols), &[], [8 << 20; 2])? {
        counts[sampled.token as usize] += 1.0;
    }
    let weights: Vec<f64> = row.iter().map(|&logit| (f64::from(logit) / 1.3).exp()).collect();
    let sum: f64 = weights.iter().sum();
    let (mut chi_squared, mut bins, mut rest) = (0.0, 0, (0.0, 0.0));
    for (count, weight) in counts.iter().zip(&weights) {
        let expected = weight / sum * num_rows as f64;
        rest = (rest.0 + count, rest.1 + expected);
        if rest.1 >= 5.0 {
            chi_squared += (rest.0 - rest.1) * (rest.0 - rest.1) / rest.1;
            bins += 1;
            rest = (0.0, 0.0);
        }
    }
    let degrees = f64::from(bins - 1);
    let deviations = (chi_squared - degrees) / (2.0 * degrees).sqrt();
    println!("  sampling: chi-squared {chi_squared:.0} at {degrees} degrees of freedom");
    if deviations.abs() < 5.0 { Ok(()) } else { Err("draws do not follow the softmax".into()) }
}

/// Vocabulary of Llama 3.
const VOCAB: usize = 128_256;

pub(crate) fn bench(rig: &mut Rig, ceilings: Ceilings) -> Outcome<()> {
    let greedy = SamplingParams::greedy();
    let warm = SamplingParams { temperature: 1.0, seed: 3, ..greedy.clone() };
    let kinds = [
        ("greedy", greedy.clone()),
        ("temperature", warm.clone()),
        ("top-k 50, top-p 0.9", SamplingParams { top_k: 50, top_p: 0.9, ..warm.clone() }),
        ("top-p 0.9", SamplingParams { top_p: 0.9, ..warm.clone() }),
        ("top-k 1000", SamplingParams { top_k: 1000, ..warm.clone() }),
        ("min-p 0.05", SamplingParams { min_p: 0.05, ..warm.clone() }),
        ("greedy, 5 logprobs", SamplingParams { logprobs: Some(5), ..greedy.clone() }),
        (
            "greedy, penalties after 1,000 tokens",
            SamplingParams { presence_penalty: 0.5, ..greedy },
        ),
    ];
    for shape in [Shape::Peaked, Shape::Flat] {
        println!("sampling, {VOCAB} tokens, {shape:?} (floor: one pass over the logits)");
        for num_rows in [1, 8, 64, 256] {
            let mark = rig.arena.used();
            let one = logits(rig, VOCAB, shape);
            let all: Vec<f32> = (0..num_rows)
                .flat_map(|r| one[r * 4 % VOCAB..].iter().chain(&one[..r * 4 % VOCAB]).copied())
                .collect();
            let dx = rig.upload_raw(&all)?;
            for (what, params) in &kinds {
                let mut rows = SampleRows::new(VOCAB);
                for index in 0..num_rows {
                    let tokens = (0..1000).map(|_| rig.below(VOCAB) as TokenId).collect();
                    let spec = SampleSpec {
                        params: Arc::new(params.clone()),
                        num_output_tokens: index,
                        banned: Arc::new([]),
                        history: params
                            .needs_history()
                            .then_some(History { tokens, prompt_len: 0 }),
                    };
                    rows.push_draw(&spec, PENDING_TOKEN);
                }
                let ready = Ready::new(rig, rows, VOCAB, dx)?;
                let ms = rig.time(20, || ready.run(rig))?;
                let floor = floor_ms(ceilings, num_rows * VOCAB * 4, 0.0);
                line(&format!("{num_rows} x {VOCAB}, {what}"), ms, floor);
            }
            rig.arena.reset_to(mark);
        }
    }
    Ok(())
}

/// A launch whose settings are on the device, so that it can be captured.
pub(crate) struct Ready {
    kernel: Sample,
    rows: SampleRows,
    cols: usize,
    operands: SampleOperands,
}

impl Ready {
    pub(crate) fn new(
        rig: &mut Rig,
        rows: SampleRows,
        cols: usize,
        logits: DeviceSlice,
    ) -> Outcome<Self> {
        let tokens = rig.arena.take("tokens", rows.len() * 4)?;
        let found = rig.arena.take("found", Sample::FOUND_BYTES)?;
        let room = rig.arena.take("room", Sample::ROOM_BYTES)?;
        let kernel = Sample::load(&rig.tools)?;
        let operands = SampleOperands { logits, room, chosen: tokens.slice(0, 0), tokens, found };
        let ready = Self { kernel, rows, cols, operands };
        ready.launch(rig, true)?;
        rig.stream.synchronize()?;
        Ok(ready)
    }

    /// Rows that ask for the most likely token.
    pub(crate) fn greedy(
        rig: &mut Rig,
        num_rows: usize,
        cols: usize,
        logits: DeviceSlice,
    ) -> Outcome<Self> {
        let mut rows = SampleRows::new(cols);
        let spec = SampleSpec {
            params: Arc::new(SamplingParams::greedy()),
            num_output_tokens: 0,
            banned: Arc::new([]),
            history: None,
        };
        (0..num_rows).for_each(|_| rows.push_draw(&spec, PENDING_TOKEN));
        Self::new(rig, rows, cols, logits)
    }

    pub(crate) fn tokens(&self) -> DeviceSlice {
        self.operands.tokens
    }

    pub(crate) fn run(&self, rig: &Rig) -> Outcome<()> {
        self.launch(rig, false)
    }

    fn launch(&self, rig: &Rig, upload: bool) -> Outcome<()> {
        let SampleOperands { room, found, .. } = self.operands;
        for part in SamplePart::all(&self.rows, self.cols, room.len(), found.len()) {
            let to_device = &mut |to, words: &[u32]| {
                if upload { rig.stream.upload(to, words) } else { Ok(()) }
            };
            self.kernel.run(&rig.stream, to_device, &part, &self.operands)?;
        }
        Ok(())
    }
}
