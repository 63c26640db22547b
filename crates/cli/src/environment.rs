//! What the environment says; nothing else in the program reads it.

use std::env;
use std::path::PathBuf;

/// The version of NIXL that is downloaded.
pub(crate) const NIXL_VERSION: &str = "1.5.1";

/// The variables that stallfree heeds, resolved.
#[derive(Clone, Debug)]
pub(crate) struct Environment {
    /// Where our own downloads lie: `STALLFREE_CACHE`, `XDG_CACHE_HOME/stallfree` or `~/.cache/stallfree`.
    pub(crate) cache: PathBuf,
    /// The hub's side of it.
    pub(crate) hub: HubEnvironment,
    /// `VLLM_API_KEY` and `STALLFREE_API_KEY`, those that are set.
    pub(crate) api_keys: Vec<String>,
    /// `STALLFREE_LOG` or `RUST_LOG`: what to log.
    pub(crate) log: Option<String>,
    /// Where `python3` and `pip` are looked for.
    pub(crate) path: Vec<PathBuf>,
}

/// Variables of the Hugging Face hub, with the meanings that its own tools give them.
#[derive(Clone, Debug)]
pub(crate) struct HubEnvironment {
    /// Where snapshots lie: `HF_HUB_CACHE`, `HF_HOME/hub` or `~/.cache/huggingface/hub`.
    pub(crate) cache: PathBuf,
    /// `HF_TOKEN`, or what `hf auth login` left in `HF_HOME/token`.
    pub(crate) token: Option<String>,
    /// `HF_ENDPOINT`, without a slash at the end.
    pub(crate) endpoint: String,
    /// `SSL_CERT_FILE` or `REQUESTS_CA_BUNDLE`: whom to trust, for networks whose proxy signs its own certificates.
    pub(crate) certificates: Option<PathBuf>,
    /// `HF_HUB_OFFLINE`: the network is not to be used.
    pub(crate) offline: bool,
}

impl Environment {
    /// Reads the process's environment.
    pub(crate) fn read() -> Self {
        let home = path("HOME").unwrap_or_else(env::temp_dir);
        let caches = path("XDG_CACHE_HOME").unwrap_or_else(|| home.join(".cache"));
        Self {
            cache: path("STALLFREE_CACHE").unwrap_or_else(|| caches.join("stallfree")),
            hub: HubEnvironment::read(
                &path("HF_HOME").unwrap_or_else(|| caches.join("huggingface")),
            ),
            api_keys: ["VLLM_API_KEY", "STALLFREE_API_KEY"].into_iter().filter_map(text).collect(),
            log: text("STALLFREE_LOG").or_else(|| text("RUST_LOG")),
            path: env::var_os("PATH").map_or_else(Vec::new, |all| env::split_paths(&all).collect()),
        }
    }

    /// Returns where our own downloads of models lie.
    pub(crate) fn models(&self) -> PathBuf {
        self.cache.join("models")
    }

    /// Returns where compiled kernels are kept.
    pub(crate) fn kernels(&self) -> PathBuf {
        self.cache.join("kernels")
    }

    /// Returns where NIXL lies, if it was downloaded.
    pub(crate) fn nixl(&self) -> PathBuf {
        self.libraries().join(format!("nixl-{NIXL_VERSION}"))
    }

    /// Returns where downloaded libraries lie.
    pub(crate) fn libraries(&self) -> PathBuf {
        self.cache.join("libraries")
    }
}

impl HubEnvironment {
    fn read(hf_home: &std::path::Path) -> Self {
        let stored = || std::fs::read_to_string(hf_home.join("token")).ok();
        let is_set =
            |value: String| matches!(&*value.to_ascii_lowercase(), "1" | "true" | "yes" | "on");
        Self {
            cache: path("HF_HUB_CACHE").unwrap_or_else(|| hf_home.join("hub")),
            token: text("HF_TOKEN")
                .or_else(stored)
                .map(|token| token.trim().to_owned())
                .filter(|token| !token.is_empty()),
            endpoint: text("HF_ENDPOINT")
                .unwrap_or_else(|| "https://huggingface.co".to_owned())
                .trim_end_matches('/')
                .to_owned(),
            certificates: path("SSL_CERT_FILE").or_else(|| path("REQUESTS_CA_BUNDLE")),
            offline: text("HF_HUB_OFFLINE").is_some_and(is_set),
        }
    }
}

/// Returns a variable that is set, not empty and valid Unicode.
#[expect(clippy::disallowed_methods, reason = "this is the one place that reads the environment")]
fn text(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

fn path(name: &str) -> Option<PathBuf> {
    env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}
