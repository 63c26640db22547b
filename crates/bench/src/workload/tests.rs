use proptest::prelude::*;

use super::*;
use crate::metrics::Distribution;

fn drawn(text: &str, count: usize) -> Distribution {
    let lengths: Lengths = text.parse().expect(text);
    let mut rng = generator(7, Stream::Lengths);
    Distribution::new((0..count).map(|_| lengths.sample(&mut rng) as f64))
}

/// Checks a sample's mean and quantiles within a share of each.
fn check(name: &str, sample: &Distribution, within: f64, mean: f64, quantiles: &[(f64, f64)]) {
    let near = |what: String, found: f64, expected: f64| {
        let off = (found - expected).abs();
        assert!(off <= expected * within, "{name}: {what} is {found}, not {expected}");
    };
    near("mean".to_owned(), sample.mean(), mean);
    for &(share, expected) in quantiles {
        near(format!("P{}", share * 100.0), sample.quantile(share), expected);
    }
}

#[test]
fn lengths_are_distributed_as_they_say() {
    check("512", &drawn("512", 10), 0.0, 512.0, &[(0.0, 512.0), (1.0, 512.0)]);
    let uniform = drawn("uniform:100-300", 20_000);
    check("uniform", &uniform, 0.02, 200.0, &[(0.0, 100.0), (0.25, 150.0), (1.0, 300.0)]);
    // exp(sigma² / 2) times the median; P90 is exp(1.2816 sigma) times it.
    let log_normal = drawn("lognormal:400,0.5", 40_000);
    check("lognormal", &log_normal, 0.02, 453.3, &[(0.5, 400.0), (0.9, 759.2)]);
    assert!(drawn("lognormal:400,0.5,500", 5_000).max() <= 500.0);
    // Llumnix, table 1, as its generator draws them.
    let cases = [
        ("S", 127.0, [35.0, 103.0, 412.0, 1682.0]),
        ("M", 254.0, [30.0, 163.0, 1285.0, 4576.0]),
        ("L", 512.0, [54.0, 596.0, 3127.0, 5262.0]),
    ];
    for (name, mean, [p50, p80, p95, p99]) in cases {
        let quantiles = [(0.5, p50), (0.8, p80), (0.95, p95), (0.99, p99)];
        // A draw on the border between two ranks may come out as either.
        check(name, &drawn(name, 30_000), 0.1, mean, &quantiles);
    }
}

#[test]
fn stand_ins_have_the_published_quantiles() {
    let sample = |stand_in: &StandIn| {
        let mut rng = generator(3, Stream::Lengths);
        let rows: Vec<TraceRow> = (0..30_000).map(|_| stand_in.sample(&mut rng)).collect();
        let of =
            |len: fn(&TraceRow) -> usize| Distribution::new(rows.iter().map(|r| len(r) as f64));
        (of(|row| row.prompt_len), of(|row| row.output_len))
    };
    let (prompt, output) = sample(&SHAREGPT);
    check("prompt", &prompt, 0.03, 2340.0, &[(0.5, 1730.0), (0.9, 5696.0), (0.99, 7434.0)]);
    check("output", &output, 0.03, 439.0, &[(0.5, 415.0), (0.9, 834.0), (0.99, 998.0)]);
    let (prompt, output) = sample(&ARXIV);
    check("prompt", &prompt, 0.03, 7650.0, &[(0.5, 7059.0), (0.9, 12_985.0)]);
    check("output", &output, 0.03, 230.0, &[(0.5, 208.0), (0.9, 371.0)]);
    let (prompt, output) = sample(&MOONCAKE);
    check("prompt", &prompt, 0.03, 12_035.0, &[(0.5, 6909.0), (0.9, 27_367.0)]);
    check("output", &output, 0.03, 343.0, &[]);
    let (prompt, output) = sample(&LONGBENCH);
    check("prompt", &prompt, 0.03, 9900.0, &[(0.5, 8400.0)]);
    check("output", &output, 0.03, 91.0, &[]);
    // DistServe publishes means alone.
    for (stand_in, prompt, output) in [(&SHAREGPT_2K, 755.5, 200.3), (&LONGBENCH_2K, 1738.3, 90.7)]
    {
        let (prompts, outputs) = sample(stand_in);
        check(stand_in.name, &prompts, 0.01, prompt, &[]);
        check(stand_in.name, &outputs, 0.01, output, &[]);
        assert!(prompts.max() + 1.0 < 2048.0, "OPT has 2,048 positions");
    }
}

#[test]
fn ticks_bunch_what_comes() {
    let mut rng = generator(5, Stream::Arrivals);
    let ticks = Arrivals::Ticks { rate: 2.0, every: 3.0 };
    let times = ticks.times(6000, &mut rng).expect("numbers above 0");
    assert!(times.is_sorted() && times.iter().all(|at| (at / 3.0).fract() == 0.0));
    let rate = 6000.0 / times.last().expect("six thousand");
    assert!((1.9..2.1).contains(&rate), "{rate}");
    assert!(Arrivals::Ticks { rate: 2.0, every: 0.0 }.times(1, &mut rng).is_err());
}

#[test]
fn what_are_no_lengths_is_refused() {
    for text in ["", "0", "-1", "uniform:9-3", "uniform:3", "lognormal:5", "lognormal:9,1,3", "XL"]
    {
        assert!(text.parse::<Lengths>().is_err(), "{text}");
    }
}

fn intervals(arrivals: &Arrivals, count: usize) -> Distribution {
    let times = arrivals.times(count, &mut generator(11, Stream::Arrivals)).expect("a rate");
    Distribution::new(times.windows(2).map(|pair| pair[1] - pair[0]))
}

#[test]
fn arrivals_have_their_rate_and_variation() {
    let check = |arrivals: Arrivals, mean: f64, cv: f64| {
        let found = intervals(&arrivals, 40_000);
        let found_cv = found.std() / found.mean();
        assert!((found.mean() / mean - 1.0).abs() < 0.03, "{arrivals:?}: mean {}", found.mean());
        assert!((found_cv - cv).abs() < 0.03 * cv.max(1.0), "{arrivals:?}: CV {found_cv}");
    };
    check(Arrivals::Fixed { rate: 4.0 }, 0.25, 0.0);
    check(Arrivals::Poisson { rate: 4.0 }, 0.25, 1.0);
    check(Arrivals::Gamma { rate: 4.0, cv: 0.5 }, 0.25, 0.5);
    check(Arrivals::Gamma { rate: 4.0, cv: 2.0 }, 0.25, 2.0);
    // Clipping at three means leaves 1 - exp(-3) of the mean.
    let clipped = intervals(&Arrivals::PoissonClipped { rate: 4.0 }, 40_000);
    assert!((clipped.mean() * 4.0 - 0.9502).abs() < 0.01 && clipped.max() <= 0.75 + 1e-9);
    assert!(intervals(&Arrivals::Static, 100).max() <= 0.0);
}

#[test]
fn a_ramp_goes_from_one_rate_to_the_other() {
    for (shape, middle) in [(RampShape::Linear, 10.5), (RampShape::Exponential, 20_f64.sqrt())] {
        let ramp = Arrivals::Ramp { from: 1.0, to: 20.0, shape, cv: 0.01 };
        let times = ramp.times(4_001, &mut generator(1, Stream::Arrivals)).unwrap();
        let rate = |at: usize| 20.0 / (times[at + 20] - times[at]);
        for (at, expected) in [(0, 1.0), (1990, middle), (3980, 20.0)] {
            assert!((rate(at) / expected - 1.0).abs() < 0.06, "{shape:?} at {at}: {}", rate(at));
        }
    }
}

#[test]
fn what_is_no_rate_is_refused() {
    let mut rng = generator(0, Stream::Arrivals);
    for arrivals in [
        Arrivals::Poisson { rate: 0.0 },
        Arrivals::Fixed { rate: f64::INFINITY },
        Arrivals::Gamma { rate: 1.0, cv: f64::NAN },
        Arrivals::Replay { speed: 1.0, jitter: 0.0 },
    ] {
        assert!(arrivals.times(3, &mut rng).is_err(), "{arrivals:?}");
    }
}

fn recipe(source: Source, arrivals: Arrivals) -> WorkloadConfig {
    WorkloadConfig {
        source,
        arrivals,
        num_requests: Some(50),
        max_total_len: None,
        output_len: None,
        shared_prefix_len: 0,
        seed: 5,
    }
}

#[test]
fn the_rate_leaves_lengths_and_prompts_as_they_are() {
    let make =
        |rate| recipe(Source::StandIn(SHAREGPT), Arrivals::Poisson { rate }).generate().unwrap();
    let (slow, fast) = (make(1.0), make(4.0));
    assert!(slow.is_synthetic);
    for (slow, fast) in slow.items.iter().zip(&fast.items) {
        assert_eq!((&slow.prompt, slow.output_len), (&fast.prompt, fast.output_len));
        assert!((slow.at - 4.0 * fast.at).abs() < 1e-6, "{} and {}", slow.at, fast.at);
    }
    let other = WorkloadConfig { seed: 6, ..recipe(Source::StandIn(SHAREGPT), Arrivals::Static) };
    assert_ne!(other.generate().unwrap().items[0].prompt, slow.items[0].prompt);
}

#[test]
fn a_trace_is_replayed_in_its_order_and_else_shuffled() {
    let row =
        |index: usize| TraceRow { at: Some(10.0 + index as f64), ..TraceRow::of(index + 1, 2) };
    let trace = Trace { name: "t".to_owned(), rows: (0..40).map(row).collect() };
    let make = |arrivals| recipe(Source::Trace(trace.clone()), arrivals).generate().unwrap();
    let replayed = make(Arrivals::Replay { speed: 2.0, jitter: 0.0 });
    assert_eq!(replayed.items.len(), 40, "a replay ends with its trace");
    for (index, item) in replayed.items.iter().enumerate() {
        assert_eq!((item.at, item.prompt.len), (index as f64 / 2.0, index + 1));
    }
    let jittered = make(Arrivals::Replay { speed: 1.0, jitter: 0.5 });
    for (index, item) in jittered.items.iter().enumerate() {
        assert!((0.0..0.5).contains(&(item.at - index as f64)));
    }
    let shuffled = make(Arrivals::Static);
    assert_eq!(shuffled.items.len(), 50, "else it starts over");
    let mut lens: Vec<usize> = shuffled.items[..40].iter().map(|item| item.prompt.len).collect();
    assert!(!lens.is_sorted());
    lens.sort_unstable();
    assert_eq!(lens, (1..=40).collect::<Vec<_>>());
}

#[test]
fn prompts_share_what_they_are_to_share() {
    let tokens = PromptTokens::below(1000);
    let prompt = |seed, num_shared, blocks: &[u64]| {
        let (len, blocks) = (2000, blocks.to_vec());
        tokens.of(&Prompt { len, num_shared, blocks, text: None, seed })
    };
    let common = |a: &[u32], b: &[u32]| a.iter().zip(b).take_while(|(a, b)| a == b).count();
    let check = |a: &[u32], b: &[u32], expected: usize| {
        assert!((expected..expected + 4).contains(&common(a, b)), "{}", common(a, b));
    };
    check(&prompt(1, 100, &[]), &prompt(2, 100, &[]), 100);
    check(&prompt(1, 0, &[7, 8]), &prompt(2, 0, &[7, 9]), PREFIX_BLOCK);
    check(&prompt(1, 0, &[7, 8]), &prompt(2, 0, &[7, 8]), 2 * PREFIX_BLOCK);
    check(&prompt(1, 0, &[]), &prompt(2, 0, &[]), 0);
    assert_eq!(prompt(1, 30, &[1, 2, 3, 4, 5]).len(), 2000, "blocks end with the prompt");
    assert_eq!(prompt(4, 3, &[2]), prompt(4, 3, &[2]));
}

proptest! {
    #[test]
    fn any_recipe_keeps_order_limits_and_count(
        seed: u64,
        limit in 2_usize..5000,
        cv in 0.1_f64..4.0,
        rate in 0.1_f64..100.0,
    ) {
        let mut recipe = recipe(Source::StandIn(ARXIV), Arrivals::Gamma { rate, cv });
        recipe.seed = seed;
        recipe.max_total_len = Some(limit);
        let workload = recipe.generate().unwrap();
        prop_assert_eq!(workload.items.len(), 50);
        prop_assert!(workload.items.is_sorted_by_key(|item| item.at));
        for item in &workload.items {
            prop_assert!(item.prompt.len >= 1 && item.output_len >= 1);
            prop_assert!(item.prompt.len + item.output_len <= limit);
        }
        prop_assert_eq!(&workload, &recipe.generate().unwrap());
    }
}

#[test]
fn redrawn_prompts_share_nothing_but_their_shape() {
    let config = WorkloadConfig {
        source: Source::Drawn {
            name: "random".to_owned(),
            prompt: Lengths::Fixed(64),
            output: Lengths::Fixed(4),
        },
        arrivals: Arrivals::Poisson { rate: 2.0 },
        num_requests: Some(20),
        max_total_len: None,
        output_len: None,
        shared_prefix_len: 8,
        seed: 1,
    };
    let first = config.generate().unwrap();
    let mut other = first.clone();
    other.redraw_prompts(7);
    let tokens = PromptTokens::below(50_000);
    for (a, b) in first.items.iter().zip(&other.items) {
        assert_eq!((a.at, a.output_len, a.prompt.len), (b.at, b.output_len, b.prompt.len));
        let (a, b) = (tokens.of(&a.prompt), tokens.of(&b.prompt));
        assert_eq!(a[..8], b[..8], "what all share");
        assert_ne!(a[8..], b[8..]);
    }
}
