//! Compiled kernels kept on disk, so that a second start compiles nothing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use xxhash_rust::xxh3::xxh3_128;

use crate::compile::options;
use crate::{Arch, Cubin, DeviceError, Source, compile, compiler_version};

/// A folder of cubins, named by the hash of all that went into them: text, options and the compiler's version.
#[derive(Clone, Debug)]
pub struct CubinCache {
    folder: PathBuf,
}

/// A lock for each file that was asked for: ranks of a process want the same kernels at the same time, and one compiles for all.
static WANTED: Mutex<BTreeMap<PathBuf, Arc<Mutex<()>>>> = Mutex::new(BTreeMap::new());

impl CubinCache {
    /// Uses `folder`, which is made on the first write.
    #[must_use]
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    /// Returns the folder, for what is to be kept beside the cubins.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Names a source's code on `arch` by all that goes into it.
    ///
    /// # Errors
    /// NVRTC cannot be loaded.
    pub fn name(source: &Source, arch: Arch) -> Result<String, DeviceError> {
        Ok(file_name(source, arch, compiler_version()?))
    }

    /// Returns the compiled source, from the folder if it is there and whole. A folder that cannot be written costs time only.
    ///
    /// # Errors
    /// NVRTC cannot be loaded, or the source does not compile.
    pub fn get(&self, source: &Source, arch: Arch) -> Result<Cubin, DeviceError> {
        let version = compiler_version()?;
        let path = self.folder.join(file_name(source, arch, version));
        let wanted = Arc::clone(
            WANTED.lock().unwrap_or_else(PoisonError::into_inner).entry(path.clone()).or_default(),
        );
        let _compiling = wanted.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(image) = std::fs::read(&path).ok().and_then(parse_header) {
            return Ok(Cubin::new(image, String::new()));
        }
        let cubin = compile(source, arch)?;
        if let Err(error) = self.write(&path, cubin.image()) {
            tracing::warn!(path = %path.display(), %error, "compiled kernel not cached");
        }
        Ok(cubin)
    }

    /// Writes beside the name and renames, so that a reader never sees half a file.
    fn write(&self, path: &Path, image: &[u8]) -> std::io::Result<()> {
        std::fs::create_dir_all(&self.folder)?;
        let part = path.with_extension(format!("{}.part", std::process::id()));
        let mut bytes = xxh3_128(image).to_le_bytes().to_vec();
        bytes.extend_from_slice(image);
        std::fs::write(&part, bytes)?;
        std::fs::rename(part, path)
    }
}

/// Returns the image of a cache file if its hash is right.
fn parse_header(mut bytes: Vec<u8>) -> Option<Vec<u8>> {
    if bytes.len() < 16 {
        return None;
    }
    let image = bytes.split_off(16);
    (xxh3_128(&image).to_le_bytes() == bytes[..]).then_some(image)
}

fn file_name(source: &Source, arch: Arch, version: (u32, u32)) -> String {
    let key =
        format!("{version:?}\n{:?}\n{}\n{}", options(source, arch), source.prelude, source.text);
    let stem = source.name.trim_end_matches(".cu");
    format!("{stem}-{}-{:032x}.cubin", arch.name(), xxh3_128(key.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &'static str, value: &str) -> Source {
        Source { name: "a.cu", prelude: "", text, defines: vec![("N", value.to_owned())] }
    }

    #[test]
    fn a_name_depends_on_text_options_architecture_and_version() {
        let base = file_name(&source("x", "1"), Arch::Sm80, (13, 0));
        assert_eq!(base, file_name(&source("x", "1"), Arch::Sm80, (13, 0)));
        for other in [
            file_name(&source("y", "1"), Arch::Sm80, (13, 0)),
            file_name(&source("x", "2"), Arch::Sm80, (13, 0)),
            file_name(&source("x", "1"), Arch::Sm90a, (13, 0)),
            file_name(&source("x", "1"), Arch::Sm80, (13, 1)),
        ] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn a_damaged_file_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let cache = CubinCache::new(folder.path());
        let path = folder.path().join("a.cubin");
        cache.write(&path, b"image").unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        assert_eq!(parse_header(bytes.clone()).unwrap(), b"image");
        bytes.pop();
        assert_eq!(parse_header(bytes), None);
        assert_eq!(parse_header(Vec::new()), None);
    }
}
