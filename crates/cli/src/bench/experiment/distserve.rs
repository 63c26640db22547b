//! DistServe (OSDI '24), figures 8a, 8b and 9b: requests within both objectives, over the rate per GPU and over the objectives' scale,
//! with prefill and decode apart or together; and how near the simulated steps come to the latency model of the paper's simulator.

use anyhow::{Context as _, Result};
use stallfree_bench::metrics::{ATTAINMENT_TARGET, Crossing, Slo, attained, crossing};
use stallfree_bench::plot::{AttainmentConfig, Group, attainment};
use stallfree_core::Parallel;
use stallfree_sim::{Calibration, CostModel, ModelShape, StepLoad};

use super::fleet::{Fleet, Traffic};
use super::lab::Lab;
use super::table::Table;

/// A100s with the step times of the paper's engine, by its latency model.
const OURS: &str = "sim:a100-80g-distserve";

/// A100s with the step times of vLLM in those days, as far as Sarathi-Serve's artifact, which is made from it, tells.
const VLLMS: &str = "sim:a100-80g-sxm";

/// Requests a run and GPU. The paper's scripts send 25 to 100, which is one request in a hundred of a curve's height.
const PROMPTS_PER_GPU: usize = 300;

/// A chart of the paper.
struct Case {
    figure: &'static str,
    model: &'static str,
    dataset: &'static str,
    prefill: (usize, usize),
    decode: (usize, usize),
    /// The instance that does both.
    colocated: (usize, usize),
    /// By the script that draws the paper's charts.
    slo: Slo,
    /// By the paper's table 1, where that is another.
    table_slo: Option<Slo>,
    /// Requests a second and GPU: the first, and how many multiples of it.
    rates: (f64, usize),
    /// At which rate objectives are scaled, and how.
    scale_rate: f64,
    scales: &'static [f64],
    /// How many times vLLM's goodput DistServe's is, by the paper's text.
    theirs: &'static str,
}

const CASES: [Case; 3] = [
    Case {
        figure: "8a",
        model: "opt-13b",
        dataset: "synthetic-sharegpt-2k",
        prefill: (2, 1),
        decode: (1, 1),
        colocated: (1, 1),
        slo: Slo { ttft: 0.25, tpot: 0.1 },
        table_slo: None,
        rates: (0.25, 12),
        scale_rate: 1.5,
        scales: &[1.6, 1.4, 1.2, 1.0, 0.8, 0.6, 0.4],
        theirs: "2.0 to 3.4",
    },
    Case {
        figure: "8b",
        model: "opt-66b",
        dataset: "synthetic-sharegpt-2k",
        prefill: (4, 1),
        decode: (2, 2),
        colocated: (4, 1),
        slo: Slo { ttft: 0.4, tpot: 0.1 },
        table_slo: Some(Slo { ttft: 2.5, tpot: 0.15 }),
        rates: (0.0625, 12),
        scale_rate: 0.25,
        scales: &[1.6, 1.5, 1.4, 1.3, 1.2, 1.1, 1.0, 0.9, 0.8, 0.7],
        theirs: "2.0 to 3.4",
    },
    Case {
        figure: "9b",
        model: "opt-66b",
        dataset: "synthetic-longbench-2k",
        prefill: (4, 1),
        decode: (2, 2),
        colocated: (4, 1),
        slo: Slo { ttft: 15.0, tpot: 0.15 },
        table_slo: None,
        rates: (0.0625, 10),
        scale_rate: 0.375,
        scales: &[10.0, 7.0, 5.0, 3.0, 2.0, 1.5, 1.0, 0.85, 0.7, 0.55],
        theirs: "4.5",
    },
];

pub(super) fn run(lab: &mut Lab<'_>) -> Result<()> {
    let mut summary = Table::new(&[
        "figure",
        "model",
        "deployment",
        "gpus",
        "rate_per_gpu",
        "both",
        "ttft",
        "tpot",
    ]);
    let mut comparison = Table::new(&[
        "figure",
        "ttft_slo_s",
        "tpot_slo_s",
        "deployment",
        "goodput_per_gpu",
        "over_vllm",
        "scale_at_rate",
        "theirs_over_vllm",
    ]);
    let wanted = lab.chosen(CASES.each_ref().map(|case| case.figure), |figure| figure);
    for case in lab.cases(&CASES).iter().filter(|case| wanted.contains(&case.figure)) {
        let groups = case.measure(lab)?;
        for group in &groups {
            for (rate, share) in group.curve(case.slo) {
                summary.row([
                    case.figure.into(),
                    case.model.into(),
                    (&*group.name).into(),
                    group.num_gpus.into(),
                    rate.into(),
                    share.both.into(),
                    share.ttft.into(),
                    share.tpot.into(),
                ]);
            }
        }
        for slo in std::iter::once(case.slo).chain(case.table_slo) {
            case.compare(&groups, slo, &mut comparison);
        }
        case.draw(lab, &groups)?;
    }
    lab.table("latency_model", &latency_model()?)?;
    lab.table("summary", &summary)?;
    lab.table("comparison", &comparison)
}

impl Case {
    /// Runs the deployments at every rate: the paper's two, then those that do both on the faster engine.
    fn measure(&self, lab: &mut Lab<'_>) -> Result<Vec<Group>> {
        let (on, slower) = ((self.model, OURS), (self.model, VLLMS));
        // The limits are those of the paper's scripts.
        let vllm = ["--scheduler=vllm", "--max-num-seqs=1024", "--max-num-batched-tokens=16384"];
        let sarathi =
            ["--scheduler=sarathi", "--max-num-seqs=1024", "--max-num-batched-tokens=512"];
        let apart = [
            "--scheduler=vllm",
            "--prefill-max-num-seqs=128",
            "--prefill-max-num-batched-tokens=8192",
            "--decode-max-num-seqs=1024",
            "--decode-max-num-batched-tokens=65536",
        ];
        let specs = [self.prefill, self.decode];
        let fleets = [
            Fleet::simple("vllm", slower, &[self.colocated]).with(&vllm),
            Fleet::disaggregated("distserve", on, &specs, 1).with(&apart),
            Fleet::simple("vllm, same steps", on, &[self.colocated]).with(&vllm),
            Fleet::simple("sarathi, same steps", on, &[self.colocated]).with(&sarathi),
        ];
        let fleets = lab.chosen(fleets, |fleet| &fleet.label);
        let (step, count) = self.rates;
        let rates: Vec<f64> = (1..=count).map(|index| step * index as f64).collect();
        let rates = lab.rates(&rates);
        let curves = fleets.iter().map(|fleet| {
            let num_prompts = PROMPTS_PER_GPU * fleet.num_gpus;
            let flags = &["--max-model-len=2048", "--gpu-memory-utilization=0.95"];
            lab.run_rates(fleet, &Traffic { dataset: self.dataset, num_prompts, flags }, &rates)
        });
        curves.collect()
    }

    /// Puts the goodputs side by side, and the scale down to which objectives are kept.
    fn compare(&self, groups: &[Group], slo: Slo, table: &mut Table) {
        let goodput = |group: &Group| group.goodput(slo, ATTAINMENT_TARGET).last_met();
        let base = groups.iter().find(|group| group.name == "vllm").and_then(goodput);
        for group in groups {
            let own = goodput(group);
            let over = own.zip(base).map(|(own, base)| own / base);
            table.row([
                self.figure.into(),
                slo.ttft.into(),
                slo.tpot.into(),
                (&*group.name).into(),
                own.into(),
                over.into(),
                self.tightest(group, slo).into(),
                if group.name == "distserve" { self.theirs } else { "" }.into(),
            ]);
        }
    }

    /// Returns down to which scale the objectives are kept at the rate of the paper's second chart.
    fn tightest(&self, group: &Group, slo: Slo) -> Option<f64> {
        let (_, requests) =
            group.points.iter().find(|(rate, _)| (rate - self.scale_rate).abs() < 1e-9)?;
        let at = |&scale: &f64| (scale, attained(requests, slo.scaled(scale)).both);
        let curve: Vec<(f64, f64)> = self.scales.iter().map(at).collect();
        match crossing(&curve, ATTAINMENT_TARGET) {
            Crossing::At(scale) | Crossing::Beyond(scale) => Some(scale),
            Crossing::Never => None,
        }
    }

    fn draw(&self, lab: &Lab<'_>, groups: &[Group]) -> Result<()> {
        let config = AttainmentConfig {
            slo: self.slo,
            target: ATTAINMENT_TARGET,
            scales: self.scales.to_vec(),
            scale_rate: Some(self.scale_rate),
        };
        let spec = |(tensor, pipeline): (usize, usize)| format!("TP {tensor} PP {pipeline}");
        let subtitle = format!(
            "DistServe's figure {}: {}, {}, simulated A100s\nprefill {}, decode {}, together {}",
            self.figure,
            lab.title(self.model),
            self.dataset,
            spec(self.prefill),
            spec(self.decode),
            spec(self.colocated),
        );
        let name = format!("figure_{}", self.figure);
        for (name, groups) in [(name.clone(), &groups[..2]), (name + "_same_steps", &groups[1..])] {
            lab.plot(&name, attainment(groups, &config, &subtitle))?;
        }
        Ok(())
    }
}

/// The latency model of the paper's simulator for OPT-13B, in ms: a prefill's constant, factor for tokens, factor for squared lengths.
const PREFILLS: [(usize, [f64; 3]); 2] =
    [(1, [18.1, 0.1019, 7.12e-6]), (2, [14.7, 0.0686, 2.45e-6])];

/// The same of decodes on one GPU, up to 95 sequences and beyond: constant, factor for context tokens, factor for sequences.
const DECODES: [[f64; 3]; 2] = [[19.93, 6.27e-4, 0.0385], [7.17, 5.80e-4, 0.158]];

/// Puts the paper's latency model beside the predictions of the calibration that is fitted to it, and of that which serves the
/// experiments of Sarathi-Serve.
fn latency_model() -> Result<Table> {
    let mut table = Table::new(&[
        "step",
        "tensor_parallel_size",
        "distserve_ms",
        "a100-80g-distserve_ms",
        "a100-80g-sxm_ms",
    ]);
    let mut row = |step: &str, tensor: usize, theirs: f64, load: &StepLoad| -> Result<()> {
        let ours = |gpu| predicted(gpu, tensor, load);
        let (fitted, other) = (ours("a100-80g-distserve")?, ours("a100-80g-sxm")?);
        table.row([step.into(), tensor.into(), theirs.into(), fitted.into(), other.into()]);
        Ok(())
    };
    for (tensor, [constant, tokens, squares]) in PREFILLS {
        for len in [128, 256, 512, 1024, 2048] {
            let theirs = squares.mul_add((len * len) as f64, tokens * len as f64) + constant;
            row(&format!("prefill of {len}"), tensor, theirs, &load(1, 0, len))?;
        }
    }
    for seqs in [1, 16, 64, 95, 128, 192] {
        let [constant, context, each] = DECODES[usize::from(seqs > 95)];
        let theirs = context.mul_add((seqs * 256) as f64, each * seqs as f64) + constant;
        row(&format!("decode of {seqs} after 255"), 1, theirs, &load(seqs, 255, 1))?;
    }
    Ok(table)
}

fn load(seqs: usize, num_computed: usize, num_tokens: usize) -> StepLoad {
    let mut load = StepLoad::default();
    (0..seqs).for_each(|_| load.add(num_computed, num_tokens, None));
    load.num_samples = seqs;
    load
}

fn predicted(gpu: &str, tensor: usize, load: &StepLoad) -> Result<f64> {
    let (gpu, factors) = Calibration::find(gpu)?;
    let shape = ModelShape::built_in("opt-13b").context("a model that is known by name")?;
    let cost = CostModel::new(&shape, Parallel { tensor, pipeline: 1 }, &gpu, factors)?;
    Ok(cost.step_s(load) * 1e3)
}
