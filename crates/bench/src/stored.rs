//! Results that were written before: by this tool, by vLLM's bench, or by its NIXL bench tool.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde_json::{Map, Value};

use crate::metrics::SloMetric;
use crate::{Error, Result};

/// One result, with the figures of its requests.
#[derive(Clone, Debug)]
pub struct StoredResult {
    /// The file.
    pub path: PathBuf,
    /// When it was written.
    pub written: SystemTime,
    /// Its fields.
    pub json: Map<String, Value>,
    /// Each request's latencies; empty if they were not kept (`--save-detailed`).
    pub requests: Vec<SloMetric>,
}

/// How deep results lie below a folder.
const MAX_DEPTH: usize = 5;

impl StoredResult {
    /// Reads a file, which may hold several results, one a line.
    ///
    /// # Errors
    /// It can't be read, or holds none.
    pub fn read(path: &Path) -> Result<Vec<Self>> {
        let text = fs::read_to_string(path).map_err(Error::file(path))?;
        let written = fs::metadata(path).and_then(|metadata| metadata.modified());
        let written = written.map_err(Error::file(path))?;
        let mut all = Vec::new();
        for json in serde_json::Deserializer::from_str(&text).into_iter::<Map<String, Value>>() {
            let json = json.map_err(|error| Error::content(path, &error))?;
            let requests = requests(&json);
            all.push(Self { path: path.to_owned(), written, json, requests });
        }
        Ok(all)
    }

    /// Reads every result in a folder and below; files that are none are passed over.
    #[must_use]
    pub fn find(folder: &Path) -> Vec<Self> {
        let mut found = Vec::new();
        find(folder, 0, &mut found);
        found.sort_by(|a, b| a.path.cmp(&b.path));
        found
    }

    /// Returns a field that is a text.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<&str> {
        self.json.get(name)?.as_str()
    }

    /// Returns a field that is a number, or a text that is one, as `--metadata` writes it; a dot goes a level deeper.
    #[must_use]
    pub fn number(&self, name: &str) -> Option<f64> {
        let (name, inner) = name.split_once('.').map_or((name, None), |(a, b)| (a, Some(b)));
        let value = self.json.get(name)?;
        let value = inner.map_or(Some(value), |inner| value.get(inner))?;
        value.as_f64().or_else(|| value.as_str()?.parse().ok())
    }

    /// Returns the rate that was asked for; `None` where all came at once or at a trace's times.
    #[must_use]
    pub fn rate(&self) -> Option<f64> {
        self.number("request_rate").filter(|rate| rate.is_finite())
    }

    /// Returns how many GPUs did it: all of prefill and decode instances together.
    #[must_use]
    pub fn num_gpus(&self) -> f64 {
        if let Some(gpus) = self.number("num_gpus") {
            return gpus;
        }
        let tensor = self.number("tensor_parallel_size").unwrap_or(1.0);
        match (self.prefill_instances(), self.decode_instances()) {
            (Some((prefill, each)), Some((decode, other))) => prefill * each + decode * other,
            (Some((count, _)), None) | (None, Some((count, _))) => tensor * count,
            (None, None) => tensor,
        }
    }

    /// Returns how many instances there are for prefills only, and the GPUs of each.
    #[must_use]
    pub fn prefill_instances(&self) -> Option<(f64, f64)> {
        self.instances(
            ["num_prefill_instances", "prefill_instances"],
            ["prefill_tensor_parallel_size", "prefiller_tp_size"],
        )
    }

    /// Returns how many instances there are for decodes only, and the GPUs of each.
    #[must_use]
    pub fn decode_instances(&self) -> Option<(f64, f64)> {
        self.instances(
            ["num_decode_instances", "decode_instances"],
            ["decode_tensor_parallel_size", "decoder_tp_size"],
        )
    }

    fn instances(&self, count: [&str; 2], gpus: [&str; 2]) -> Option<(f64, f64)> {
        let first = |names: [&str; 2]| names.into_iter().find_map(|name| self.number(name));
        let each = first(gpus).or_else(|| self.number("tensor_parallel_size"));
        Some((first(count)?, each.unwrap_or(1.0)))
    }
}

fn find(folder: &Path, depth: usize, found: &mut Vec<StoredResult>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        if path.is_dir() {
            if depth < MAX_DEPTH {
                find(&path, depth + 1, found);
            }
        } else if path.extension().is_some_and(|ending| ending == "json") {
            let results = StoredResult::read(&path).unwrap_or_default();
            found.extend(
                results.into_iter().filter(|result| result.json.contains_key("request_rate")),
            );
        }
    }
}

/// Reads `ttfts` and `tpots`, in seconds; where there are only `itls`, these add up to the same. A failed request has a TTFT of 0
/// and an error.
fn requests(json: &Map<String, Value>) -> Vec<SloMetric> {
    let list = |name: &str| json.get(name).and_then(Value::as_array);
    let Some(ttfts) = list("ttfts") else { return Vec::new() };
    let (tpots, itls, errors) = (list("tpots"), list("itls"), list("errors"));
    let at =
        |list: Option<&'_ Vec<Value>>, index: usize| list.and_then(|list| list.get(index).cloned());
    let request = |(index, ttft): (usize, &Value)| {
        let error = at(errors, index);
        let failed = error.as_ref().and_then(Value::as_str).is_some_and(|error| !error.is_empty());
        let mean = |itls: &Vec<Value>| {
            let sum: f64 = itls.iter().filter_map(Value::as_f64).sum();
            (!itls.is_empty()).then(|| sum / itls.len() as f64)
        };
        let tpot = match tpots {
            Some(tpots) => tpots.get(index).and_then(Value::as_f64),
            None => at(itls, index).as_ref().and_then(Value::as_array).and_then(mean),
        };
        SloMetric { ttft: ttft.as_f64().filter(|_| !failed), tpot }
    };
    ttfts.iter().enumerate().map(request).collect()
}

#[cfg(test)]
mod tests {
    use super::StoredResult;

    fn read(text: &str) -> Vec<StoredResult> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("vllm-2qps.json"), text).unwrap();
        StoredResult::find(folder.path())
    }

    #[test]
    fn several_tools_results_are_read() {
        let vllm = r#"{"request_rate": 2.0, "ttfts": [0.1, 0.0], "itls": [[0.2, 0.4], []], "errors": ["", "refused"]}
            {"request_rate": "inf", "ttfts": []}"#;
        let found = read(vllm);
        assert_eq!((found.len(), found[0].rate(), found[1].rate()), (2, Some(2.0), None));
        let [first, second] = &found[0].requests[..] else { panic!("{found:?}") };
        assert_eq!(first.ttft, Some(0.1));
        assert!(first.tpot.is_some_and(|tpot| (tpot - 0.3).abs() < 1e-12));
        assert_eq!((second.ttft, second.tpot), (None, None));

        let gpus = |fields: &str| {
            let text = format!(r#"{{"request_rate": 1, "ttfts": [], "tpots": [] {fields}}}"#);
            read(&text)[0].num_gpus()
        };
        for (fields, expected) in [
            ("", 1.0),
            (r#", "tensor_parallel_size": "2""#, 2.0),
            (r#", "num_gpus": 3, "tensor_parallel_size": 2"#, 3.0),
            (
                r#", "num_prefill_instances": 2, "num_decode_instances": 1, "prefiller_tp_size": 1, "decoder_tp_size": 4"#,
                6.0,
            ),
        ] {
            assert!((gpus(fields) - expected).abs() < 1e-12, "{fields}");
        }
        assert!(read("not json").is_empty());
        assert!(read(r#"{"other": 1}"#).is_empty());
    }
}
