//! Work recorded once and launched as one.

use cudarc::driver::sys as cu;

use crate::error::check;
use crate::{DeviceError, Stream};

/// Recorded work. The memory it names must outlive it.
#[derive(Debug)]
pub struct Graph {
    exec: cu::CUgraphExec,
    num_nodes: usize,
}

// SAFETY: an executable graph may be launched from any thread, one at a time.
unsafe impl Send for Graph {}

/// Records what `work` submits to `stream`, without running it. Other threads may use the GPU meanwhile.
///
/// # Errors
/// `work` fails, or does what cannot be recorded (waiting, allocating).
pub fn capture<E: From<DeviceError>>(
    stream: &Stream,
    work: impl FnOnce() -> Result<(), E>,
) -> Result<Graph, E> {
    let mode = cu::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    // SAFETY: the stream lives.
    let code = unsafe { cu::cuStreamBeginCapture_v2(stream.raw, mode) };
    check("cuStreamBeginCapture", code)?;
    let worked = work();
    let mut graph = std::ptr::null_mut();
    // SAFETY: the capture began above; it is ended also when `work` failed.
    let ended = unsafe { cu::cuStreamEndCapture(stream.raw, &raw mut graph) };
    worked?;
    check("cuStreamEndCapture", ended)?;
    let (mut exec, mut num_nodes) = (std::ptr::null_mut(), 0);
    // SAFETY: the graph is valid until destroyed below; an executable graph does not need it.
    let (counted, instantiated) = unsafe {
        let counted = cu::cuGraphGetNodes(graph, std::ptr::null_mut(), &raw mut num_nodes);
        let instantiated = cu::cuGraphInstantiateWithFlags(&raw mut exec, graph, 0);
        let _ = cu::cuGraphDestroy(graph);
        (counted, instantiated)
    };
    check("cuGraphGetNodes", counted)?;
    check("cuGraphInstantiate", instantiated)?;
    Ok(Graph { exec, num_nodes })
}

impl Graph {
    /// Submits the recorded work.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn launch(&self, stream: &Stream) -> Result<(), DeviceError> {
        // SAFETY: both handles live.
        check("cuGraphLaunch", unsafe { cu::cuGraphLaunch(self.exec, stream.raw) })
    }

    /// Returns how many launches and copies it holds.
    #[must_use]
    pub const fn num_nodes(&self) -> usize {
        self.num_nodes
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: instantiated in `capture`, destroyed once.
        let _ = unsafe { cu::cuGraphExecDestroy(self.exec) };
    }
}
