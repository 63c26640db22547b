//! The architectures. Adding one adds a file and a word here.

use serde_json::Value;
use stallfree_kernels::Backend;

use crate::error::printable;
use crate::loader::Loader;
use crate::{Error, Model, ModelConfig, internlm2, llama, mistral, qwen2, qwen3};

/// What distinguishes an architecture before its weights are read.
#[derive(Clone, Copy, Debug)]
pub struct Architecture {
    /// Its names in `architectures` of config.json, the usual one first.
    pub names: &'static [&'static str],
    /// Its names in `model_type` of config.json, used where `architectures` is missing.
    pub model_types: &'static [&'static str],
    /// Its names in `general.architecture` of GGUF.
    pub gguf: &'static [&'static str],
    /// Models of this architecture, for people.
    pub doc: &'static str,
    /// Reads the settings of config.json that only this architecture has.
    pub(crate) configure: fn(&Value, &mut ModelConfig) -> Result<(), Error>,
    /// Translates a canonical weight name to the one in this architecture's safetensors.
    pub(crate) stored_name: fn(&str) -> String,
    /// Whether GGUF files hold query and key rows in the order of the original Llama's rotation.
    pub(crate) gguf_pairs_rows: bool,
}

macro_rules! registry {
    ($($module:ident),*) => {
        /// Every architecture.
        pub const ARCHITECTURES: &[Architecture] = &[$($module::ARCHITECTURE),*];

        /// Builds the model that the loader's configuration describes.
        pub(crate) fn build<B: Backend + 'static>(
            loader: &mut Loader<'_, B>,
        ) -> Result<Box<dyn Model<B>>, Error> {
            let name = loader.config().architecture.clone();
            $(if $module::ARCHITECTURE.names.contains(&name.as_str()) {
                return Ok(Box::new($module::build(loader)?));
            })*
            Err(unsupported(&name))
        }
    };
}

registry!(llama, mistral, qwen2, qwen3, internlm2);

/// Finds an architecture by a name of config.json.
pub(crate) fn by_name(name: &str) -> Result<&'static Architecture, Error> {
    ARCHITECTURES.iter().find(|entry| entry.names.contains(&name)).ok_or_else(|| unsupported(name))
}

/// Finds an architecture by its GGUF name.
pub(crate) fn by_gguf_name(name: &str) -> Result<&'static Architecture, Error> {
    ARCHITECTURES.iter().find(|entry| entry.gguf.contains(&name)).ok_or_else(|| unsupported(name))
}

/// Finds the architecture that a parsed config.json names.
pub(crate) fn by_hf_config(json: &Value) -> Result<&'static Architecture, Error> {
    if let Some(name) = json.get("architectures").and_then(|names| names.get(0)?.as_str()) {
        return by_name(name);
    }
    let Some(model_type) = json.get("model_type").and_then(Value::as_str) else {
        return Err(Error::config("architectures", "missing, and so is model_type"));
    };
    let entry = ARCHITECTURES.iter().find(|entry| entry.model_types.contains(&model_type));
    entry.ok_or_else(|| unsupported(model_type))
}

fn unsupported(name: &str) -> Error {
    let names = ARCHITECTURES.iter().flat_map(|entry| entry.names).copied();
    Error::Unsupported {
        what: format!("architecture {}", printable(name)),
        supported: names.collect::<Vec<_>>().join(", "),
    }
}
