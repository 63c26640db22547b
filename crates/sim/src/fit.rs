//! Fits a calibration's factors to measured steps.

use serde::{Deserialize, Serialize};
use stallfree_core::Parallel;

use crate::gpu::Shipped;
use crate::{Calibration, CostModel, Error, Factors, Gpu, ModelShape, StepLoad};

/// Measurements of one model on one group of GPUs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Where they come from.
    pub source: String,
    /// The GPU: one that is shipped, or its data.
    pub gpu: GpuChoice,
    /// The model: one that is known by name, or its config.json.
    pub model: ModelChoice,
    /// GPUs that share each layer.
    pub tensor_parallel_size: usize,
    /// Where the search begins; what it does not touch stays so.
    pub start: Factors,
    /// The steps.
    pub steps: Vec<Step>,
}

/// A GPU by name or in full.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum GpuChoice {
    /// One of those that are shipped.
    Named(String),
    /// Any other.
    Given(Gpu),
}

/// A model by name or in full.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ModelChoice {
    /// One of those that are known by name.
    Named(String),
    /// A parsed config.json.
    Given(serde_json::Value),
}

/// A step that was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Its chunks, equal ones together: how many, tokens in the cache before each, tokens computed.
    pub chunks: Vec<[usize; 3]>,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// How long its matrix products took of that, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub linear_s: Option<f64>,
    /// How many tokens it samples, where that is not one a chunk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_samples: Option<usize>,
}

/// A measured step beside its prediction.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Residual {
    /// The step, in words.
    pub step: String,
    /// What was measured, in milliseconds.
    pub measured_ms: f64,
    /// What is predicted, in milliseconds.
    pub predicted_ms: f64,
}

/// How the search scales each free factor.
const FREE: &[fn(&mut Factors) -> &mut f64] = &[
    |factors| &mut factors.linear,
    |factors| &mut factors.memory,
    |factors| &mut factors.attention,
    |factors| &mut factors.layer_s,
    |factors| &mut factors.step_s,
    |factors| &mut factors.seq_s,
];

/// Free where the search begins below 1.
const OVERLAP: fn(&mut Factors) -> &mut f64 = |factors| &mut factors.overlap;

impl Measured {
    fn gpu(&self) -> Result<Gpu, Error> {
        match &self.gpu {
            GpuChoice::Named(name) => Ok(Shipped::find(name)?.gpu()),
            GpuChoice::Given(gpu) => Ok(gpu.clone()),
        }
    }

    fn shape(&self) -> Result<ModelShape, Error> {
        match &self.model {
            ModelChoice::Named(name) => {
                ModelShape::built_in(name).ok_or(Error::BadShape { key: "model" })
            }
            ModelChoice::Given(config) => ModelShape::from_config(config),
        }
    }

    /// Fits the factors to the steps.
    ///
    /// They are those that give the least mean square of the logarithm of predicted over measured. The tile and the
    /// collectives' factor stay as they are, and keys are read as fast as weights. The search scales one factor at a time, by ever
    /// smaller steps once nothing helps: deterministic, and good enough for a handful of factors.
    ///
    /// # Errors
    /// The model or the GPU is unknown, or doesn't go with the other.
    pub fn fit(&self) -> Result<Calibration, Error> {
        let bench = Bench::new(self)?;
        let (_, factors) = bench.search(self.start)?;
        bench.calibration(factors)
    }

    /// Fits the factors as [`fit`](Self::fit) does, but from many beginnings and with every tile, for measurements of which
    /// nothing is known ahead. What the host takes shows only where the device is faster, so that a search which begins at nothing
    /// finds nothing.
    ///
    /// # Errors
    /// As [`fit`](Self::fit).
    pub fn fit_widely(&self) -> Result<Calibration, Error> {
        let bench = Bench::new(self)?;
        let shortest = self.steps.iter().map(|step| step.seconds).fold(f64::INFINITY, f64::min);
        let layers = bench.shape.num_layers as f64;
        let mut best = (f64::INFINITY, self.start);
        for tile in TILES {
            for (layers_share, seq_share, step_share) in BEGINNINGS {
                let found = bench.search(Factors {
                    tile,
                    layer_s: layers_share * shortest / layers,
                    seq_s: seq_share * shortest,
                    step_s: step_share * shortest,
                    ..self.start
                })?;
                if found.0 < best.0 {
                    best = found;
                }
            }
        }
        bench.calibration(best.1)
    }
}

/// Which shares of the shortest step the host takes for its layers, a sequence and the rest.
const BEGINNINGS: [(f64, f64, f64); 6] = [
    (0.01, 0.0001, 0.01),
    (0.01, 0.0001, 0.3),
    (0.6, 0.0001, 0.3),
    (0.8, 0.0001, 0.02),
    (0.6, 0.02, 0.3),
    (0.01, 0.02, 0.3),
];

/// The tiles that a fit may choose from.
const TILES: [usize; 6] = [1, 8, 16, 32, 64, 128];

/// The measured steps, ready to be compared with predictions.
struct Bench<'a> {
    measured: &'a Measured,
    gpu: Gpu,
    shape: ModelShape,
    loads: Vec<StepLoad>,
}

impl<'a> Bench<'a> {
    fn new(measured: &'a Measured) -> Result<Self, Error> {
        let (gpu, shape) = (measured.gpu()?, measured.shape()?);
        let loads = measured.steps.iter().map(|step| step.load(shape.window)).collect();
        Ok(Self { measured, gpu, shape, loads })
    }

    /// Returns the factors that fit best, and their error.
    fn search(&self, start: Factors) -> Result<(f64, Factors), Error> {
        // A start that hides all says that nothing else is to be tried.
        let free = || FREE.iter().chain((start.overlap < 1.0).then_some(&OVERLAP));
        let mut best = (self.error(start)?, start);
        let mut scale = 2.0_f64;
        while scale > 1.0005 {
            let before = best.0;
            for factor in free() {
                for scale in [scale, 1.0 / scale] {
                    let mut candidate = best.1;
                    *factor(&mut candidate) *= scale;
                    candidate.kv_read = candidate.memory;
                    candidate.overlap = candidate.overlap.min(1.0);
                    let error = self.error(candidate)?;
                    if error < best.0 {
                        best = (error, candidate);
                    }
                }
            }
            if best.0 > before * 0.9999 {
                scale = scale.sqrt();
            }
        }
        Ok(best)
    }

    fn calibration(&self, factors: Factors) -> Result<Calibration, Error> {
        let factors = factors.rounded();
        Ok(Calibration {
            source: self.measured.source.clone(),
            gpu: match &self.measured.gpu {
                GpuChoice::Named(_) => None,
                GpuChoice::Given(gpu) => Some(gpu.clone()),
            },
            residuals: self.residuals(factors)?,
            factors,
        })
    }

    /// Calls `see` with each step, what was measured of it, and what is predicted.
    fn compare(
        &self,
        factors: Factors,
        mut see: impl FnMut(&Step, &str, f64, f64),
    ) -> Result<(), Error> {
        let parallel = Parallel { tensor: self.measured.tensor_parallel_size, pipeline: 1 };
        let cost = CostModel::new(&self.shape, parallel, &self.gpu, factors)?;
        for (step, load) in self.measured.steps.iter().zip(&self.loads) {
            see(step, "", step.seconds, cost.step_s(load));
            if let Some(linear) = step.linear_s {
                let predicted = cost.layer(load).linear * self.shape.num_layers as f64;
                see(step, ", matrix products", linear, predicted);
            }
        }
        Ok(())
    }

    fn error(&self, factors: Factors) -> Result<f64, Error> {
        let (mut sum, mut count) = (0.0, 0.0_f64);
        self.compare(factors, |_, _, measured, predicted| {
            sum += (predicted / measured).ln().powi(2);
            count += 1.0;
        })?;
        Ok(sum / count.max(1.0))
    }

    fn residuals(&self, factors: Factors) -> Result<Vec<Residual>, Error> {
        let mut residuals = Vec::new();
        let ms = |seconds: f64| (seconds * 1e5).round() / 1e2;
        self.compare(factors, |step, part, measured, predicted| {
            let step = format!("{}{part}", step.describe());
            residuals.push(Residual {
                step,
                measured_ms: ms(measured),
                predicted_ms: ms(predicted),
            });
        })?;
        Ok(residuals)
    }
}

impl Step {
    /// Returns its tokens.
    #[must_use]
    pub fn num_tokens(&self) -> usize {
        self.chunks.iter().map(|[count, _, tokens]| count * tokens).sum()
    }

    fn load(&self, window: Option<usize>) -> StepLoad {
        let mut load = StepLoad::default();
        for &[count, num_computed, num_tokens] in &self.chunks {
            for _ in 0..count {
                load.add(num_computed, num_tokens, window);
                load.num_samples += 1;
            }
        }
        load.num_samples = self.num_samples.unwrap_or(load.num_samples);
        load
    }

    /// Describes the step: `32 × 1 after 1022`.
    fn describe(&self) -> String {
        let name = |&[count, after, tokens]: &[usize; 3]| match after {
            0 => format!("{count} × {tokens}"),
            _ => format!("{count} × {tokens} after {after}"),
        };
        self.chunks.iter().map(name).collect::<Vec<_>>().join(" + ")
    }
}

impl Factors {
    /// Cuts what no measurement tells.
    fn rounded(self) -> Self {
        let digits = |value: f64| format!("{value:.3e}").parse().unwrap_or(value);
        Self {
            linear: digits(self.linear),
            memory: digits(self.memory),
            overlap: digits(self.overlap),
            attention: digits(self.attention),
            kv_read: digits(self.kv_read),
            layer_s: digits(self.layer_s),
            step_s: digits(self.step_s),
            seq_s: digits(self.seq_s),
            ..self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHIPPED: &[(&str, &str, f64)] = &[
        (include_str!("../data/a100-steps.json"), include_str!("../data/a100.json"), 0.25),
        (include_str!("../data/h100-steps.json"), include_str!("../data/h100.json"), 0.15),
        (include_str!("../data/h200-steps.json"), include_str!("../data/h200.json"), 0.15),
        (
            include_str!("../data/a100-distserve-steps.json"),
            include_str!("../data/a100-distserve.json"),
            0.06,
        ),
    ];

    #[test]
    fn the_shipped_calibrations_are_what_their_measurements_give() {
        for (steps, calibration, worst) in SHIPPED {
            let measured: Measured = serde_json::from_str(steps).expect("a measurements file");
            let shipped: Calibration = serde_json::from_str(calibration).expect("a calibration");
            assert_eq!(measured.fit().expect("a fit"), shipped);
            for residual in shipped.residuals {
                let off = (residual.predicted_ms / residual.measured_ms - 1.0).abs();
                assert!(off < *worst, "{residual:?}");
            }
        }
    }

    #[test]
    fn a_fit_finds_the_factors_that_made_the_steps() {
        let mut measured: Measured = serde_json::from_str(SHIPPED[0].0).expect("measurements");
        let truth = Factors { linear: 0.5, memory: 0.8, kv_read: 0.8, ..measured.start };
        let bench = Bench::new(&measured).expect("known names");
        let mut seconds = Vec::new();
        bench
            .compare(truth, |_, part, _, predicted| {
                if part.is_empty() {
                    seconds.push(predicted);
                }
            })
            .expect("a model that splits");
        for (step, seconds) in measured.steps.iter_mut().zip(seconds) {
            (step.seconds, step.linear_s) = (seconds, None);
        }
        let residuals = measured.fit().expect("a fit").residuals;
        for residual in residuals {
            let ratio = residual.predicted_ms / residual.measured_ms;
            assert!((0.95..1.05).contains(&ratio), "{residual:?}");
        }
    }
}
