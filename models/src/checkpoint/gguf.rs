//! Reads GGUF files, versions 2 and 3: metadata, then tensors in place.
//!
//! Every size that the file states is checked against the file before it is used, so a damaged file is an error that names what
//! is damaged and never a panic or a large allocation.
//!
//! # Source
//! The GGUF specification, `docs/gguf.md` of the ggml project.

mod cursor;
mod names;
mod value;

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use stallfree_kernels::{MappedFile, WeightType};

use crate::Error;
use crate::error::is_weight_name;
use cursor::Cursor;
pub(crate) use names::stored_name;
pub(crate) use value::Value;

/// A GGUF file, its bytes left where they are.
#[derive(Debug)]
pub(crate) struct Gguf {
    path: PathBuf,
    bytes: MappedFile,
    metadata: HashMap<String, Value>,
    tensors: HashMap<String, TensorInfo>,
}

/// Where a tensor lies and what it is.
#[derive(Debug)]
pub(crate) struct TensorInfo {
    pub(crate) dtype: WeightType,
    /// Rows first; the file has them last.
    pub(crate) shape: Vec<usize>,
    bytes: Range<usize>,
}

impl Gguf {
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let bytes = MappedFile::open(path)
            .map_err(|source| Error::Read { path: path.to_owned(), source })?;
        let (metadata, tensors) = parse(path, &bytes)?;
        Ok(Self { path: path.to_owned(), bytes, metadata, tensors })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn value(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }

    pub(crate) fn string(&self, key: &str) -> Option<&str> {
        match self.value(key)? {
            Value::String(string) => Some(string),
            _ => None,
        }
    }

    pub(crate) fn integer(&self, key: &str) -> Option<i64> {
        match self.value(key)? {
            Value::Integer(integer) => Some(*integer),
            _ => None,
        }
    }

    pub(crate) fn float(&self, key: &str) -> Option<f64> {
        match self.value(key)? {
            Value::Float(float) => Some(*float),
            Value::Integer(integer) => Some(*integer as f64),
            _ => None,
        }
    }

    pub(crate) fn boolean(&self, key: &str) -> Option<bool> {
        match self.value(key)? {
            Value::Bool(boolean) => Some(*boolean),
            _ => None,
        }
    }

    /// Returns a special token of the tokenizer: `eos_token_id`.
    pub(crate) fn token_id(&self, name: &str) -> Option<u32> {
        self.integer(&format!("tokenizer.ggml.{name}")).and_then(|id| u32::try_from(id).ok())
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    pub(crate) fn shape(&self, name: &str) -> Option<&[usize]> {
        Some(&self.tensors.get(name)?.shape)
    }

    pub(crate) fn tensor(&self, name: &str) -> Option<(&TensorInfo, &[u8])> {
        let info = self.tensors.get(name)?;
        Some((info, &self.bytes[info.bytes.clone()]))
    }

    /// Returns the type that most of the weights' bytes are in.
    pub(crate) fn main_type(&self) -> String {
        let mut sizes: HashMap<WeightType, usize> = HashMap::new();
        for tensor in self.tensors.values() {
            *sizes.entry(tensor.dtype).or_default() += tensor.bytes.len();
        }
        let largest = sizes.into_iter().max_by_key(|&(_, size)| size);
        largest.map_or_else(|| "empty".to_owned(), |(dtype, _)| format!("{dtype:?}"))
    }

    pub(crate) fn tensors(&self) -> impl Iterator<Item = &TensorInfo> {
        self.tensors.values()
    }
}

impl TensorInfo {
    pub(crate) fn num_bytes(&self) -> usize {
        self.bytes.len()
    }
}

type Contents = (HashMap<String, Value>, HashMap<String, TensorInfo>);

fn parse(path: &Path, bytes: &[u8]) -> Result<Contents, Error> {
    let mut cursor = Cursor::new(path, bytes);
    if cursor.take(4)? != b"GGUF" {
        return Err(cursor.error("it does not start with GGUF"));
    }
    let version = cursor.u32()?;
    if !matches!(version, 2 | 3) {
        return Err(cursor.error(&format!("version {version}; versions 2 and 3 can be read")));
    }
    // A tensor's record takes at least 24 bytes, a metadata entry 13.
    let num_tensors = cursor.count(24)?;
    let num_entries = cursor.count(13)?;
    let mut metadata = HashMap::new();
    for _ in 0..num_entries {
        let key = cursor.string()?;
        let value = Value::read(&mut cursor)?;
        metadata.insert(key, value);
    }
    let mut records = Vec::new();
    for _ in 0..num_tensors {
        records.push(read_record(&mut cursor)?);
    }
    let alignment = match metadata.get("general.alignment") {
        None => 32,
        Some(Value::Integer(alignment @ 1..=65536)) => *alignment as usize,
        Some(_) => return Err(cursor.error("general.alignment is not between 1 and 65536")),
    };
    let data = cursor.position().next_multiple_of(alignment);
    let mut tensors = HashMap::new();
    for record in records {
        let (name, info) = record.locate(path, data, bytes.len())?;
        tensors.insert(name, info);
    }
    Ok((metadata, tensors))
}

/// A tensor as the file's table names it.
struct Record {
    name: String,
    type_id: u32,
    shape: Vec<usize>,
    offset: u64,
}

fn read_record(cursor: &mut Cursor<'_>) -> Result<Record, Error> {
    let name = cursor.string()?;
    if !is_weight_name(&name) {
        return Err(cursor.error("a weight's name is damaged"));
    }
    let num_dimensions = cursor.u32()?;
    if num_dimensions > 4 {
        return Err(cursor.error(&format!("weight {name} has {num_dimensions} dimensions")));
    }
    let mut shape = Vec::new();
    for _ in 0..num_dimensions {
        let dimension = cursor.u64()?;
        shape.push(usize::try_from(dimension).unwrap_or(usize::MAX));
    }
    shape.reverse();
    Ok(Record { name, type_id: cursor.u32()?, shape, offset: cursor.u64()? })
}

impl Record {
    /// Finds the tensor's bytes, which start `offset` behind `data`.
    fn locate(self, path: &Path, data: usize, len: usize) -> Result<(String, TensorInfo), Error> {
        let Self { name, type_id, shape, offset } = self;
        let invalid =
            |problem: String| Error::Format { path: path.to_owned(), format: "GGUF", problem };
        let dtype = weight_type(type_id).ok_or_else(|| Error::Unsupported {
            what: format!("weight {name}: quantization {}", type_name(type_id)),
            supported: "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K to Q8_K".to_owned(),
        })?;
        let columns = shape.last().copied().unwrap_or(1);
        if !columns.is_multiple_of(dtype.block_len()) {
            let block = dtype.block_len();
            return Err(invalid(format!(
                "weight {name}: rows of {columns} do not fill blocks of {block}"
            )));
        }
        let size = shape
            .iter()
            .try_fold(1usize, |product, &dimension| product.checked_mul(dimension))
            .and_then(|elements| (elements / dtype.block_len()).checked_mul(dtype.block_bytes()))
            .ok_or_else(|| invalid(format!("weight {name}: shape {shape:?} is too large")))?;
        let start = (data as u64).saturating_add(offset);
        let end = start.saturating_add(size as u64);
        if end > len as u64 {
            return Err(Error::Truncated { path: path.to_owned(), name, end, len: len as u64 });
        }
        Ok((name, TensorInfo { dtype, shape, bytes: start as usize..end as usize }))
    }
}

fn weight_type(id: u32) -> Option<WeightType> {
    Some(match id {
        0 => WeightType::F32,
        1 => WeightType::F16,
        2 => WeightType::Q4_0,
        3 => WeightType::Q4_1,
        6 => WeightType::Q5_0,
        7 => WeightType::Q5_1,
        8 => WeightType::Q8_0,
        10 => WeightType::Q2K,
        11 => WeightType::Q3K,
        12 => WeightType::Q4K,
        13 => WeightType::Q5K,
        14 => WeightType::Q6K,
        15 => WeightType::Q8K,
        30 => WeightType::BF16,
        _ => return None,
    })
}

/// Names the types that are not supported, by the format's own numbers.
fn type_name(id: u32) -> String {
    let name = match id {
        9 => "Q8_1",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24..=27 => "of integers",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        _ => return format!("number {id}"),
    };
    name.to_owned()
}
