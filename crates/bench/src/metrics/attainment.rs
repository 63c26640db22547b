//! How many requests meet their service-level objectives (DistServe, OSDI '24).

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::RequestRecord;

/// The share of requests that has to keep its objectives, if nothing else is said.
pub const ATTAINMENT_TARGET: f64 = 0.9;

/// What a request is promised, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Slo {
    /// The most time to the first token.
    pub ttft: f64,
    /// The most time a token after the first, as a mean over the request.
    pub tpot: f64,
}

impl Slo {
    /// Returns the same for requests that say so themselves.
    #[must_use]
    pub fn of_request(self) -> stallfree_core::Slo {
        let duration = |seconds: f64| Duration::try_from_secs_f64(seconds).ok();
        stallfree_core::Slo { ttft: duration(self.ttft), tpot: duration(self.tpot) }
    }

    /// Multiplies both by `scale`.
    #[must_use]
    pub const fn scaled(self, scale: f64) -> Self {
        Self { ttft: self.ttft * scale, tpot: self.tpot * scale }
    }
}

/// What became of a request, as far as objectives are concerned: `(TTFT, TPOT)` in seconds.
///
/// A request that failed has no TTFT and misses both; one with fewer than two tokens has no TPOT and meets that objective.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SloMetric {
    /// Time to the first token.
    pub ttft: Option<f64>,
    /// Mean time a token after the first.
    pub tpot: Option<f64>,
}

impl From<&RequestRecord> for SloMetric {
    fn from(request: &RequestRecord) -> Self {
        let ttft = request.ttft().filter(|_| request.is_completed());
        Self { ttft, tpot: request.tpot() }
    }
}

/// Shares of all requests that met objectives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Attained {
    /// Both.
    pub both: f64,
    /// That on the TTFT.
    pub ttft: f64,
    /// That on the TPOT.
    pub tpot: f64,
}

/// Returns which share of requests met `slo`; of no requests, none.
#[must_use]
pub fn attained(requests: &[SloMetric], slo: Slo) -> Attained {
    let ttft = |request: &SloMetric| request.ttft.is_some_and(|ttft| ttft <= slo.ttft);
    let tpot = |request: &SloMetric| {
        request.ttft.is_some() && request.tpot.is_none_or(|tpot| tpot <= slo.tpot)
    };
    let share = |met: &dyn Fn(&SloMetric) -> bool| {
        requests.iter().filter(|request| met(request)).count() as f64 / requests.len().max(1) as f64
    };
    Attained {
        both: share(&|request| ttft(request) && tpot(request)),
        ttft: share(&ttft),
        tpot: share(&tpot),
    }
}

/// Where a curve goes below a target.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Crossing {
    /// Between two points, by linear interpolation.
    At(f64),
    /// Nowhere: every point meets the target, so it lies beyond the last.
    Beyond(f64),
    /// Not even the first point meets it.
    Never,
}

impl Crossing {
    /// Returns where the target is still met, as far as the points tell.
    #[must_use]
    pub const fn last_met(self) -> Option<f64> {
        match self {
            Self::At(x) | Self::Beyond(x) => Some(x),
            Self::Never => None,
        }
    }
}

/// Returns where a curve through `points`, in the order given, first goes below `target`.
#[must_use]
pub fn crossing(points: &[(f64, f64)], target: f64) -> Crossing {
    let Some(&(first, y)) = points.first() else { return Crossing::Never };
    if y < target {
        return Crossing::Never;
    }
    for pair in points.windows(2) {
        let ((x0, y0), (x1, y1)) = (pair[0], pair[1]);
        if y1 < target {
            return Crossing::At(x0 + (x1 - x0) * (y0 - target) / (y0 - y1));
        }
    }
    Crossing::Beyond(points.last().map_or(first, |&(x, _)| x))
}
