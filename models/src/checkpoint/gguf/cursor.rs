//! A position in a GGUF file that cannot pass its end.

use std::path::Path;

use crate::Error;

#[derive(Debug)]
pub(crate) struct Cursor<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(path: &'a Path, bytes: &'a [u8]) -> Self {
        Self { path, bytes, position: 0 }
    }

    pub(crate) fn position(&self) -> usize {
        self.position
    }

    pub(crate) fn error(&self, problem: &str) -> Error {
        let problem = format!("{problem} (at byte {})", self.position);
        Error::Format { path: self.path.to_owned(), format: "GGUF", problem }
    }

    pub(crate) fn take(&mut self, len: usize) -> Result<&'a [u8], Error> {
        let end = self.position.checked_add(len);
        let Some(bytes) = end.and_then(|end| self.bytes.get(self.position..end)) else {
            return Err(self.error("it ends within its header: it is truncated or damaged"));
        };
        self.position += len;
        Ok(bytes)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let bytes = self.take(N)?;
        Ok(bytes.try_into().expect("invariant: take returns as many bytes as asked for"))
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Error> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Error> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// Reads how many things of at least `min_bytes` follow, and checks that the file has room for them.
    pub(crate) fn count(&mut self, min_bytes: usize) -> Result<usize, Error> {
        let count = self.u64()?;
        let room = (self.bytes.len() - self.position) / min_bytes;
        match usize::try_from(count) {
            Ok(count) if count <= room => Ok(count),
            _ => {
                Err(self
                    .error(&format!("{count} entries cannot follow: it is truncated or damaged")))
            }
        }
    }

    pub(crate) fn string(&mut self) -> Result<String, Error> {
        let len = self.count(1)?;
        Ok(String::from_utf8_lossy(self.take(len)?).into_owned())
    }
}
