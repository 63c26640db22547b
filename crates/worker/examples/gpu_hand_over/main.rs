//! KV from GPU to GPU, held against what it should be, and measured. Needs one GPU, and shows more with two, so it is run by name, or by
//! `benches/gpu/run.sh`.
//!
//! - `gpu_hand_over check`: blocks of ranks that are split in different ways, byte by byte; a tiny model on two instances: tokens are
//!   those of KV that goes through the host's memory and, split alike, those of one instance alone. What is copied under a lease that has
//!   ended is refused.
//! - `gpu_hand_over lose prefill|decode`: a kernel traps while sequences decode, and takes the process of one instance with it; every
//!   stream goes on in the other process, and with the right tokens.
//! - `gpu_hand_over measure FOLDER [CASE]`: the model whose config.json is in FOLDER, with random weights; one instance prefills, one decodes.
#![expect(clippy::print_stdout, reason = "a check for people to run and read")]

mod apart;
mod check;
mod deployment;
mod lose;
mod measure;
mod splits;

use std::path::Path;

/// What a check or a measurement comes to.
pub(crate) type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> Outcome<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["check"] => {
            splits::run()?;
            check::run(&check::model()?)
        }
        ["lose", role] => lose::run(&check::model()?, role),
        ["join", port, role, gpu] => {
            lose::join(&check::model()?, port.parse()?, role, gpu.parse()?)
        }
        ["measure", folder] => measure::run(Path::new(folder), None),
        ["measure", folder, case] => measure::run(Path::new(folder), Some(case.parse()?)),
        _ => Err("see the head of crates/worker/examples/gpu_hand_over/main.rs".into()),
    }
}
