//! Tropical (2026), figures on attainment over the rate: prefill and decode together, in chunks, apart, and apart with prompts that go
//! where decodes have slack; every request with objectives of its own.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use stallfree_bench::metrics::{ATTAINMENT_TARGET, Slo, SloMetric, attained};
use stallfree_bench::plot::{AttainmentConfig, Group, attainment};
use stallfree_bench::workload::{Arrivals, LONGBENCH, MOONCAKE, Source, StandIn};
use stallfree_bench::{Workload, WorkloadConfig};

use super::fleet::Fleet;
use super::lab::Lab;
use super::table::Table;

/// Both objectives of a request, in shares of what it was promised.
const KEPT: Slo = Slo { ttft: 1.0, tpot: 1.0 };

/// How many times what its prompt takes alone a request may wait for its first token.
const TTFT_SCALE: f64 = 5.0;

/// The most time a token after the first, in seconds.
const TPOT: f64 = 0.1;

/// The most tokens of a request: InternLM2.5's context.
const MAX_MODEL_LEN: usize = 32_768;

/// How many runs, each with the next seed, make a point. They were fixed, and the workloads with them, before the policy was tuned.
const SEEDS: u64 = 3;

/// Requests a run.
const NUM_PROMPTS: usize = 400;

/// Prompts of which is measured how long they take alone.
const ALONE: [usize; 11] =
    [16, 128, 512, 1024, 2048, 4096, 8192, 12_288, 16_384, 24_576, MAX_MODEL_LEN - 1];

/// A workload of the paper.
struct Case {
    name: &'static str,
    stand_in: &'static StandIn,
    /// Seconds between the moments at which requests come, if they come in bursts.
    ticks: Option<f64>,
    /// Requests a second, over all GPUs.
    rates: &'static [f64],
    /// The paper's goodputs, read off its figures: vLLM's, DistServe's, Tropical's.
    theirs: [Option<f64>; 3],
}

const CASES: [Case; 2] = [
    Case {
        name: "mooncake",
        stand_in: &MOONCAKE,
        ticks: Some(3.0),
        rates: &[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8],
        theirs: [Some(0.86), Some(0.82), Some(1.74)],
    },
    Case {
        name: "longbench",
        stand_in: &LONGBENCH,
        ticks: None,
        rates: &[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0],
        theirs: [Some(0.41), None, Some(0.67)],
    },
];

/// How long prompts take where nothing else is to be done.
struct Alone(Vec<(f64, f64)>);

impl Alone {
    /// Returns how long a prompt takes, between those that were measured on a straight line.
    fn seconds(&self, len: usize) -> f64 {
        let len = len as f64;
        let above = self.0.partition_point(|&(known, _)| known < len).clamp(1, self.0.len() - 1);
        let ((x0, y0), (x1, y1)) = (self.0[above - 1], self.0[above]);
        y0 + (y1 - y0) * (len - x0) / (x1 - x0)
    }
}

/// The deployments, each of two instances over two GPUs.
fn fleets() -> [Fleet; 5] {
    let on = ("internlm2-20b", "sim:a100-80g-sxm");
    let specs = [(2, 1), (2, 1)];
    let whole = ["--scheduler=vllm", "--max-num-batched-tokens=32768"];
    let chunks = ["--scheduler=sarathi", "--max-num-batched-tokens=2048"];
    // One prompt at a time, so that it is known how long each takes; what is late is computed all the same.
    let multiplexing =
        ["--dispatch-policy=multiplexing", "--prefill-max-num-seqs=1", "--dispatch-timeout=100000"];
    let apart = |label| Fleet::disaggregated(label, on, &specs, 1).with(&whole);
    [
        Fleet::simple("vllm", on, &specs).with(&whole),
        Fleet::simple("sarathi", on, &specs).with(&chunks),
        apart("distserve"),
        apart("multiplexing").with(&multiplexing),
        apart("multiplexing, edf").with(&multiplexing).with(&["--schedule-policy=edf"]),
    ]
}

pub(super) fn run(lab: &mut Lab<'_>) -> Result<()> {
    let fleets = fleets();
    let vllm = fleets[0].clone();
    let fleets = lab.chosen(fleets, |fleet| &fleet.label);
    let cases = lab.chosen(CASES, |case| case.name);
    fs::create_dir_all(lab.output().join("traces"))?;
    let alone = measure_alone(lab, &vllm)?;
    let mut summary =
        Table::new(&["workload", "deployment", "request_rate", "both", "ttft", "tpot"]);
    let mut comparison = Table::new(&["figure", "ours", "theirs"]);
    for case in &cases {
        let mut groups: Vec<Group> = fleets
            .iter()
            .map(|fleet| Group { name: fleet.label.clone(), num_gpus: 1.0, points: Vec::new() })
            .collect();
        for rate in lab.rates(case.rates) {
            for seed in 0..SEEDS {
                let path = case.write_trace(lab, rate, seed, &alone)?;
                for (fleet, group) in fleets.iter().zip(&mut groups) {
                    let requests = measure(lab, fleet, &path)?;
                    match group.points.last_mut().filter(|(last, _)| (last - rate).abs() < 1e-9) {
                        Some((_, all)) => all.extend(requests),
                        None => group.points.push((rate, requests)),
                    }
                }
            }
            for group in &groups {
                let share =
                    group.points.last().map(|(_, all)| attained(all, KEPT)).unwrap_or_default();
                summary.row([
                    case.name.into(),
                    (&*group.name).into(),
                    rate.into(),
                    share.both.into(),
                    share.ttft.into(),
                    share.tpot.into(),
                ]);
            }
        }
        case.compare(&groups, &mut comparison);
        case.draw(lab, &groups)?;
    }
    lab.table("summary", &summary)?;
    lab.table("comparison", &comparison)
}

/// Runs prompts one after the other, and sees how long each takes to its first token.
fn measure_alone(lab: &mut Lab<'_>, fleet: &Fleet) -> Result<Alone> {
    let mut text = String::new();
    for (index, len) in ALONE.into_iter().enumerate() {
        add_line(&mut text, index as f64 * 1000.0, (len, 1), None);
    }
    let path = lab.output().join("traces/alone.jsonl");
    fs::write(&path, text)?;
    let ran = lab.replay_fleet(fleet, &path, MAX_MODEL_LEN)?;
    let ttfts = ran.outcome.requests.iter().zip(ALONE).map(|(request, len)| {
        Ok((len as f64, request.ttft().context("a prompt was not computed")?))
    });
    Ok(Alone(ttfts.collect::<Result<_>>()?))
}

/// Adds a request to a trace in Mooncake's format.
fn add_line(text: &mut String, at: f64, (input, output): (usize, usize), slo_ms: Option<[f64; 2]>) {
    let slo = slo_ms.map(|[ttft, tpot]| format!(r#", "ttft_slo": {ttft}, "tpot_slo": {tpot}"#));
    // Writing to a string can't fail.
    let _ = writeln!(
        text,
        r#"{{"timestamp": {}, "input_length": {input}, "output_length": {output}{}}}"#,
        at * 1e3,
        slo.unwrap_or_default()
    );
}

/// Runs a deployment; returns each request's figures in shares of what it was promised.
fn measure(lab: &mut Lab<'_>, fleet: &Fleet, path: &Path) -> Result<Vec<SloMetric>> {
    let ran = lab.replay_fleet(fleet, path, MAX_MODEL_LEN)?;
    let shares = ran.outcome.requests.iter().map(|request| {
        let of = |value: Option<f64>, limit: Option<Duration>| {
            value.zip(limit).map(|(value, limit)| value / limit.as_secs_f64())
        };
        let SloMetric { ttft, tpot } = SloMetric::from(request);
        SloMetric { ttft: of(ttft, request.slo.ttft), tpot: of(tpot, request.slo.tpot) }
    });
    Ok(shares.collect())
}

impl Case {
    /// Writes down which requests come, and what each is promised.
    fn write_trace(&self, lab: &Lab<'_>, rate: f64, seed: u64, alone: &Alone) -> Result<PathBuf> {
        let seed = lab.args().seed + seed;
        let config = WorkloadConfig {
            source: Source::StandIn(self.stand_in.clone()),
            arrivals: match self.ticks {
                Some(every) => Arrivals::Ticks { rate, every },
                None => Arrivals::Poisson { rate },
            },
            num_requests: Some(lab.args().num_prompts.unwrap_or(NUM_PROMPTS)),
            max_total_len: Some(MAX_MODEL_LEN),
            output_len: None,
            shared_prefix_len: 0,
            seed,
        };
        let Workload { items, .. } = config.generate()?;
        let mut text = String::new();
        for item in &items {
            let ttft = TTFT_SCALE * alone.seconds(item.prompt.len) * 1e3;
            add_line(
                &mut text,
                item.at,
                (item.prompt.len, item.output_len),
                Some([ttft, TPOT * 1e3]),
            );
        }
        let path = lab.output().join(format!("traces/{}-{rate}-{seed}.jsonl", self.name));
        fs::write(&path, text)?;
        Ok(path)
    }

    /// Puts the goodputs, and how many times those of the plain modes that of multiplexing is, beside the paper's.
    fn compare(&self, groups: &[Group], table: &mut Table) {
        let goodput = |name: &str| {
            let group = groups.iter().find(|group| group.name == name)?;
            group.goodput(KEPT, ATTAINMENT_TARGET).last_met()
        };
        let [vllm, distserve, tropical] = self.theirs;
        let theirs = [
            ("vllm", vllm),
            ("sarathi", None),
            ("distserve", distserve),
            ("multiplexing", tropical),
        ];
        for (name, theirs) in theirs {
            let figure = format!("{}: goodput of {name}, requests/s", self.name);
            table.row([(&*figure).into(), goodput(name).into(), theirs.into()]);
        }
        let over = |a: Option<f64>, b: Option<f64>| a.zip(b).map(|(a, b)| a / b);
        for (name, theirs) in &theirs[..3] {
            let figure = format!("{}: goodput of multiplexing over {name}'s", self.name);
            let ours = over(goodput("multiplexing"), goodput(name));
            table.row([(&*figure).into(), ours.into(), over(tropical, *theirs).into()]);
        }
    }

    fn draw(&self, lab: &Lab<'_>, groups: &[Group]) -> Result<()> {
        let config = AttainmentConfig {
            slo: KEPT,
            target: ATTAINMENT_TARGET,
            scales: vec![2.0, 1.75, 1.5, 1.25, 1.0, 0.75, 0.5],
            scale_rate: None,
        };
        let subtitle = format!(
            "{}, {}, two instances of two simulated A100s\nTTFT within five times what the prompt takes alone",
            lab.title("InternLM2.5-20B"),
            self.stand_in.name,
        );
        let mut figure = attainment(groups, &config, &subtitle);
        figure.title =
            format!("SLO attainment: TTFT ≤ {TTFT_SCALE} x alone, TPOT ≤ {:.0} ms", TPOT * 1e3);
        for chart in &mut figure.charts {
            chart.x.label = chart.x.label.replace(" and GPU", "");
        }
        lab.plot(self.name, figure)
    }
}
