//! The figures of a run.

mod attainment;
mod sarathi;
mod stalls;
mod stats;
mod summary;

pub use attainment::{ATTAINMENT_TARGET, Attained, Crossing, Slo, SloMetric, attained, crossing};
pub use sarathi::{REQUEST_METRICS, RequestMetric, TOKEN_TIME, completions, token_gaps};
pub use stalls::Stalls;
pub use stats::{Distribution, quantile};
pub use summary::{Goodput, Summary, SummaryConfig};
