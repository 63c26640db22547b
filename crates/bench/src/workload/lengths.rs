//! How long prompts and outputs are.

use std::str::FromStr;

use rand::Rng;
use rand_distr::{Distribution as _, LogNormal};

use crate::{Error, Result};

/// A distribution of lengths, in tokens. Written `512`, `uniform:1-1024`, `lognormal:MEDIAN,SIGMA` (or `lognormal:MEDIAN,SIGMA,MAX`),
/// `S`, `M` or `L`.
#[derive(Clone, Debug, PartialEq)]
pub enum Lengths {
    /// Always the same.
    Fixed(usize),
    /// Each from `low` to `high` as likely as the others.
    Uniform {
        /// The least.
        low: usize,
        /// The most.
        high: usize,
    },
    /// Log-normal; draws beyond `max` are drawn again.
    LogNormal {
        /// The median.
        median: f64,
        /// The standard deviation of the logarithm.
        sigma: f64,
        /// The most.
        max: usize,
    },
    /// Llumnix's generated lengths (OSDI '24, table 1): a power law over ranks, scaled to a mean.
    Power(Power),
    /// Linear between quantiles: `(share of all lengths below, length)`, from share 0 to share 1.
    Quantiles(&'static [(f64, f64)]),
}

/// Llumnix's power law: rank `r` of `1..2 * mean` has probability ∝ `r^-alpha`; ranks are scaled so that their mean is `mean`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Power {
    alpha: f64,
    mean: usize,
}

/// The longest length of Llumnix's generator.
const POWER_MAX: f64 = 6144.0;

/// How often a length beyond the limit is drawn again before the limit is taken.
const MAX_REDRAWS: usize = 1000;

impl Lengths {
    /// Draws one, at least 1.
    pub fn sample(&self, rng: &mut impl Rng) -> usize {
        match self {
            Self::Fixed(len) => (*len).max(1),
            Self::Uniform { low, high } => rng.random_range(*low..=*high).max(1),
            Self::LogNormal { median, sigma, max } => log_normal(*median, *sigma, *max, rng),
            Self::Power(power) => power.sample(rng),
            Self::Quantiles(table) => at_quantile(table, rng.random()).round().max(1.0) as usize,
        }
    }

    /// Returns lengths within `ratio` of `len` on both sides, as vLLM's random data set has them.
    #[must_use]
    pub fn around(len: usize, ratio: f64) -> Self {
        let spread = |factor: f64| (len as f64 * factor) as usize;
        match (spread(1.0 - ratio), spread(1.0 + ratio)) {
            (low, high) if low < high => Self::Uniform { low: low.max(1), high },
            _ => Self::Fixed(len),
        }
    }
}

fn log_normal(median: f64, sigma: f64, max: usize, rng: &mut impl Rng) -> usize {
    let Ok(normal) = LogNormal::new(median.ln(), sigma) else { return max };
    let drawn = (0..MAX_REDRAWS).map(|_| normal.sample(rng)).find(|&len| len <= max as f64);
    drawn.map_or(max, |len| len.round().max(1.0) as usize)
}

/// Returns the length below which a share of all lengths lies.
fn at_quantile(table: &[(f64, f64)], share: f64) -> f64 {
    let above = table.partition_point(|&(at, _)| at < share).min(table.len() - 1);
    let (low, high) = (table[above.saturating_sub(1)], table[above]);
    let width = high.0 - low.0;
    if width <= 0.0 { high.1 } else { low.1 + (high.1 - low.1) * (share - low.0) / width }
}

impl Power {
    /// Llumnix's short lengths: mean 128.
    pub const SHORT: Self = Self { alpha: 2.0, mean: 128 };
    /// Llumnix's medium lengths: mean 256.
    pub const MEDIUM: Self = Self { alpha: 1.5, mean: 256 };
    /// Llumnix's long lengths: mean 512.
    pub const LONG: Self = Self { alpha: 1.15, mean: 512 };

    fn sample(self, rng: &mut impl Rng) -> usize {
        let ranks = 1..2 * self.mean;
        let weight = |rank: usize| (rank as f64).powf(-self.alpha);
        let (total, moment) = ranks.clone().fold((0.0, 0.0), |(total, moment), rank| {
            (total + weight(rank), moment + weight(rank) * rank as f64)
        });
        let scale = self.mean as f64 * total / moment;
        let mut left = rng.random::<f64>() * total;
        let rank = ranks.clone().find(|&rank| {
            left -= weight(rank);
            left < 0.0
        });
        let rank = rank.unwrap_or(ranks.end - 1) as f64;
        (rank * scale).ceil().min(POWER_MAX) as usize
    }
}

impl FromStr for Lengths {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = || Error::Syntax {
            what: "lengths",
            text: text.to_owned(),
            expected: "512, uniform:LOW-HIGH, lognormal:MEDIAN,SIGMA[,MAX], S, M or L",
        };
        let count = |text: &str| text.trim().parse::<usize>().ok().filter(|&len| len > 0);
        match text {
            "S" => return Ok(Self::Power(Power::SHORT)),
            "M" => return Ok(Self::Power(Power::MEDIUM)),
            "L" => return Ok(Self::Power(Power::LONG)),
            _ => {}
        }
        if let Some(range) = text.strip_prefix("uniform:") {
            let (low, high) = range.split_once('-').ok_or_else(bad)?;
            let (low, high) = count(low).zip(count(high)).ok_or_else(bad)?;
            return if low <= high { Ok(Self::Uniform { low, high }) } else { Err(bad()) };
        }
        if let Some(numbers) = text.strip_prefix("lognormal:") {
            let numbers: Vec<&str> = numbers.split(',').collect();
            let number = |index: usize| {
                let text = numbers.get(index)?.trim();
                text.parse::<f64>().ok().filter(|value| value.is_finite())
            };
            let (median, sigma) = number(0).zip(number(1)).ok_or_else(bad)?;
            let max = match numbers.get(2) {
                Some(text) => count(text).ok_or_else(bad)?,
                None => usize::MAX,
            };
            if median < 1.0 || sigma < 0.0 || numbers.len() > 3 || (max as f64) < median {
                return Err(bad());
            }
            return Ok(Self::LogNormal { median, sigma, max });
        }
        count(text).map(Self::Fixed).ok_or_else(bad)
    }
}
