//! When requests come.

use rand::Rng;
use rand_distr::{Distribution as _, Exp1, Gamma};

use crate::{Error, Result};

/// When requests come. Rates are requests a second.
#[derive(Clone, Debug, PartialEq)]
pub enum Arrivals {
    /// All at once, at the start.
    Static,
    /// One every `1 / rate` seconds.
    Fixed {
        /// The rate.
        rate: f64,
    },
    /// Independent of each other.
    Poisson {
        /// The mean rate.
        rate: f64,
    },
    /// Poisson with no interval longer than `3 / rate`, as Sarathi-Serve's artifact draws them: 1.052 times the nominal rate.
    PoissonClipped {
        /// The nominal rate.
        rate: f64,
    },
    /// In bursts: gamma-distributed intervals of the given coefficient of variation; 1 is Poisson.
    Gamma {
        /// The mean rate.
        rate: f64,
        /// Standard deviation over mean of the intervals.
        cv: f64,
    },
    /// A rate that moves from one value to another over the run, with gamma-distributed intervals.
    Ramp {
        /// The rate at the start.
        from: f64,
        /// The rate at the end.
        to: f64,
        /// How it gets there.
        shape: RampShape,
        /// As for [`Gamma`](Self::Gamma).
        cv: f64,
    },
    /// Independent of each other, but seen only every so many seconds, as in Mooncake's trace: as many at once as have come since.
    Ticks {
        /// The mean rate.
        rate: f64,
        /// Seconds from one tick to the next.
        every: f64,
    },
    /// At the trace's own times.
    Replay {
        /// 2 replays in half the time.
        speed: f64,
        /// Each request comes up to this many seconds of the trace later: undoes coarse timestamps, which bunch requests.
        jitter: f64,
    },
}

/// How a ramp's rate moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RampShape {
    /// By the same amount with each request.
    Linear,
    /// By the same factor with each request.
    Exponential,
}

/// The longest interval of the clipped process, in mean intervals.
const CLIP: f64 = 3.0;

impl Arrivals {
    /// Returns the same process at another rate.
    ///
    /// # Errors
    /// It has no rate, or more than one.
    pub fn at_rate(&self, rate: f64) -> Result<Self> {
        match *self {
            Self::Fixed { .. } => Ok(Self::Fixed { rate }),
            Self::Poisson { .. } => Ok(Self::Poisson { rate }),
            Self::PoissonClipped { .. } => Ok(Self::PoissonClipped { rate }),
            Self::Gamma { cv, .. } => Ok(Self::Gamma { rate, cv }),
            Self::Ticks { every, .. } => Ok(Self::Ticks { rate, every }),
            Self::Static | Self::Ramp { .. } | Self::Replay { .. } => Err(Error::Workload(
                "these arrivals have no rate to be changed; take fixed, poisson or gamma"
                    .to_owned(),
            )),
        }
    }

    /// Draws when `count` requests come; the first one of all processes but `Static` comes after an interval.
    ///
    /// # Errors
    /// A rate or a coefficient is not a positive number, or the times are a trace's.
    pub fn times(&self, count: usize, rng: &mut impl Rng) -> Result<Vec<f64>> {
        let mut now = 0.0;
        let mut add = |interval: f64| {
            now += interval;
            now
        };
        Ok(match *self {
            Self::Static => vec![0.0; count],
            Self::Fixed { rate } => {
                let rate = positive("request rate", rate)?;
                (0..count).map(|index| index as f64 / rate).collect()
            }
            Self::Poisson { rate } => {
                let rate = positive("request rate", rate)?;
                (0..count).map(|_| add(exponential(rng) / rate)).collect()
            }
            Self::Ticks { rate, every } => {
                let rate = positive("request rate", rate)?;
                let every = positive("time between ticks", every)?;
                let tick = |at: f64| (at / every).ceil() * every;
                (0..count).map(|_| tick(add(exponential(rng) / rate))).collect()
            }
            Self::PoissonClipped { rate } => {
                let rate = positive("request rate", rate)?;
                (0..count).map(|_| add(exponential(rng).min(CLIP) / rate)).collect()
            }
            Self::Gamma { rate, cv } => {
                let rate = positive("request rate", rate)?;
                let unit = unit_gamma(cv)?;
                (0..count).map(|_| add(unit.sample(rng) / rate)).collect()
            }
            Self::Ramp { from, to, shape, cv } => {
                let (from, to) = (positive("start rate", from)?, positive("end rate", to)?);
                let unit = unit_gamma(cv)?;
                let steps = count.saturating_sub(1).max(1) as f64;
                let rate = |index: usize| {
                    let progress = index as f64 / steps;
                    match shape {
                        RampShape::Linear => from + (to - from) * progress,
                        RampShape::Exponential => from * (to / from).powf(progress),
                    }
                };
                (0..count).map(|index| add(unit.sample(rng) / rate(index))).collect()
            }
            Self::Replay { .. } => {
                return Err(Error::Workload("only a trace has times to replay".to_owned()));
            }
        })
    }

    /// Returns the mean rate that was asked for; infinite where all come at once, `None` where a trace decides.
    #[must_use]
    pub fn rate(&self) -> Option<f64> {
        match *self {
            Self::Static => Some(f64::INFINITY),
            Self::Fixed { rate }
            | Self::Poisson { rate }
            | Self::PoissonClipped { rate }
            | Self::Ticks { rate, .. }
            | Self::Gamma { rate, .. } => Some(rate),
            Self::Ramp { to, .. } => Some(to),
            Self::Replay { .. } => None,
        }
    }
}

fn exponential(rng: &mut impl Rng) -> f64 {
    Exp1.sample(rng)
}

/// Gamma-distributed with mean 1.
fn unit_gamma(cv: f64) -> Result<Gamma<f64>> {
    let cv = positive("coefficient of variation", cv)?;
    Gamma::new(1.0 / (cv * cv), cv * cv).map_err(|error| {
        Error::Workload(format!("no arrivals have the coefficient of variation {cv}: {error}"))
    })
}

fn positive(what: &str, value: f64) -> Result<f64> {
    if value.is_finite() && value > 0.0 {
        return Ok(value);
    }
    Err(Error::Workload(format!("the {what} {value} is not a number above 0")))
}
