//! Stalls: times in which nobody's next token came though it could have.

use serde::{Deserialize, Serialize};

use super::Distribution;
use crate::RequestRecord;

/// The stalls of a run. A gap is the time between two consecutive tokens of one request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Stalls {
    /// How many times the median gap a gap has to exceed to count.
    pub factor: f64,
    /// The median gap, in seconds.
    pub median_gap: f64,
    /// The longest gap of any request, in seconds.
    pub longest_gap: f64,
    /// Gaps longer than `factor` times the median.
    pub num_long_gaps: usize,
    /// Requests with at least one such gap.
    pub num_stalled_requests: usize,
    /// Time in which at least one request was between its first and its last token, in seconds.
    pub decoding_time: f64,
    /// Of it, the time in stretches longer than `factor` times the median gap in which no request at all got a token, in seconds.
    pub stalled_time: f64,
    /// `stalled_time` over `decoding_time`.
    pub stalled_share: f64,
    /// The longest stretch in which no request at all got a token though one was between its first and its last, in seconds.
    #[serde(default)]
    pub longest_stretch: f64,
}

impl Stalls {
    /// The usual factor: a hybrid batch takes two or three times as long as one of decodes alone, a stall ten times and more.
    pub const FACTOR: f64 = 5.0;

    /// Finds the stalls among requests; `gaps` are all their gaps.
    #[must_use]
    pub fn find(requests: &[RequestRecord], gaps: &Distribution, factor: f64) -> Self {
        let median_gap = gaps.quantile(0.5);
        let limit = factor * median_gap;
        let num_short = gaps.sorted().partition_point(|&gap| gap <= limit);
        let is_stalled = |request: &&RequestRecord| request.gaps().any(|gap| gap > limit);
        let Stretches { decoding_time, stalled_time, longest } = stretches(requests, limit);
        Self {
            factor,
            median_gap,
            longest_gap: gaps.max(),
            num_long_gaps: gaps.sorted().len() - num_short,
            num_stalled_requests: requests.iter().filter(is_stalled).count(),
            decoding_time,
            stalled_time,
            stalled_share: if decoding_time > 0.0 { stalled_time / decoding_time } else { 0.0 },
            longest_stretch: longest,
        }
    }
}

/// Stretches without a token while some request was decoding.
#[derive(Default)]
struct Stretches {
    /// All of them together.
    decoding_time: f64,
    /// Those longer than the limit.
    stalled_time: f64,
    longest: f64,
}

/// Finds them; those longer than `limit` are stalls.
fn stretches(requests: &[RequestRecord], limit: f64) -> Stretches {
    // How many requests more are between first and last token from each moment with a token on. Requests share moments, so that
    // the list is far shorter than there are tokens once equal ones are merged.
    let mut moments: Vec<f64> =
        requests.iter().flat_map(|request| request.token_times.iter().copied()).collect();
    moments.sort_unstable_by(f64::total_cmp);
    moments.dedup();
    let mut changes: Vec<(f64, i64)> = requests
        .iter()
        .filter_map(|request| request.token_times.first().zip(request.token_times.last()))
        .flat_map(|(&first, &last)| [(first, 1), (last, -1)])
        .collect();
    changes.sort_unstable_by(|(a, _), (b, _)| a.total_cmp(b));
    let mut changes = changes.into_iter().peekable();
    let (mut found, mut active) = (Stretches::default(), 0);
    for pair in moments.windows(2) {
        while let Some((_, change)) = changes.next_if(|&(at, _)| at <= pair[0]) {
            active += change;
        }
        if active > 0 {
            let stretch = pair[1] - pair[0];
            found.decoding_time += stretch;
            found.stalled_time += if stretch > limit { stretch } else { 0.0 };
            found.longest = found.longest.max(stretch);
        }
    }
    found
}
