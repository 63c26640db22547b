//! A model on disk.

mod dummy;
mod gguf;
mod safetensors_files;

use std::path::{Path, PathBuf};

use serde_json::Value as Json;
use stallfree_kernels::WeightType;
use xxhash_rust::xxh3::Xxh3Default;

use crate::registry::{self, Architecture};
use crate::tokenizer_source::DUMMY_CHAT_TEMPLATE;
use crate::weight::{Cut, Weight};
use crate::{Error, GenerationDefaults, ModelConfig, SpecialTokens, TokenizerSource, config};
use dummy::Dummy;
pub(crate) use gguf::{Gguf, Value};
use safetensors_files::SafetensorsFiles;

/// A model on disk: its configuration, read, and its weights, not yet read.
#[derive(Debug)]
pub struct Checkpoint {
    config: ModelConfig,
    architecture: &'static Architecture,
    weights: Weights,
    /// Where config.json and its companions lie; a GGUF file has none.
    folder: Option<PathBuf>,
}

/// Where weights come from.
#[derive(Debug)]
enum Weights {
    Safetensors(SafetensorsFiles),
    Gguf(Gguf),
    Dummy(Dummy),
}

impl Checkpoint {
    /// Opens a folder (config.json, *.safetensors) or a .gguf file.
    ///
    /// # Errors
    /// There is no model, a file is damaged, or the model is of a kind that is not supported; the message names it.
    pub fn open(path: &Path) -> Result<Self, Error> {
        if path.is_dir() {
            let mut this = Self::without_weights(path, &path.join("config.json"))?;
            this.weights = Weights::Safetensors(SafetensorsFiles::open(path)?);
            return Ok(this);
        }
        if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf")) {
            let file = Gguf::open(path)?;
            let config = config::parse_gguf(&file)?;
            let architecture = registry::by_name(&config.architecture)?;
            return Ok(Self { config, architecture, weights: Weights::Gguf(file), folder: None });
        }
        let problem = if path.exists() {
            "neither a folder with config.json and *.safetensors nor a .gguf file"
        } else {
            "no such file or folder"
        };
        Err(Error::NoModel { path: path.to_owned(), problem: problem.to_owned() })
    }

    /// Takes only a configuration, from a config.json or a folder with one, and draws normal random weights (standard deviation
    /// 0.02). The same weight is the same in every run.
    ///
    /// # Errors
    /// There is no config.json, or the model is of a kind that is not supported.
    pub fn dummy(path: &Path) -> Result<Self, Error> {
        if path.is_dir() {
            return Self::without_weights(path, &path.join("config.json"));
        }
        Self::without_weights(path.parent().unwrap_or(Path::new(".")), path)
    }

    /// Takes only a parsed config.json, and draws weights as [`dummy`](Self::dummy) does.
    ///
    /// # Errors
    /// The model is of a kind that is not supported.
    pub fn dummy_of(config: &Json) -> Result<Self, Error> {
        let config = config::parse_hf(config)?;
        let architecture = registry::by_name(&config.architecture)?;
        let weights = Weights::Dummy(Dummy::new(config.dtype.unwrap_or(WeightType::BF16)));
        Ok(Self { config, architecture, weights, folder: None })
    }

    fn without_weights(folder: &Path, config: &Path) -> Result<Self, Error> {
        if !config.exists() {
            let problem = "there is no config.json".to_owned();
            return Err(Error::NoModel { path: folder.to_owned(), problem });
        }
        Ok(Self { folder: Some(folder.to_owned()), ..Self::dummy_of(&read_json(config)?)? })
    }

    /// Returns the model's dimensions and constants.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Returns what the model's makers suggest for sampling.
    ///
    /// # Errors
    /// There is a generation_config.json, but it cannot be read, or has a setting that can't be sampled with.
    pub fn generation_config(&self) -> Result<GenerationDefaults, Error> {
        GenerationDefaults::new(self.companion("generation_config.json")?.as_ref(), &self.config)
    }

    /// Returns nothing of what they suggest but the tokens that end a text.
    ///
    /// # Errors
    /// There is a generation_config.json, but it cannot be read.
    pub fn neutral_generation_config(&self) -> Result<GenerationDefaults, Error> {
        let json = self.companion("generation_config.json")?;
        Ok(GenerationDefaults::neutral(json.as_ref(), &self.config))
    }

    /// Returns where the tokenizer is described. Dummy weights that come without one get one whose first tokens are the bytes.
    ///
    /// # Errors
    /// There is no tokenizer.json, or the GGUF file holds no tokens.
    pub fn tokenizer_source(&self) -> Result<TokenizerSource, Error> {
        match (&self.weights, &self.folder) {
            (Weights::Gguf(file), _) => TokenizerSource::from_gguf(file),
            (Weights::Dummy(_), folder) => {
                Ok(TokenizerSource::dummy(folder.as_deref(), &self.config))
            }
            (_, Some(folder)) => TokenizerSource::from_folder(folder),
            (_, None) => Err(Error::NoModel {
                path: PathBuf::new(),
                problem: "it has no tokenizer".to_owned(),
            }),
        }
    }

    /// Returns the texts of the special tokens that chat templates use.
    ///
    /// # Errors
    /// There is a tokenizer_config.json, but it cannot be read.
    pub fn special_tokens(&self) -> Result<SpecialTokens, Error> {
        if let Weights::Gguf(file) = &self.weights {
            return Ok(SpecialTokens::from_gguf(file));
        }
        let json = self.companion("tokenizer_config.json")?;
        Ok(json.as_ref().map(SpecialTokens::from_json).unwrap_or_default())
    }

    /// Returns the chat template; of several named ones, the default. Dummy weights that come without one get a plain one.
    ///
    /// # Errors
    /// A file that may hold it cannot be read.
    pub fn chat_template(&self) -> Result<Option<String>, Error> {
        if let Weights::Gguf(file) = &self.weights {
            return Ok(file.string("tokenizer.chat_template").map(str::to_owned));
        }
        if let Some(path) = self.folder.as_ref().map(|folder| folder.join("chat_template.jinja"))
            && path.exists()
        {
            let text = std::fs::read_to_string(&path);
            return text.map(Some).map_err(|source| Error::Read { path, source });
        }
        for file in ["chat_template.json", "tokenizer_config.json"] {
            let json = self.companion(file)?;
            if let Some(template) = json.as_ref().and_then(default_template) {
                return Ok(Some(template.to_owned()));
            }
        }
        let is_dummy = matches!(self.weights, Weights::Dummy(_));
        Ok(is_dummy.then(|| DUMMY_CHAT_TEMPLATE.to_owned()))
    }

    /// Returns the weights' size in bytes.
    #[must_use]
    pub fn num_bytes(&self) -> u64 {
        match &self.weights {
            Weights::Safetensors(files) => files.num_bytes(),
            Weights::Gguf(file) => file.tensors().map(|tensor| tensor.num_bytes() as u64).sum(),
            Weights::Dummy(dummy) => {
                self.config.num_parameters() * dummy.dtype().block_bytes() as u64
            }
        }
    }

    /// Describes the model in a few words: architecture, parameters, format, types and size.
    #[must_use]
    pub fn describe(&self) -> String {
        let (format, types) = match &self.weights {
            Weights::Safetensors(files) => ("safetensors", files.types().join("+")),
            Weights::Gguf(file) => ("GGUF", file.main_type()),
            Weights::Dummy(dummy) => ("dummy weights", format!("{:?}", dummy.dtype())),
        };
        let millions = self.config.num_parameters() as f64 / 1e6;
        let parameters = if millions < 1e3 {
            format!("{millions:.0}M")
        } else {
            format!("{:.1}B", millions / 1e3)
        };
        let mib = self.num_bytes() as f64 / f64::from(1 << 20);
        format!(
            "{}, {parameters} parameters, {format} {types}, {mib:.0} MiB",
            self.config.architecture
        )
    }

    /// Returns a number that tells these weights from others of the same model: a hash of the beginnings of some. Drawn weights are always
    /// the same.
    ///
    /// # Errors
    /// One of them is of a type that is not supported.
    pub fn fingerprint(&self) -> Result<u64, Error> {
        const NAMES: [&str; 5] = [
            "model.norm.weight",
            "model.embed_tokens.weight",
            "model.layers.0.self_attn.q_proj.weight",
            "model.layers.0.self_attn.v_proj.weight",
            "model.layers.0.mlp.down_proj.weight",
        ];
        const MOST: usize = 1 << 16;
        let mut hash = Xxh3Default::new();
        for name in NAMES.map(|name| self.stored_name(name)) {
            let bytes = match &self.weights {
                Weights::Dummy(_) => None,
                Weights::Safetensors(files) => files.tensor(&name)?.map(|weight| weight.bytes),
                Weights::Gguf(file) => file.tensor(&name).map(|(_, bytes)| bytes.into()),
            };
            let bytes = bytes.unwrap_or_default();
            hash.update(&bytes[..bytes.len().min(MOST)]);
        }
        Ok(hash.digest())
    }

    /// Returns a part of the weight `name`, which has the shape that the configuration implies.
    pub(crate) fn weight(
        &self,
        name: &str,
        shape: &[usize],
        cut: &Cut,
    ) -> Result<Weight<'_>, Error> {
        match &self.weights {
            Weights::Dummy(dummy) => Ok(dummy.tensor(name, shape, cut)),
            _ => self.stored(name, shape)?.cut(cut),
        }
    }

    /// Returns a weight as the files have it.
    fn stored(&self, name: &str, shape: &[usize]) -> Result<Weight<'_>, Error> {
        let stored = match &self.weights {
            Weights::Dummy(_) => None,
            Weights::Safetensors(files) => files.tensor(&self.stored_name(name))?,
            Weights::Gguf(file) => {
                file.tensor(&self.stored_name(name)).map(|(info, bytes)| Weight {
                    name: self.stored_name(name),
                    dtype: info.dtype,
                    shape: info.shape.clone(),
                    bytes: bytes.into(),
                })
            }
        };
        let Some(weight) = stored else {
            let place = match (&self.weights, &self.folder) {
                (Weights::Gguf(file), _) => file.path().display().to_string(),
                (_, Some(folder)) => format!("the safetensors of {}", folder.display()),
                (_, None) => "no file".to_owned(),
            };
            let looked_for = format!("{} in {place}", self.stored_name(name));
            return Err(Error::MissingTensor { name: name.to_owned(), looked_for });
        };
        if weight.shape != shape {
            return Err(Error::Shape {
                name: weight.name,
                expected: shape.to_vec(),
                got: weight.shape,
            });
        }
        if weight.shape.len() == 1 && weight.dtype.block_len() > 1 {
            return Err(Error::Unsupported {
                what: format!("weight {}: a vector of type {:?}", weight.name, weight.dtype),
                supported: "vectors of type F32, F16, BF16".to_owned(),
            });
        }
        match &self.weights {
            Weights::Gguf(_) if self.is_paired(name) => {
                Ok(weight.unpair_rows(self.config.head_dim))
            }
            _ => Ok(weight),
        }
    }

    /// Tells whether the file holds the weight `name`; drawn weights have no such extras.
    pub(crate) fn has(&self, name: &str) -> bool {
        match &self.weights {
            Weights::Safetensors(files) => files.has(&self.stored_name(name)),
            Weights::Gguf(file) => file.has(&self.stored_name(name)),
            Weights::Dummy(_) => false,
        }
    }

    fn stored_name(&self, name: &str) -> String {
        match &self.weights {
            Weights::Gguf(_) => gguf::stored_name(name),
            _ => (self.architecture.stored_name)(name),
        }
    }

    /// Tells whether GGUF holds this weight's rows in the order of the original Llama's rotation.
    fn is_paired(&self, name: &str) -> bool {
        let rotated = name.contains(".self_attn.q_proj.") || name.contains(".self_attn.k_proj.");
        rotated && self.architecture.gguf_pairs_rows
    }

    /// Reads a file beside config.json, if there is one.
    fn companion(&self, name: &str) -> Result<Option<Json>, Error> {
        match self.folder.as_ref().map(|folder| folder.join(name)) {
            Some(path) if path.exists() => read_json(&path).map(Some),
            _ => Ok(None),
        }
    }
}

fn default_template(json: &Json) -> Option<&str> {
    match json.get("chat_template")? {
        Json::String(template) => Some(template),
        Json::Array(named) => {
            let is_default =
                |entry: &&Json| entry.get("name").and_then(Json::as_str) == Some("default");
            named.iter().find(is_default).or(named.first())?.get("template")?.as_str()
        }
        _ => None,
    }
}

fn read_json(path: &Path) -> Result<Json, Error> {
    let bytes =
        std::fs::read(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
    serde_json::from_slice(&bytes).map_err(|e| Error::Format {
        path: path.to_owned(),
        format: "JSON",
        problem: e.to_string(),
    })
}
