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
    begin_capture(stream)?;
    let worked = work();
    let graph = end_capture(stream);
    worked?;
    Ok(graph?)
}

/// Begins to record what is submitted to `stream`; until [`end_capture`] nothing of it runs.
///
/// # Errors
/// The stream records already, or the driver refuses.
pub fn begin_capture(stream: &Stream) -> Result<(), DeviceError> {
    let mode = cu::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    // SAFETY: the stream lives.
    let code = unsafe { cu::cuStreamBeginCapture_v2(stream.raw, mode) };
    check("cuStreamBeginCapture", code)
}

/// Ends what [`begin_capture`] began. Launches of the graph use the recorded functions: they have to stay loaded as long as it lives.
///
/// # Errors
/// Something was submitted that cannot be recorded (waiting, allocating), or the driver refuses.
pub fn end_capture(stream: &Stream) -> Result<Graph, DeviceError> {
    let mut graph = std::ptr::null_mut();
    // SAFETY: the stream lives, and the pointer is to a live handle.
    check("cuStreamEndCapture", unsafe { cu::cuStreamEndCapture(stream.raw, &raw mut graph) })?;
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
        // SAFETY: instantiated in `end_capture`, destroyed once.
        let _ = unsafe { cu::cuGraphExecDestroy(self.exec) };
    }
}
