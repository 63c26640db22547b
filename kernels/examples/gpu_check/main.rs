//! Checks every CUDA kernel against a reference on this machine's GPU, then times them beside their floors.
//!
//! `gpu_check [check|bench|sampling|step] [FAMILY...] [sm80] [ours] [small]`; fails where there is no GPU. `check` takes the families that are named
//! (rows, skinny_gemm, decode_gemm, blas, attention, sampling), or all; `bench attention` times that family alone. `sm80` keeps to Ampere's instructions; `ours` leaves
//! cuBLASLt's kernels out, whose barriers a race checker takes for races; `small` samples from short rows only, for
//! a race checker takes hours over long ones; `sampling` alone checks and times that family.
#![expect(clippy::print_stdout, reason = "a report for a terminal")]

mod bench;
mod checks;
mod reference;
mod rig;
mod sampling;
mod step;

use stallfree_device::Dtype;

use rig::{Outcome, Rig};

fn main() -> Outcome<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let has = |word: &str| words.iter().any(|w| w == word);
    let all = !["check", "bench", "sampling", "step"].into_iter().any(has);
    let ampere_path = has("sm80");
    if all || has("check") {
        let any = checks::FAMILIES.iter().any(|(family, _)| has(family));
        for dtype in [Dtype::Bf16, Dtype::F16] {
            let mut rig = Rig::new(dtype, ampere_path, 2 << 30)?;
            rig.is_small = has("small");
            println!("{:?} {dtype:?} sm80={ampere_path}", rig.tools.device.props());
            for (family, check) in checks::FAMILIES {
                let is_named =
                    if any { has(family) } else { !(has("ours") && *family == checks::BLAS) };
                // Logits are single precision with either type.
                let is_new = *family != checks::SAMPLING || dtype == Dtype::Bf16;
                if is_named && is_new {
                    check(&mut rig)?;
                }
            }
        }
    }
    if has("sampling") && !has("check") {
        let mut rig = Rig::new(Dtype::Bf16, ampere_path, 2 << 30)?;
        let checked = sampling::check(&mut rig);
        sampling::bench(&mut rig)?;
        checked?;
    }
    if all || has("bench") {
        let mut rig = Rig::new(Dtype::Bf16, ampere_path, 24 << 30)?;
        bench::attention(&mut rig)?;
        if !has("attention") {
            bench::rows_and_products(&mut rig)?;
            sampling::bench(&mut rig)?;
        }
    }
    if all || has("step") {
        let mut rig = Rig::new(Dtype::Bf16, ampere_path, 60 << 30)?;
        step::all(&mut rig)?;
    }
    Ok(())
}
