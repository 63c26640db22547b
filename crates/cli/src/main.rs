//! A fast LLM server in which the scheduler is yours to choose.

fn main() {}
