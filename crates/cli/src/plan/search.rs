//! Which placements are tried, and in which order.

use std::sync::Mutex;

use anyhow::{Context as _, Result};
use rayon::prelude::*;
use stallfree_core::lock;

use super::PlanArgs;
use super::placement::{Fleet, Placement};
use super::rate::{Highest, Outcome, highest};
use super::trial::{Bench, LOWEST, Part, Tried};
use crate::args::ReplicaSpec;
use crate::bench::RunProgress;
use crate::instance;

/// What a search found.
#[derive(Debug)]
pub(super) struct Found {
    /// Those that were simulated whole, the best first.
    pub(super) placements: Vec<Ranked>,
    /// Why instances of some sizes were left out.
    pub(super) left_out: Vec<String>,
    /// How many combinations there were.
    pub(super) num_combined: usize,
}

/// A placement that was simulated whole.
#[derive(Clone, Debug)]
pub(super) struct Ranked {
    pub(super) placement: Placement,
    /// Requests a second, by its instances taken one by one.
    pub(super) estimate: f64,
    /// Requests a second by simulation of the whole.
    pub(super) found: Highest,
    /// What it is like at that rate.
    pub(super) tried: Option<Tried>,
}

impl Found {
    /// Returns the best placement that serves at all.
    pub(super) fn best(&self) -> Option<&Ranked> {
        self.placements.first().filter(|best| best.found.rate > 0.0)
    }
}

/// An instance of one size, and how many requests a second it takes in each of its uses.
#[derive(Clone, Copy, Debug)]
struct Instance {
    spec: ReplicaSpec,
    together: f64,
    prefill: f64,
    decode: f64,
}

/// Tries instances by themselves, combines them, and simulates the best combinations whole.
///
/// # Errors
/// The flags don't allow it, or no instance fits.
pub(super) fn run(bench: &Bench<'_>, args: &PlanArgs) -> Result<Found> {
    let (specs, left_out) = specs(bench, args)?;
    let top = args.search.top.get();
    let total = 3 * specs.len() + 2 * top;
    let progress = Progress::start(total, args.search.no_progress);
    let instances = specs.par_iter().map(|&spec| measure(bench, args, spec, &progress));
    let instances = instances.collect::<Result<Vec<Instance>>>()?;
    let combined = combine(&instances, args.search.num_gpus);
    let num_combined = combined.len();
    let (apart, together): (Vec<_>, Vec<_>) = combined
        .into_iter()
        .partition(|(placement, _)| matches!(placement, Placement::Apart { .. }));
    let best = [apart, together].into_iter().flat_map(|kind| distinct(kind).take(top));
    let chosen: Vec<(Placement, f64)> = best.collect();
    let placements = chosen.par_iter().map(|&(placement, estimate)| {
        let ranked = simulate(bench, args, placement, estimate);
        progress.step(&placement.to_string());
        ranked
    });
    let mut placements = placements.collect::<Result<Vec<Ranked>>>()?;
    // Fewer GPUs and, of those, the plainer one where rates are the same.
    placements.sort_by(|a, b| {
        b.found
            .rate
            .total_cmp(&a.found.rate)
            .then(a.placement.num_gpus().cmp(&b.placement.num_gpus()))
    });
    Ok(Found { placements, left_out, num_combined })
}

/// Returns the sizes of instances that the model can be split into and that have room for it, and why others are left out.
fn specs(bench: &Bench<'_>, args: &PlanArgs) -> Result<(Vec<ReplicaSpec>, Vec<String>)> {
    let (mut fitting, mut left_out) = (Vec::new(), Vec::new());
    let powers = || (0..).map(|power| 1_usize << power);
    for tensor in powers().take_while(|&tensor| tensor <= args.search.num_gpus) {
        for pipeline in powers().take_while(|pipeline| tensor * pipeline <= args.search.num_gpus) {
            let spec = ReplicaSpec { tensor, pipeline };
            let fleet = Fleet { spec, count: 1 };
            let deployment = Placement::Together(fleet).deployment(args);
            let built = bench.deployment(&deployment, Part::Whole).and_then(|config| {
                instance::members(bench.path(), &config, &mut |_, _| Box::new(Nobody))
            });
            match built {
                Ok(_) => fitting.push(spec),
                Err(error) => left_out.push(format!("TP{tensor} PP{pipeline}: {error:#}")),
            }
        }
    }
    let why = || format!("no instance fits; {}", left_out.last().map_or("", String::as_str));
    fitting.first().with_context(why)?;
    Ok((fitting, left_out))
}

/// Watches nothing.
#[derive(Debug)]
struct Nobody;

impl stallfree_engine::StepObserver for Nobody {
    fn on_step(&mut self, _: &stallfree_engine::StepRecord) {}
}

/// Finds how many requests a second an instance takes in each of its uses.
fn measure(
    bench: &Bench<'_>,
    args: &PlanArgs,
    spec: ReplicaSpec,
    progress: &Progress,
) -> Result<Instance> {
    let one = Fleet { spec, count: 1 };
    let apart = Placement::Apart { prefill: one, decode: one };
    let rate = |placement: Placement, part| -> Result<f64> {
        let config = bench.deployment(&placement.deployment(args), part)?;
        let found = highest(1.0, LOWEST, |rate| -> Result<Outcome> {
            Ok(bench.judge(part, &bench.attempt(&config, part, rate)?))
        });
        progress.step(&one.to_string());
        Ok(found?.rate)
    };
    Ok(Instance {
        spec,
        together: rate(Placement::Together(one), Part::Whole)?,
        prefill: rate(apart, Part::Prefill)?,
        decode: rate(apart, Part::Decode)?,
    })
}

/// Returns all placements on at most `num_gpus`, with the rate that their instances add up to, the best first.
fn combine(instances: &[Instance], num_gpus: usize) -> Vec<(Placement, f64)> {
    let fleets = |instance: &Instance, room: usize| {
        let spec = instance.spec;
        let most = room / Fleet { spec, count: 1 }.num_gpus();
        (1..=most).map(move |count| Fleet { spec, count })
    };
    let mut all = Vec::new();
    for first in instances {
        for fleet in fleets(first, num_gpus).filter(|_| first.together > 0.0) {
            all.push((Placement::Together(fleet), fleet.count as f64 * first.together));
        }
        for prefill in fleets(first, num_gpus).filter(|_| first.prefill > 0.0) {
            for second in instances.iter().filter(|second| second.decode > 0.0) {
                for decode in fleets(second, num_gpus - prefill.num_gpus()) {
                    let sides =
                        [prefill.count as f64 * first.prefill, decode.count as f64 * second.decode];
                    let placement = Placement::Apart { prefill, decode };
                    all.push((placement, sides[0].min(sides[1])));
                }
            }
        }
    }
    // Of what serves the same, what takes fewer GPUs.
    all.sort_by(|(a, x), (b, y)| y.total_cmp(x).then(a.num_gpus().cmp(&b.num_gpus())));
    all
}

/// Leaves of placements, the best first, the best of each that differ in their numbers of instances only: estimates say least about those,
/// because several instances together let a request wait less than each by itself.
fn distinct(placements: Vec<(Placement, f64)>) -> impl Iterator<Item = (Placement, f64)> {
    let mut seen = Vec::new();
    placements.into_iter().filter(move |(placement, _)| {
        let sizes = placement.sizes();
        let is_new = !seen.contains(&sizes);
        seen.push(sizes);
        is_new
    })
}

/// Finds the rate of a whole placement.
fn simulate(
    bench: &Bench<'_>,
    args: &PlanArgs,
    placement: Placement,
    estimate: f64,
) -> Result<Ranked> {
    let config = bench.deployment(&placement.deployment(args), Part::Whole)?;
    let mut at_best = None;
    let found = highest(estimate, LOWEST, |rate| -> Result<Outcome> {
        let tried = bench.attempt(&config, Part::Whole, rate)?;
        let outcome = bench.judge(Part::Whole, &tried);
        if outcome != Outcome::Fails {
            at_best = Some(tried);
        }
        Ok(outcome)
    })?;
    Ok(Ranked { placement, estimate, found, tried: at_best })
}

/// How far a search is.
struct Progress {
    state: Mutex<(RunProgress, usize)>,
    total: usize,
}

impl Progress {
    fn start(total: usize, quiet: bool) -> Self {
        let progress = RunProgress::counting("Placements", "searches", total, quiet);
        Self { state: Mutex::new((progress, 0)), total }
    }

    fn step(&self, what: &str) {
        let mut state = lock(&self.state);
        state.1 += 1;
        let done = state.1;
        state.0.show(done, self.total, || what.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(tensor: usize, together: f64, prefill: f64, decode: f64) -> Instance {
        Instance { spec: ReplicaSpec { tensor, pipeline: 1 }, together, prefill, decode }
    }

    #[test]
    fn instances_are_combined_to_the_best_ratio() {
        let check = |instances: &[Instance], num_gpus: usize, expected: &str, rate: f64| {
            let all = combine(instances, num_gpus);
            assert!(all.iter().all(|(placement, _)| placement.num_gpus() <= num_gpus));
            let (best, estimate) = all.first().expect("a placement");
            assert_eq!((&*best.to_string(), *estimate), (expected, rate));
        };
        let one = instance(1, 1.0, 2.0, 6.0);
        let two = instance(2, 1.5, 9.0, 10.0);
        check(&[one], 4, "3 x TP1 prefill, 1 x TP1 decode", 6.0);
        check(&[one, two], 4, "1 x TP2 prefill, 2 x TP1 decode", 9.0);
        check(&[one, two], 3, "1 x TP2 prefill, 1 x TP1 decode", 6.0);
        check(&[one, two], 1, "1 x TP1", 1.0);
        check(&[instance(1, 5.0, 2.0, 6.0)], 4, "4 x TP1", 20.0);
        check(&[instance(1, 3.0, 0.0, 6.0)], 2, "2 x TP1", 6.0);
    }
}
