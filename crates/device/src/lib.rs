//! CUDA contexts, streams, buffers, graphs and the run-time kernel compiler.
