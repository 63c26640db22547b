//! The hub's cache on this machine, in the layout that all of its tools share:
//! `models--org--name/{refs/main, blobs/<hash>, snapshots/<commit>/<file>}`.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::DownloadError;
use super::error::OnDisk as _;
use super::hub::{HubId, Weights};
use crate::environment::HubEnvironment;

/// One repository's part of the cache.
#[derive(Clone, Debug)]
pub(crate) struct HubCache {
    root: PathBuf,
}

impl HubCache {
    /// Looks at `repo` (`org/name`).
    pub(crate) fn new(hub: &HubEnvironment, repo: &str) -> Self {
        Self { root: hub.cache.join(format!("models--{}", repo.replace('/', "--"))) }
    }

    /// Returns where a commit's files lie.
    pub(crate) fn snapshot(&self, commit: &str) -> PathBuf {
        self.root.join("snapshots").join(commit)
    }

    /// Returns where a file's bytes lie, whatever it is called.
    pub(crate) fn blob(&self, hash: &str) -> PathBuf {
        self.root.join("blobs").join(hash)
    }

    /// Returns whether a commit's file is here.
    pub(crate) fn has(&self, commit: &str, name: &str) -> bool {
        self.snapshot(commit).join(name).is_file()
    }

    /// Gives a blob its name in a commit.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) fn link(&self, commit: &str, name: &str, hash: &str) -> Result<(), DownloadError> {
        let link = self.snapshot(commit).join(name);
        let depth = name.matches('/').count() + 2;
        let target: PathBuf = std::iter::repeat_n("..", depth).chain(["blobs", hash]).collect();
        if let Some(folder) = link.parent() {
            fs::create_dir_all(folder).at(folder)?;
        }
        // Renaming replaces whatever lies there at once, so that processes which want the same don't trip over each other.
        let own = format!(".{name}.{}.{:?}", std::process::id(), std::thread::current().id());
        let fresh = self.root.join(own.replace('/', "-"));
        std::os::unix::fs::symlink(target, &fresh).at(&fresh)?;
        fs::rename(&fresh, &link).at(&link)
    }

    /// Notes which commit a branch or tag stands for.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) fn set_revision(&self, revision: &str, commit: &str) -> Result<(), DownloadError> {
        let path = self.root.join("refs").join(revision);
        if revision == commit || revision.split('/').any(|part| part == "..") {
            return Ok(());
        }
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).at(folder)?;
        }
        fs::write(&path, commit).at(&path)
    }

    /// Returns the folder, or the GGUF file, of a model that is here in full.
    pub(crate) fn find(&self, id: &HubId, revision: &str, weights: Weights) -> Option<PathBuf> {
        let commit = fs::read_to_string(self.root.join("refs").join(revision));
        let folder = self.snapshot(commit.as_deref().unwrap_or(revision).trim());
        if let Some(file) = &id.file {
            return Some(folder.join(file)).filter(|path| path.is_file());
        }
        let is_here = |name: &str| folder.join(name).is_file();
        if weights == Weights::None {
            return is_here("config.json").then_some(folder);
        }
        if weights == Weights::Any && is_here("config.json") && has_safetensors(&folder) {
            return Some(folder);
        }
        only_gguf(&folder)
    }
}

/// Returns a folder's GGUF file if it has just one.
pub(crate) fn only_gguf(folder: &Path) -> Option<PathBuf> {
    let mut ggufs = with_extension(folder, "gguf");
    let first = ggufs.next()?;
    ggufs.next().is_none().then_some(first)
}

/// Returns the repositories in the cache that hold a model that can be served, with their folders.
pub(crate) fn models(hub: &HubEnvironment) -> Vec<(String, PathBuf)> {
    let Ok(entries) = fs::read_dir(&hub.cache) else { return Vec::new() };
    let repo_of = |name: &str| Some(name.strip_prefix("models--")?.replacen("--", "/", 1));
    let mut models: Vec<(String, PathBuf)> = entries
        .flatten()
        .filter_map(|entry| repo_of(entry.file_name().to_str()?))
        .filter_map(|repo| {
            let id = HubId { repo: repo.clone(), file: None };
            Some((repo, HubCache::new(hub, &id.repo).find(&id, "main", Weights::Any)?))
        })
        .collect();
    models.sort();
    models
}

/// Returns whether all shards of the weights are here; a snapshot may have been cut off half-way.
fn has_safetensors(folder: &Path) -> bool {
    let Ok(index) = fs::read_to_string(folder.join("model.safetensors.index.json")) else {
        return with_extension(folder, "safetensors").next().is_some();
    };
    let index: Value = serde_json::from_str(&index).unwrap_or_default();
    let shards = index.get("weight_map").and_then(Value::as_object);
    shards.is_some_and(|shards| {
        shards
            .values()
            .all(|shard| shard.as_str().is_some_and(|shard| folder.join(shard).is_file()))
    })
}

/// Returns a folder's files with an extension; broken links don't count.
fn with_extension(folder: &Path, extension: &'static str) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let is_match = move |path: &PathBuf| path.extension().is_some_and(|end| end == extension);
    entries.map(|entry| entry.path()).filter(is_match).filter(|path| path.is_file())
}
