//! The ranks of a model within a process, each on its thread.

use stallfree_comm::{NodeConfig, Part};
use stallfree_core::{Batch, Parallel};
use stallfree_kernels::Backend;

use crate::{Error, Runner};

/// Returns what the ranks of this process hold: those of its node, where there are several.
pub(crate) fn parts_of(parallel: Parallel, nodes: Option<&NodeConfig>) -> Vec<Part> {
    let mut parts = Part::all(parallel.tensor, parallel.pipeline);
    if let Some(nodes) = nodes {
        parts = parts.split_off(nodes.node * nodes.ranks_per_node);
        parts.truncate(nodes.ranks_per_node);
    }
    parts
}

/// Describes what runs on `device`.
pub(crate) fn describe(parallel: Parallel, device: &str) -> String {
    match parallel {
        Parallel::NONE => device.to_owned(),
        Parallel { tensor, pipeline: 1 } => format!("{device}, {tensor} ranks a layer"),
        Parallel { tensor: 1, pipeline } => format!("{device}, {pipeline} stages"),
        Parallel { tensor, pipeline } => {
            format!("{device}, {pipeline} stages of {tensor} ranks a layer")
        }
    }
}

/// Does the same for each of `inputs` at once, and returns what each returns. The first runs on this thread.
pub(crate) fn on_each<I: Send, T: Send>(
    inputs: impl IntoIterator<Item = I>,
    work: impl Fn(I) -> Result<T, Error> + Sync,
) -> Result<Vec<T>, Error> {
    let mut inputs = inputs.into_iter();
    let Some(first) = inputs.next() else { return Ok(Vec::new()) };
    let work = &work;
    std::thread::scope(|scope| {
        let others: Vec<_> = inputs.map(|input| scope.spawn(move || work(input))).collect();
        let mut outputs = vec![work(first)];
        outputs.extend(others.into_iter().map(|other| other.join().unwrap_or(Err(Error::Panic))));
        outputs.into_iter().collect()
    })
}

/// Runs a batch on all ranks.
pub(crate) fn run_all<B: Backend>(runners: &mut [Runner<B>], batch: &Batch) -> Result<(), Error> {
    on_each(runners, |runner| {
        let output = runner.run(batch);
        if output.unsound.is_empty() { Ok(()) } else { Err(Error::Unsound) }
    })
    .map(|_| ())
}
