//! A file's bytes without reading them: what a weight is until a backend loads it.

#![expect(unsafe_code, reason = "mapping a file is unsafe: another process may change it")]

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::path::Path;

/// A file mapped into memory, read-only.
#[derive(Debug)]
pub struct MappedFile {
    map: Option<memmap2::Mmap>, // None: the file is empty, and nothing of it can be mapped
}

impl MappedFile {
    /// Maps the file at `path`.
    ///
    /// # Errors
    /// The file is not there, or cannot be read or mapped.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        if file.metadata()?.len() == 0 {
            return Ok(Self { map: None });
        }
        // SAFETY: The map is private and only ever read. Weight files are written once and then left alone; whoever truncates
        // one under a running server ends that server with SIGBUS, as with every program that maps its data.
        let map = unsafe { memmap2::Mmap::map(&file)? };
        Ok(Self { map: Some(map) })
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.map.as_deref().unwrap_or(&[])
    }
}
