//! Checks every CUDA kernel against a reference on this machine's GPU, then times them beside their floors.
//!
//! `gpu_check [check|bench|step]... [FAMILY...] [sm80] [small]` does all three where none is named; it fails where there is no GPU. Families (rows,
//! skinny_gemm, decode_gemm, blas, attention, sampling) are what `check` and `bench` keep to. `sm80` keeps to Ampere's instructions; `small`
//! samples from short rows only, for a race checker takes hours over long ones. It takes the barriers within cuBLASLt's kernels (blas)
//! for races.
#![expect(clippy::print_stdout, reason = "a report for a terminal")]

mod bench;
mod checks;
mod reference;
mod rig;
mod sampling;
mod step;

use stallfree_device::Dtype;
use stallfree_kernels::cuda::Ceilings;

use rig::{Outcome, Rig};

fn main() -> Outcome<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let has = |word: &str| words.iter().any(|w| w == word);
    let is_asked = |part: &str| has(part) || !["check", "bench", "step"].into_iter().any(has);
    let any_family = checks::FAMILIES.iter().any(|(family, _)| has(family));
    let is_named = |family: &str| has(family) || !any_family;
    let ampere_path = has("sm80");
    if is_asked("check") {
        for dtype in [Dtype::Bf16, Dtype::F16] {
            let mut rig = Rig::new(dtype, ampere_path, 2 << 30)?;
            rig.is_small = has("small");
            println!("{:?} {dtype:?} sm80={ampere_path}", rig.tools.device.props());
            for (family, check) in checks::FAMILIES {
                // Logits are single precision with either type.
                let is_new = *family != checks::SAMPLING || dtype == Dtype::Bf16;
                if is_named(family) && is_new {
                    check(&mut rig)?;
                }
            }
        }
    }
    if !is_asked("bench") && !is_asked("step") {
        return Ok(());
    }
    let ceilings = Ceilings::measure(0, &rig::kernel_cache())?;
    println!(
        "memory is read at {:.2} TB/s, a large product reaches {:.0} TFLOP/s",
        ceilings.read_bytes_per_s / 1e12,
        ceilings.gemm_flops / 1e12
    );
    if is_asked("bench") {
        let mut rig = Rig::new(Dtype::Bf16, ampere_path, 24 << 30)?;
        for (families, bench) in bench::BENCHES {
            if families.iter().any(|family| is_named(family)) {
                bench(&mut rig, ceilings)?;
            }
        }
    }
    if is_asked("step") {
        let mut rig = Rig::new(Dtype::Bf16, ampere_path, 60 << 30)?;
        step::all(&mut rig, ceilings)?;
    }
    Ok(())
}
