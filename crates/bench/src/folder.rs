//! What is kept of a run: a folder that says how it was made, with tables, a timeline and plots.

mod tables;
mod timeline;

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::run::RunOutcome;
use crate::{Error, Result, Summary, plot};

/// A folder with everything about one run.
///
/// | file | holds |
/// |---|---|
/// | `command.txt` | the command line |
/// | `config.json` | versions, device, settings |
/// | `result.json` | the figures, in vLLM's fields |
/// | `sequence_metrics.csv` | a line a request, in Sarathi-Serve's columns |
/// | `batch_metrics.csv` | a line a batch, likewise |
/// | `chrome_trace.json` | the batches, for <https://ui.perfetto.dev> |
/// | `plots/` | tokens over time, latencies, batches, as SVG, PNG and PDF |
/// | `replica_0/plots/<metric>.csv` | distributions and time series, as Sarathi-Serve's artifact has them, where asked for |
#[derive(Clone, Debug)]
pub struct RunFolder {
    path: PathBuf,
}

/// Makes a folder that was not there: `path`, or the first of `path-2`, `path-3` and so on, so that results never take the place of
/// others that were named by the same second. Those above it are made where they are missing.
///
/// # Errors
/// It can't be made.
pub fn new_folder(path: &Path) -> Result<PathBuf> {
    if let Some(above) = path.parent() {
        fs::create_dir_all(above).map_err(Error::file(above))?;
    }
    let numbered = |number: usize| {
        let mut name = OsString::from(path);
        name.push(format!("-{number}"));
        PathBuf::from(name)
    };
    let mut folder = path.to_owned();
    for number in 2.. {
        match fs::create_dir(&folder) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                folder = numbered(number);
            }
            made => {
                made.map_err(Error::file(&folder))?;
                break;
            }
        }
    }
    Ok(folder)
}

impl RunFolder {
    /// Makes the folder and those above it, where they are missing; files of an earlier run in it are replaced.
    ///
    /// # Errors
    /// It can't be made.
    pub fn create(path: &Path) -> Result<Self> {
        fs::create_dir_all(path).map_err(Error::file(path))?;
        Ok(Self { path: path.to_owned() })
    }

    /// Returns where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes how the run was made.
    ///
    /// # Errors
    /// A file can't be written.
    pub fn write_origin(&self, command: &str, config: &Map<String, Value>) -> Result<()> {
        self.write("command.txt", &format!("{command}\n"))?;
        self.write_json("config.json", config)
    }

    /// Writes the figures. A folder that has them is complete.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn write_result(&self, result: &Map<String, Value>) -> Result<()> {
        self.write_json("result.json", result)
    }

    /// Writes the tables of requests and batches and the timeline.
    ///
    /// # Errors
    /// A file can't be written.
    pub fn write_records(&self, outcome: &RunOutcome) -> Result<()> {
        self.write("sequence_metrics.csv", &tables::requests(&outcome.requests))?;
        if !outcome.batches.is_empty() {
            self.write("batch_metrics.csv", &tables::batches(&outcome.batches))?;
            self.write("chrome_trace.json", &timeline::chrome_trace(&outcome.batches))?;
        }
        Ok(())
    }

    /// Writes `replica_0/plots/<metric>.csv` in the columns of Sarathi-Serve's artifact.
    ///
    /// # Errors
    /// A file can't be written.
    pub fn write_replica_plots(&self, outcome: &RunOutcome) -> Result<()> {
        let folder = self.path.join("replica_0/plots");
        fs::create_dir_all(&folder).map_err(Error::file(&folder))?;
        for (name, text) in tables::replica_plots(outcome) {
            self.write(&format!("replica_0/plots/{name}.csv"), &text)?;
        }
        Ok(())
    }

    /// Draws the run: `plots/*.{svg,png,pdf}`. `subtitle` says what ran.
    ///
    /// # Errors
    /// A file can't be written.
    pub fn write_plots(
        &self,
        outcome: &RunOutcome,
        summary: &Summary,
        subtitle: &str,
    ) -> Result<()> {
        for (name, figure) in plot::run_figures(outcome, summary, subtitle) {
            plot::write(&figure, &self.path.join("plots").join(name))?;
        }
        Ok(())
    }

    /// Writes a file.
    ///
    /// # Errors
    /// It can't be written.
    pub fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.path.join(name);
        fs::write(&path, text).map_err(Error::file(&path))
    }

    fn write_json(&self, name: &str, object: &Map<String, Value>) -> Result<()> {
        let text = serde_json::to_string_pretty(object)
            .map_err(|error| Error::content(&self.path.join(name), &error))?;
        self.write(name, &format!("{text}\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::new_folder;

    #[test]
    fn a_new_folder_never_takes_anothers_place() {
        let root = tempfile::tempdir().expect("a folder");
        let path = root.path().join("random/simple_20261125_101500");
        let made: Vec<_> = (0..3).map(|_| new_folder(&path).expect("a folder")).collect();
        let names = made.iter().map(|path| path.file_name().and_then(|name| name.to_str()));
        let expected = ["", "-2", "-3"].map(|end| format!("simple_20261125_101500{end}"));
        assert!(names.eq(expected.iter().map(|name| Some(&**name))), "{made:?}");
        assert!(made.iter().all(|path| path.is_dir()));
    }
}
