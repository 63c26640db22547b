//! The Hugging Face hub: which files a repository has, and bringing those that are needed into the hub's own cache.

use std::fmt;
use std::io::Read as _;
use std::path::PathBuf;
use std::str::FromStr;

use serde::Deserialize;

use super::DownloadError;
use super::file::{self, Wanted};
use super::http::{Ask, Http, body};
use super::hub_cache::HubCache;
use crate::environment::HubEnvironment;

/// A repository on the hub, or one file of it: `org/name` or `org/name:file.gguf`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HubId {
    /// `org/name`.
    pub(crate) repo: String,
    /// One GGUF file of it.
    pub(crate) file: Option<String>,
}

/// Which weights to bring along.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Weights {
    /// Safetensors, else the GGUF file if there is just one.
    Any,
    /// The GGUF file.
    Gguf,
    /// None: they are drawn at random.
    None,
}

/// A repository at a commit, as the hub describes it.
#[derive(Debug, Deserialize)]
struct Info {
    sha: String,
    siblings: Vec<Sibling>,
}

/// A file of it.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Clone, Debug, Deserialize)]
struct Lfs {
    sha256: String,
}

/// Small files that are wanted wherever they exist.
const COMPANIONS: &[&str] = &[
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
];

impl FromStr for HubId {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (repo, file) =
            text.split_once(':').map_or((text, None), |(repo, file)| (repo, Some(file)));
        let (org, name) = repo.split_once('/').ok_or(())?;
        let is_word = |word: &str| {
            let plain =
                |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
            !word.is_empty() && !word.starts_with('.') && word.bytes().all(plain)
        };
        let is_file = |file: &str| file.ends_with(".gguf") && file.split('/').all(is_word);
        if is_word(org) && is_word(name) && file.is_none_or(is_file) {
            return Ok(Self { repo: repo.to_owned(), file: file.map(ToOwned::to_owned) });
        }
        Err(())
    }
}

impl fmt::Display for HubId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.file {
            None => f.write_str(&self.repo),
            Some(file) => write!(f, "{}:{file}", self.repo),
        }
    }
}

/// Brings a repository's files into the cache and returns the model's folder, or its GGUF file.
///
/// # Errors
/// See [`DownloadError`]; what was fetched before stays and is not fetched again.
pub(crate) fn fetch(
    hub: &HubEnvironment,
    id: &HubId,
    revision: &str,
    weights: Weights,
) -> Result<PathBuf, DownloadError> {
    let http = Http::new(hub.certificates.as_deref())?;
    let info = info(&http, hub, id, revision)?;
    let chosen = choose(&info.siblings, id, weights)?;
    let cache = HubCache::new(hub, &id.repo);
    for sibling in &chosen {
        let name = &sibling.rfilename;
        if cache.has(&info.sha, name) {
            continue;
        }
        let sha256 = sibling.lfs.as_ref().map(|lfs| &*lfs.sha256);
        let blob = sha256
            .or(sibling.blob_id.as_deref())
            .map_or_else(|| format!("{}-{}", info.sha, name.replace('/', "--")), ToOwned::to_owned);
        if !is_safe(&blob) || !is_safe(&info.sha) || !name.split('/').all(is_safe) {
            let bad = format!("{}: the hub names a file '{name}', which is no safe name", id.repo);
            return Err(DownloadError::Unusable(bad));
        }
        let wanted = Wanted {
            name,
            url: format!("{}/{}/resolve/{}/{name}", hub.endpoint, id.repo, info.sha),
            token: hub.token.as_deref(),
            size: sibling.size,
            sha256,
        };
        file::fetch(&http, &wanted, &cache.blob(&blob)).map_err(|error| explain(error, hub, id))?;
        cache.link(&info.sha, name, &blob)?;
    }
    cache.set_revision(revision, &info.sha)?;
    let folder = cache.snapshot(&info.sha);
    Ok(match chosen.iter().find(|sibling| sibling.rfilename.ends_with(".gguf")) {
        Some(gguf) => folder.join(&gguf.rfilename),
        None => folder,
    })
}

/// Asks the hub for a repository's files at a revision.
fn info(
    http: &Http,
    hub: &HubEnvironment,
    id: &HubId,
    revision: &str,
) -> Result<Info, DownloadError> {
    let revision_in_url = revision.replace('/', "%2F");
    let url =
        format!("{}/api/models/{}/revision/{revision_in_url}?blobs=true", hub.endpoint, id.repo);
    let response = http.get(&url, Ask { token: hub.token.as_deref(), from: 0 })?;
    let status = response.status().as_u16();
    if status == 404 {
        let code = super::http::header(&response, "x-error-code").unwrap_or_default();
        return Err(DownloadError::NotFound(match code {
            "RevisionNotFound" => {
                format!("{} has no revision '{revision}' on {}", id.repo, hub.endpoint)
            }
            _ => format!("there is no model {} on {}", id.repo, hub.endpoint),
        }));
    }
    if status != 200 {
        return Err(explain(DownloadError::Status { url, status }, hub, id));
    }
    let mut text = String::new();
    let unreadable =
        |reason: String| DownloadError::Unreachable { host: hub.endpoint.clone(), reason };
    body(response)
        .take(64 << 20)
        .read_to_string(&mut text)
        .map_err(|e| unreadable(e.to_string()))?;
    serde_json::from_str(&text)
        .map_err(|error| unreadable(format!("its answer for {} can't be read: {error}", id.repo)))
}

/// Says what a refusal means.
fn explain(error: DownloadError, hub: &HubEnvironment, id: &HubId) -> DownloadError {
    match error {
        // The hub answers 401 for what doesn't exist, too, as long as nobody is logged in.
        DownloadError::Status { status: status @ (401 | 403), .. } => {
            DownloadError::Gated { repo: id.repo.clone(), status, had_token: hub.token.is_some() }
        }
        DownloadError::Status { status: 404, url } => {
            DownloadError::NotFound(format!("{url} is announced by the hub, but not there"))
        }
        other => other,
    }
}

/// Chooses the files that are needed.
fn choose(
    siblings: &[Sibling],
    id: &HubId,
    weights: Weights,
) -> Result<Vec<Sibling>, DownloadError> {
    let unusable = |reason: String| Err(DownloadError::Unusable(format!("{}: {reason}", id.repo)));
    let named = |name: &str| siblings.iter().find(|sibling| sibling.rfilename == name).cloned();
    let ending = |end: &str| -> Vec<Sibling> {
        let top = |name: &str| name.ends_with(end) && !name.contains('/');
        siblings.iter().filter(|sibling| top(&sibling.rfilename)).cloned().collect()
    };
    if let Some(file) = &id.file {
        return match named(file) {
            Some(sibling) => Ok(vec![sibling]),
            None => {
                unusable(format!("there is no file '{file}'; it has: {}", names(&ending(".gguf"))))
            }
        };
    }
    let mut files: Vec<Sibling> = COMPANIONS.iter().copied().filter_map(named).collect();
    if weights == Weights::None {
        return Ok(files);
    }
    let mut safetensors = ending(".safetensors");
    if safetensors.iter().any(|sibling| sibling.rfilename.starts_with("model")) {
        // Some repositories hold the same weights a second time, under another naming.
        safetensors.retain(|sibling| sibling.rfilename.starts_with("model"));
    }
    if weights == Weights::Any && !safetensors.is_empty() {
        files.extend(named("model.safetensors.index.json"));
        files.extend(safetensors);
        return Ok(files);
    }
    let ggufs = ending(".gguf");
    match ggufs.as_slice() {
        [_] => Ok(ggufs),
        [] => {
            unusable("it has neither safetensors nor a GGUF file, so it can't be served".to_owned())
        }
        [first, ..] => unusable(format!(
            "it has several GGUF files; choose one, such as {}:{}, of: {}",
            id.repo,
            first.rfilename,
            names(&ggufs)
        )),
    }
}

fn names(siblings: &[Sibling]) -> String {
    siblings.iter().map(|sibling| &*sibling.rfilename).collect::<Vec<_>>().join(", ")
}

/// Returns whether a name that the network gave may become a path's component.
fn is_safe(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\\', '\0'])
}
