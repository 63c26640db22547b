//! The ranks of a model within a process, each on its thread.

use stallfree_comm::Part;
use stallfree_core::Batch;
use stallfree_kernels::Backend;

use crate::{Error, Runner};

/// Over how many ranks a model is spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parallel {
    /// Ranks that share each layer.
    pub tensor: usize,
    /// Stages of layers, one after the other.
    pub pipeline: usize,
}

impl Parallel {
    /// One rank that has everything.
    pub const NONE: Self = Self { tensor: 1, pipeline: 1 };

    /// Returns how many ranks there are.
    #[must_use]
    pub const fn world_size(self) -> usize {
        self.tensor * self.pipeline
    }

    /// Describes what runs on `device`.
    pub(crate) fn describe(self, device: &str) -> String {
        match self {
            Self::NONE => device.to_owned(),
            Self { tensor, pipeline: 1 } => format!("{device}, {tensor} ranks a layer"),
            Self { tensor: 1, pipeline } => format!("{device}, {pipeline} stages"),
            Self { tensor, pipeline } => {
                format!("{device}, {pipeline} stages of {tensor} ranks a layer")
            }
        }
    }

    /// Returns what each rank holds.
    #[must_use]
    pub fn parts(self) -> Vec<Part> {
        Part::all(self.tensor, self.pipeline)
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
    on_each(runners, |runner| Ok(runner.run(batch)?)).map(|_| ())
}
