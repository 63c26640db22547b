//! How much of its data sheet a device reaches, and what a step costs besides.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::gpu::Shipped;
use crate::{Error, Gpu, Residual};

/// Factors between a data sheet and reality; fitted to measured steps.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Factors {
    /// Share of the peak that matrix products reach once they have rows enough.
    pub linear: f64,
    /// Rows that matrix products work on at a time.
    pub tile: usize,
    /// Share of the memory bandwidth that reading weights and activations reaches.
    pub memory: f64,
    /// Share of the shorter of a product's arithmetic and reads that the longer one hides: 1 is the roofline.
    #[serde(default = "all", skip_serializing_if = "is_all")]
    pub overlap: f64,
    /// Share of the peak that attention over prompts reaches.
    pub attention: f64,
    /// Share of the memory bandwidth that reading keys and values for single tokens reaches.
    pub kv_read: f64,
    /// Share of a link's bandwidth that collectives reach.
    pub collective: f64,
    /// What the host needs for a layer, in seconds: launching its kernels. It shows only where the device is faster.
    pub layer_s: f64,
    /// What the last stage's host needs for a token that is sampled, in seconds. It shows only where the device is faster.
    pub seq_s: f64,
    /// What a stage takes on top for a step, in seconds, whichever of the two is faster.
    pub step_s: f64,
}

const fn all() -> f64 {
    1.0
}

fn is_all(share: &f64) -> bool {
    *share >= 1.0
}

/// A device with factors for it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// Where the measurements come from.
    pub source: String,
    /// The device; a shipped calibration serves several, and the one that was asked for stands here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<Gpu>,
    /// The factors.
    pub factors: Factors,
    /// How well they fit.
    #[serde(default)]
    pub residuals: Vec<Residual>,
}

const FILES: &[(&str, &str)] = &[
    ("a100", include_str!("../data/a100.json")),
    ("a100-distserve", include_str!("../data/a100-distserve.json")),
    ("h100", include_str!("../data/h100.json")),
    ("h200", include_str!("../data/h200.json")),
];

impl Calibration {
    /// Returns what `--device sim:NAME` means: a shipped GPU, or a calibration file that names its own.
    ///
    /// # Errors
    /// There is neither, or the file can't be read.
    pub fn find(name: &str) -> Result<(Gpu, Factors), Error> {
        match Shipped::find(name) {
            Ok(shipped) => {
                let (_, text) = FILES
                    .iter()
                    .find(|(calibration, _)| *calibration == shipped.calibration)
                    .unwrap_or(&FILES[0]);
                let path = Path::new(shipped.calibration);
                Ok((shipped.gpu(), Self::parse(text, path)?.factors))
            }
            Err(unknown) => {
                let path = Path::new(name);
                let Ok(text) = std::fs::read_to_string(path) else { return Err(unknown) };
                let calibration = Self::parse(&text, path)?;
                let gpu = calibration.gpu.ok_or_else(|| bad(path, &"it names no `gpu`"))?;
                Ok((gpu, calibration.factors))
            }
        }
    }

    /// Reads a calibration file's text.
    fn parse(text: &str, path: &Path) -> Result<Self, Error> {
        let read: Self = serde_json::from_str(text).map_err(|error| bad(path, &error))?;
        let Factors { linear, tile, memory, attention, kv_read, collective, .. } = read.factors;
        let factors = [linear, memory, attention, kv_read, collective, tile as f64];
        let times = [read.factors.layer_s, read.factors.step_s, read.factors.seq_s];
        let rates = read.gpu.iter().flat_map(|gpu| [gpu.flops, gpu.bytes_per_s, gpu.memory_bytes]);
        if factors.into_iter().chain(rates).any(|value| !(value > 0.0 && value.is_finite())) {
            return Err(bad(path, &"every rate and factor must be above 0"));
        }
        if !(0.0..=1.0).contains(&read.factors.overlap) {
            return Err(bad(path, &"`overlap` must be from 0 to 1"));
        }
        if times.into_iter().any(|time| !(0.0..3600.0).contains(&time)) {
            return Err(bad(path, &"every time must be from 0 to 3600 s"));
        }
        Ok(read)
    }
}

fn bad(path: &Path, reason: &impl ToString) -> Error {
    Error::BadCalibration { path: path.to_owned(), reason: reason.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SHIPPED;

    #[test]
    fn every_shipped_gpu_has_its_calibration() {
        for shipped in SHIPPED {
            assert!(FILES.iter().any(|(name, _)| *name == shipped.calibration), "{}", shipped.name);
            let (gpu, _) = Calibration::find(shipped.name).expect(shipped.name);
            assert_eq!(gpu.name, shipped.name);
        }
        let error = Calibration::find("tpu").expect_err("no such GPU").to_string();
        assert!(error.contains("tpu") && error.contains("h100-sxm"), "{error}");
    }

    #[test]
    fn a_file_with_impossible_numbers_is_refused() {
        let good = FILES[0].1;
        for (from, to) in [("\"linear\": 0.", "\"linear\": -0."), ("\"seq_s\": ", "\"seq_s\": -")] {
            assert!(good.contains(from), "{from}");
            let text = good.replacen(from, to, 1);
            Calibration::parse(&text, Path::new("x")).expect_err(to);
        }
    }
}
