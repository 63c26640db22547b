//! Tokens that the GPU is choosing: on their way to the host, and at hand for the next step.

use std::sync::mpsc::{Receiver, Sender, channel};

use stallfree_device::{DeviceError, DeviceSlice, Download, Stream};

use super::SampleReader;
use crate::{Choice, Sampled};

/// Tokens on their way to the host.
#[derive(Debug)]
pub struct CudaChoice {
    parts: Vec<Part>,
    pool: Sender<Download>,
}

/// Some of the tokens, with their logprobs if a reader is there for them.
#[derive(Debug)]
struct Part {
    download: Download,
    reader: Option<SampleReader>,
}

impl Choice for CudaChoice {
    /// # Panics
    /// After a CUDA error, as every op: the rank is lost.
    fn wait(self) -> Vec<Sampled> {
        let mut sampled = Vec::new();
        for Part { download, reader } in self.parts {
            let bare = |&token: &u32| Sampled { token, logprobs: Vec::new() };
            match reader {
                Some(reader) => sampled.extend(reader.read(super::must(download.wait()))),
                None => sampled.extend(super::must(download.wait()).iter().map(bare)),
            }
            // The backend may be gone by now; then nobody needs the buffer.
            self.pool.send(download).unwrap_or_default();
        }
        sampled
    }
}

/// Where choices stay on the device, and the buffers in which they travel.
#[derive(Debug)]
pub(super) struct Chosen {
    all: DeviceSlice,
    count: usize,
    pool: Sender<Download>,
    free: Receiver<Download>,
}

impl Chosen {
    /// `all`: 4 bytes for each choice of a step.
    pub(super) fn new(all: DeviceSlice) -> Self {
        let (pool, free) = channel();
        Self { all, count: 0, pool, free }
    }

    /// Returns where the step's choices are on the device.
    pub(super) const fn all(&self) -> DeviceSlice {
        self.all
    }

    /// Starts a step: its choices take the place of those before. What reads them is submitted earlier.
    pub(super) const fn begin_step(&mut self) {
        self.count = 0;
    }

    /// Takes the place of the next `count` choices.
    pub(super) fn take(&mut self, count: usize) -> DeviceSlice {
        let slice = self.all.slice(self.count * 4, count * 4);
        self.count += count;
        slice
    }

    /// Makes a choice of no tokens so far.
    pub(super) fn choice(&self) -> CudaChoice {
        CudaChoice { parts: Vec::new(), pool: self.pool.clone() }
    }

    /// Sends a part of a choice to the host: tokens, or what a reader reads.
    pub(super) fn send(
        &self,
        stream: &Stream,
        choice: &mut CudaChoice,
        what: DeviceSlice,
        reader: Option<SampleReader>,
    ) -> Result<(), DeviceError> {
        let returned = self.free.try_iter().find(|download| download.capacity() >= what.len());
        let mut download = match returned {
            Some(download) => download,
            None => Download::new(stream.device(), what.len().next_power_of_two().max(1024))?,
        };
        download.start(stream, what)?;
        choice.parts.push(Part { download, reader });
        Ok(())
    }

    /// Brings all the step's choices to the host, and waits for them.
    pub(super) fn download(&self, stream: &Stream) -> Result<Vec<u32>, DeviceError> {
        let mut tokens = vec![0; self.count];
        stream.download(&mut tokens, self.all.slice(0, self.count * 4))?;
        Ok(tokens)
    }
}
