//! The step loop, and the handle that others hold.

mod handle;
mod output;

pub use handle::{
    Admission, EngineHandle, EngineInfo, EngineStats, Finished, Health, OutputToken, SeqOutput,
    SeqTimes, StepChunk, StepObserver, StepRecord, SubmitError,
};
pub use output::{OutputSender, OutputStream, output_stream};
