//! Blocks of a rank's KV cache on their way to the host's memory and back, beside the rank's steps.

use stallfree_device::{DeviceError, Download, Stream, Upload};

use super::CudaKv;

/// Copies blocks through page-locked memory, on a queue of its own: while one is copied, the one before is taken apart. Whether a
/// block may be read or written, others know.
#[derive(Debug)]
pub struct CudaKvHost {
    cache: CudaKv,
    stream: Stream,
    downloads: [Download; 2],
    uploads: [Upload; 2],
}

impl CudaKvHost {
    /// Takes page-locked memory for four blocks.
    ///
    /// # Errors
    /// The host has not that much left to lock, or the driver refuses a queue.
    pub fn new(cache: CudaKv) -> Result<Self, DeviceError> {
        let (device, bytes) = (cache.device(), cache.layout().bytes());
        let download = || Download::new(device, bytes);
        let upload = || Upload::new(device, bytes);
        Ok(Self {
            stream: Stream::new(device)?,
            downloads: [download()?, download()?],
            uploads: [upload()?, upload()?],
            cache,
        })
    }

    /// Returns how many bytes a head's keys and values of a layer take in a block.
    #[must_use]
    pub const fn piece_bytes(&self) -> usize {
        self.cache.layout().piece_bytes()
    }

    /// Copies blocks out: `[block, layer, head]` pieces, each a head's keys, then its values.
    ///
    /// # Errors
    /// The GPU has failed.
    pub fn read(&mut self, blocks: &[u32]) -> Result<Vec<u8>, DeviceError> {
        let Self { cache, stream, downloads, .. } = self;
        cache.device().bind()?;
        let layout = cache.layout();
        let mut pieces = Vec::with_capacity(blocks.len() * layout.bytes());
        let mut started = 0;
        for done in 0..blocks.len() {
            for &index in blocks.iter().take(done + 2).skip(started) {
                downloads[started % 2].start(stream, cache.block(index))?;
                started += 1;
            }
            layout.take_apart(downloads[done % 2].wait()?, &mut pieces);
        }
        Ok(pieces)
    }

    /// Copies pieces into blocks, and waits until they are there.
    ///
    /// # Errors
    /// The GPU has failed.
    pub fn write(&mut self, blocks: &[u32], pieces: &[u8]) -> Result<(), DeviceError> {
        let Self { cache, stream, uploads, .. } = self;
        cache.device().bind()?;
        let layout = cache.layout();
        for (number, (&index, pieces)) in
            blocks.iter().zip(pieces.chunks_exact(layout.bytes())).enumerate()
        {
            let upload = &mut uploads[number % 2];
            upload.begin()?;
            let write = |staged: &mut [u8]| layout.put_together(pieces, staged);
            upload.push_with(stream, cache.block(index), write)?;
        }
        stream.synchronize()
    }
}
