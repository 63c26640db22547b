//! One file: fetched with resumption, verified, and put in place in one move.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use super::DownloadError;
use super::error::OnDisk as _;
use super::http::{Ask, Http, body, header};
use super::progress::Progress;

/// How often a transfer may break off in a row without a new byte.
const ATTEMPTS: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(250);

/// What is to be fetched.
#[derive(Clone, Debug)]
pub(crate) struct Wanted<'a> {
    /// What to call it.
    pub(crate) name: &'a str,
    /// Where it lies.
    pub(crate) url: String,
    /// Who asks.
    pub(crate) token: Option<&'a str>,
    /// Its size, if announced.
    pub(crate) size: Option<u64>,
    /// Its SHA-256 in hexadecimal, if announced.
    pub(crate) sha256: Option<&'a str>,
}

/// How one request for (the rest of) a file ended.
enum Transfer {
    Complete,
    BrokeOff(String),
}

/// Fetches a file to `dest`, by way of `dest.part`, which is where a later call goes on.
///
/// # Errors
/// See [`DownloadError`]; `dest` is there only if everything went well.
pub(crate) fn fetch(http: &Http, wanted: &Wanted<'_>, dest: &Path) -> Result<(), DownloadError> {
    let Some(_lock) = Lock::take(dest)? else { return Ok(()) };
    let part = part_of(dest);
    let resumed = len(&part);
    transfer_all(http, wanted, &part)?;
    let verified = match verify(wanted, &part) {
        // What lay there before may have been the beginning of another version.
        Err(DownloadError::Corrupt { .. }) if resumed > 0 => {
            transfer_all(http, wanted, &part)?;
            verify(wanted, &part)
        }
        result => result,
    };
    verified?;
    fs::rename(&part, dest).at(dest)
}

/// The right to write a file; other processes wait for it.
#[derive(Debug)]
pub(crate) struct Lock {
    dest: PathBuf,
    _file: File,
}

impl Lock {
    /// Waits for the right to write `dest`; there is none, and no need for it, once another process has written it.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) fn take(dest: &Path) -> Result<Option<Self>, DownloadError> {
        if let Some(parent) = dest.parent() {
            fs::create_dir_all(parent).at(parent)?;
        }
        let path = with_suffix(dest, ".lock");
        let file = File::create(&path).at(&path)?;
        file.lock().at(&path)?;
        let lock = Self { dest: dest.to_owned(), _file: file };
        Ok((!dest.exists()).then_some(lock))
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Whoever waits still holds the file open and finds `dest`. Without `dest` they go on under this very file.
        if self.dest.exists() {
            let _removed = fs::remove_file(with_suffix(&self.dest, ".lock"));
        }
    }
}

/// Returns where the unfinished file lies.
pub(crate) fn part_of(dest: &Path) -> PathBuf {
    with_suffix(dest, ".part")
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Returns the SHA-256 of what a reader gives, in hexadecimal.
///
/// # Errors
/// The reader's.
pub(crate) fn sha256(mut reader: impl Read) -> std::io::Result<[u8; 32]> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match reader.read(&mut buffer)? {
            0 => return Ok(hasher.finalize().into()),
            read => hasher.update(&buffer[..read]),
        }
    }
}

/// Writes bytes in hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn transfer_all(http: &Http, wanted: &Wanted<'_>, part: &Path) -> Result<(), DownloadError> {
    let mut best = len(part);
    if wanted.size == Some(best) {
        return Ok(());
    }
    let resumed = if wanted.size.is_some_and(|size| best > size) { 0 } else { best };
    let mut progress = Progress::start(wanted.name, wanted.size, resumed);
    let mut attempts = 0;
    loop {
        let reason = match transfer(http, wanted, part, &mut progress) {
            Ok(Transfer::Complete) => break,
            Ok(Transfer::BrokeOff(reason)) => reason,
            // Once bytes came, a network that is gone may come back.
            Err(DownloadError::Unreachable { reason, .. }) if best > 0 => reason,
            Err(error) => return Err(error),
        };
        attempts = if progress.done() > best { 1 } else { attempts + 1 };
        best = best.max(progress.done());
        if attempts >= ATTEMPTS {
            return Err(DownloadError::BrokenOff { url: wanted.url.clone(), attempts, reason });
        }
        std::thread::sleep(FIRST_PAUSE * 2_u32.pow(attempts - 1));
    }
    progress.finish();
    Ok(())
}

fn transfer(
    http: &Http,
    wanted: &Wanted<'_>,
    part: &Path,
    progress: &mut Progress,
) -> Result<Transfer, DownloadError> {
    let mut have = len(part);
    if wanted.size.is_some_and(|size| have > size) {
        fs::remove_file(part).at(part)?;
        have = 0;
    }
    let response = http.get(&wanted.url, Ask { token: wanted.token, from: have })?;
    let status = response.status().as_u16();
    match status {
        200 => have = 0,
        206 if header(&response, "content-range").and_then(range_start) == Some(have) => {}
        // The server's file is shorter than ours, or it sent another range: start over.
        206 | 416 if have > 0 => {
            fs::remove_file(part).at(part)?;
            return Ok(Transfer::BrokeOff("the server can't go on from there".to_owned()));
        }
        429 | 500..=599 => return Ok(Transfer::BrokeOff(format!("status {status}"))),
        _ => return Err(DownloadError::Status { url: wanted.url.clone(), status }),
    }
    let length = header(&response, "content-length").and_then(|text| text.parse::<u64>().ok());
    let total = wanted.size.or(length.map(|length| have + length));
    if let Some(total) = total {
        progress.set_total(total);
    }
    progress.set_done(have);
    let mut file = OpenOptions::new()
        .create(true)
        .append(have > 0)
        .write(true)
        .truncate(have == 0)
        .open(part)
        .at(part)?;
    let broke = copy(body(response), &mut file, part, progress)?;
    Ok(match (broke, total) {
        (Some(reason), _) => Transfer::BrokeOff(reason),
        (None, Some(total)) if progress.done() < total => {
            Transfer::BrokeOff(format!("it ended after {} of {total} bytes", progress.done()))
        }
        (None, _) => Transfer::Complete,
    })
}

/// Copies until the end or until the network breaks, whose reason is returned.
fn copy(
    mut from: impl Read,
    to: &mut File,
    part: &Path,
    progress: &mut Progress,
) -> Result<Option<String>, DownloadError> {
    let mut buffer = vec![0; 256 << 10];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(None),
            Ok(read) => {
                to.write_all(&buffer[..read]).at(part)?;
                progress.set_done(progress.done() + read as u64);
            }
            Err(error) => return Ok(Some(error.to_string())),
        }
    }
}

/// Checks size and hash; deletes what is wrong.
fn verify(wanted: &Wanted<'_>, part: &Path) -> Result<(), DownloadError> {
    let corrupt = |expected: String, found: String| {
        fs::remove_file(part).at(part)?;
        Err(DownloadError::Corrupt { what: wanted.name.to_owned(), expected, found })
    };
    let found = len(part);
    if let Some(size) = wanted.size.filter(|size| *size != found) {
        return corrupt(format!("{size} bytes"), format!("{found} bytes"));
    }
    let Some(expected) = wanted.sha256 else { return Ok(()) };
    let found = hex(&sha256(File::open(part).at(part)?).at(part)?);
    if found.eq_ignore_ascii_case(expected) {
        return Ok(());
    }
    corrupt(format!("sha256 {expected}"), format!("sha256 {found}"))
}

/// Returns a file's size; 0 if there is none.
fn len(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |metadata| metadata.len())
}

/// Reads the first byte's number out of `bytes 100-199/200`.
fn range_start(text: &str) -> Option<u64> {
    text.strip_prefix("bytes ")?.split('-').next()?.parse().ok()
}
