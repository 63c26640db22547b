//! Reads safetensors files, sharded or not, in place.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::TensorInfo;
use serde_json::Value;
use stallfree_kernels::{MappedFile, WeightType};

use super::read_json;
use crate::Error;
use crate::error::is_weight_name;
use crate::weight::Weight;

/// All safetensors files of a folder, as one set of weights.
#[derive(Debug)]
pub(crate) struct SafetensorsFiles {
    files: Vec<MappedFile>,
    tensors: HashMap<String, Entry>,
}

#[derive(Debug)]
struct Entry {
    file: usize,
    /// The type, or the name of one that is not supported.
    dtype: Result<WeightType, String>,
    shape: Vec<usize>,
    bytes: Range<usize>,
}

impl SafetensorsFiles {
    /// Opens those that the folder's index names, or `model.safetensors`, or all there are.
    pub(crate) fn open(folder: &Path) -> Result<Self, Error> {
        let mut this = Self { files: Vec::new(), tensors: HashMap::new() };
        for path in files_of(folder)? {
            let bytes = MappedFile::open(&path)
                .map_err(|source| Error::Read { path: path.clone(), source })?;
            for (name, entry) in parse(&path, &bytes, this.files.len())? {
                this.tensors.insert(name, entry);
            }
            this.files.push(bytes);
        }
        Ok(this)
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    pub(crate) fn tensor(&self, name: &str) -> Result<Option<Weight<'_>>, Error> {
        let Some(entry) = self.tensors.get(name) else { return Ok(None) };
        let dtype = entry.dtype.clone().map_err(|dtype| Error::Unsupported {
            what: format!("weight {name}: type {dtype}"),
            supported: "F32, F16, BF16".to_owned(),
        })?;
        let bytes = &self.files[entry.file][entry.bytes.clone()];
        Ok(Some(Weight {
            name: name.to_owned(),
            dtype,
            shape: entry.shape.clone(),
            bytes: bytes.into(),
        }))
    }

    pub(crate) fn num_bytes(&self) -> u64 {
        self.tensors.values().map(|entry| entry.bytes.len() as u64).sum()
    }

    /// Returns the weights' types, each once.
    pub(crate) fn types(&self) -> Vec<String> {
        let names = self.tensors.values().map(|entry| match &entry.dtype {
            Ok(dtype) => format!("{dtype:?}"),
            Err(name) => name.clone(),
        });
        names.collect::<BTreeSet<_>>().into_iter().collect()
    }
}

fn files_of(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let index = folder.join("model.safetensors.index.json");
    if index.exists() {
        let json = read_json(&index)?;
        let map =
            json.get("weight_map").and_then(Value::as_object).ok_or_else(|| Error::Format {
                path: index.clone(),
                format: "safetensors index",
                problem: "it has no weight_map".to_owned(),
            })?;
        let names: BTreeSet<&str> = map.values().filter_map(Value::as_str).collect();
        return Ok(names.into_iter().map(|name| folder.join(name)).collect());
    }
    let single = folder.join("model.safetensors");
    if single.exists() {
        return Ok(vec![single]);
    }
    let listing = std::fs::read_dir(folder);
    let listing = listing.map_err(|source| Error::Read { path: folder.to_owned(), source })?;
    let mut files: Vec<PathBuf> = listing
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "safetensors"))
        .collect();
    files.sort();
    if files.is_empty() {
        let problem =
            "it has a config.json but no *.safetensors; weights of other kinds (*.bin, *.pth) \
                       must be converted first"
                .to_owned();
        return Err(Error::NoModel { path: folder.to_owned(), problem });
    }
    Ok(files)
}

/// Reads a file's table, and checks every tensor against the file's length.
///
/// The safetensors crate refuses a short file as a whole; read here, the error can name the tensor that is cut.
fn parse(path: &Path, bytes: &[u8], file: usize) -> Result<Vec<(String, Entry)>, Error> {
    let invalid =
        |problem: String| Error::Format { path: path.to_owned(), format: "safetensors", problem };
    let header_len = bytes.first_chunk::<8>().map(|len| u64::from_le_bytes(*len));
    let header_end = header_len.and_then(|len| usize::try_from(len).ok()?.checked_add(8));
    let header = header_end.and_then(|end| bytes.get(8..end));
    let Some(header) = header else {
        return Err(invalid("it ends within its header: it is truncated or damaged".to_owned()));
    };
    let table: BTreeMap<String, Value> =
        serde_json::from_slice(header).map_err(|e| invalid(format!("its header: {e}")))?;
    let data = 8 + header.len();
    let mut entries = Vec::new();
    for (name, value) in table {
        if name == "__metadata__" {
            continue;
        }
        if !is_weight_name(&name) {
            return Err(invalid("a weight's name is damaged".to_owned()));
        }
        let info: TensorInfo =
            serde_json::from_value(value).map_err(|e| invalid(format!("weight {name}: {e}")))?;
        let (start, end) = info.data_offsets;
        let elements = info.shape.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim));
        let bits = elements.and_then(|elements| elements.checked_mul(info.dtype.bitsize()));
        if end < start || bits != (end - start).checked_mul(8) {
            return Err(invalid(format!("weight {name}: its shape and its place do not agree")));
        }
        let len = bytes.len() as u64;
        match data.checked_add(end) {
            Some(end) if end <= bytes.len() => {}
            end => {
                let end = end.unwrap_or(usize::MAX) as u64;
                return Err(Error::Truncated { path: path.to_owned(), name, end, len });
            }
        }
        let dtype = weight_type(info.dtype);
        entries.push((
            name,
            Entry { file, dtype, shape: info.shape, bytes: data + start..data + end },
        ));
    }
    Ok(entries)
}

fn weight_type(dtype: Dtype) -> Result<WeightType, String> {
    match dtype {
        Dtype::F32 => Ok(WeightType::F32),
        Dtype::F16 => Ok(WeightType::F16),
        Dtype::BF16 => Ok(WeightType::BF16),
        other => Err(format!("{other:?}")),
    }
}
