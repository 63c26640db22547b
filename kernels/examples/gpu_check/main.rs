//! Checks every CUDA kernel against a reference on this machine's GPU, then times them beside their floors.
//!
//! `gpu_check [check|bench|step] [sm80]`; fails where there is no GPU.
#![expect(clippy::print_stdout, reason = "a report for a terminal")]

mod bench;
mod checks;
mod reference;
mod rig;
mod step;

use stallfree_device::{Arch, Dtype};

use rig::{Outcome, Rig};

fn main() -> Outcome<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let has = |word: &str| words.iter().any(|w| w == word);
    let all = !has("check") && !has("bench") && !has("step");
    let arch = has("sm80").then_some(Arch::Sm80);
    if all || has("check") {
        for dtype in [Dtype::Bf16, Dtype::F16] {
            let mut rig = Rig::new(dtype, arch, 2 << 30)?;
            println!("{:?} {} {dtype:?}", rig.tools.device.props(), rig.tools.arch.name());
            checks::all(&mut rig)?;
        }
    }
    if all || has("bench") {
        let mut rig = Rig::new(Dtype::Bf16, arch, 24 << 30)?;
        bench::all(&mut rig)?;
    }
    if all || has("step") {
        let mut rig = Rig::new(Dtype::Bf16, arch, 60 << 30)?;
        step::all(&mut rig)?;
    }
    Ok(())
}
