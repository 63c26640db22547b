//! Compiles every CUDA kernel, without a GPU, and fails on a register spill or more shared memory than a GPU has.
//!
//! `LD_LIBRARY_PATH=<folder of libnvrtc.so.13> cargo run --example compile_kernels -p stallfree-kernels`
#![expect(clippy::print_stdout, reason = "a report for a terminal")]

use stallfree_device::{Arch, Dtype, compile, compiler_version};
use stallfree_kernels::cuda::{Build, builds};

/// Returns what a block may ask for.
const fn shared_limit(arch: Arch) -> usize {
    match arch {
        Arch::Sm80 => 163 << 10,
        _ => 227 << 10,
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (major, minor) = compiler_version()?;
    println!("NVRTC {major}.{minor}");
    let mut faults = 0;
    for dtype in [Dtype::Bf16, Dtype::F16] {
        for build in builds(dtype)? {
            let is_for = |arch: &Arch| build.arch.is_none_or(|only| only == *arch);
            for arch in [Arch::Sm80, Arch::Sm90a].into_iter().filter(is_for) {
                faults += usize::from(!report(&build, arch)?);
            }
        }
    }
    if faults == 0 {
        Ok(())
    } else {
        Err(format!("{faults} builds spill or ask for too much").into())
    }
}

/// Prints what a build's kernels use; says whether that is allowed.
fn report(build: &Build, arch: Arch) -> Result<bool, Box<dyn std::error::Error>> {
    let defines: Vec<_> =
        build.source.defines.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let mut ok = true;
    let uses = compile(&build.source, arch)?.uses();
    for name in build.kernels {
        let Some(used) = uses.iter().find(|used| used.name == *name) else {
            return Err(format!("{}: no kernel {name}", build.source.name).into());
        };
        let shared = used.shared_bytes + build.shared_bytes;
        let fine = used.spill_bytes == 0 && shared <= shared_limit(arch);
        println!(
            "{} {:7} {name:28} {:3} registers {shared:6} B shared {:4} B spilled  {}",
            if fine { "ok  " } else { "FAIL" },
            arch.name(),
            used.registers,
            used.spill_bytes,
            defines.join(" "),
        );
        ok &= fine;
    }
    Ok(ok)
}
