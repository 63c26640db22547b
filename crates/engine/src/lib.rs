//! The step loop, and the handle that others hold.

mod batch;
mod engine;
mod handle;
mod live;
mod output;
mod threaded;

pub use engine::{Command, Engine, Wake};
pub use handle::{
    Admission, EngineHandle, EngineInfo, EngineStats, Finished, Health, OutputToken, SeqOutput,
    SeqTimes, StepChunk, StepObserver, StepRecord, SubmitError,
};
pub use output::{OutputSender, OutputStream, output_stream};
pub use threaded::ThreadedEngine;
