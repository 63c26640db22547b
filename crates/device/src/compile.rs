//! CUDA C++ to cubins, at run time.

use std::ffi::CString;

use cudarc::nvrtc::sys as nv;

use crate::DeviceError;
use crate::libraries::{self, Library};

/// A kernel source and what it is specialized to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Source {
    /// The file's name, for messages.
    pub name: &'static str,
    /// What every kernel shares, put before the text.
    pub prelude: &'static str,
    /// The file's text.
    pub text: &'static str,
    /// Macros: name and value.
    pub defines: Vec<(&'static str, String)>,
}

/// What kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Arch {
    /// Ampere and Ada.
    Sm80,
    /// Hopper, with its own instructions.
    Sm90a,
    /// Data-center Blackwell, with its own instructions.
    Sm100a,
    /// Other Blackwell.
    Sm120,
}

impl Arch {
    /// Returns the compiler's name for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sm80 => "sm_80",
            Self::Sm90a => "sm_90a",
            Self::Sm100a => "sm_100a",
            Self::Sm120 => "sm_120",
        }
    }
}

/// Machine code for one architecture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cubin {
    image: Vec<u8>,
    log: String,
}

/// What one kernel of a cubin uses, as the assembler reports it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FunctionUse {
    /// The kernel's name.
    pub name: String,
    /// Registers a thread.
    pub registers: usize,
    /// Bytes of local memory that registers were spilled to, stores and loads.
    pub spill_bytes: usize,
    /// Bytes of stack a thread.
    pub stack_bytes: usize,
    /// Bytes of static shared memory.
    pub shared_bytes: usize,
}

impl Cubin {
    pub(crate) const fn new(image: Vec<u8>, log: String) -> Self {
        Self { image, log }
    }

    /// Returns the ELF image.
    #[must_use]
    pub fn image(&self) -> &[u8] {
        &self.image
    }

    /// Returns the compiler's and assembler's report.
    #[must_use]
    pub fn log(&self) -> &str {
        &self.log
    }

    /// Returns what each kernel uses; empty if it came from the cache.
    #[must_use]
    pub fn uses(&self) -> Vec<FunctionUse> {
        parse_uses(&self.log)
    }
}

/// Returns NVRTC's version.
///
/// # Errors
/// NVRTC cannot be loaded.
pub fn compiler_version() -> Result<(u32, u32), DeviceError> {
    libraries::open(Library::Nvrtc)?;
    let (mut major, mut minor) = (0, 0);
    // SAFETY: the library is present and both pointers are to live integers.
    let _ = unsafe { nv::nvrtcVersion(&raw mut major, &raw mut minor) };
    Ok((major.unsigned_abs(), minor.unsigned_abs()))
}

/// Says whether the compiler knows `arch`.
///
/// # Errors
/// NVRTC cannot be loaded.
pub fn compiler_knows(arch: Arch) -> Result<bool, DeviceError> {
    libraries::open(Library::Nvrtc)?;
    let mut count = 0;
    // SAFETY: the library is present and the pointer is to a live integer.
    let _ = unsafe { nv::nvrtcGetNumSupportedArchs(&raw mut count) };
    let mut known = vec![0; usize::try_from(count).unwrap_or(0)];
    // SAFETY: the buffer has room for as many as the library said.
    let _ = unsafe { nv::nvrtcGetSupportedArchs(known.as_mut_ptr()) };
    let digits = arch.name().trim_start_matches("sm_").trim_end_matches('a');
    Ok(known.iter().any(|number| number.to_string() == digits))
}

/// Compiles `source` for `arch`; needs no GPU.
///
/// # Errors
/// NVRTC cannot be loaded, or the source does not compile: the error holds the log.
pub fn compile(source: &Source, arch: Arch) -> Result<Cubin, DeviceError> {
    compiler_version()?;
    let fail = |log: String| DeviceError::Compile {
        name: source.name.to_owned(),
        arch: arch.name().to_owned(),
        log,
    };
    let text = CString::new(format!("{}\n#line 1\n{}", source.prelude, source.text))
        .map_err(|_| fail("the source holds a zero byte".to_owned()))?;
    let name = CString::new(source.name).unwrap_or_default();
    let options: Vec<CString> =
        options(source, arch).into_iter().filter_map(|o| CString::new(o).ok()).collect();
    let pointers: Vec<_> = options.iter().map(|option| option.as_ptr()).collect();
    let count = i32::try_from(pointers.len()).unwrap_or(i32::MAX);
    let mut program = std::ptr::null_mut();
    // SAFETY: all strings end in zeros and outlive the program, which is destroyed below; buffers are sized by the library.
    unsafe {
        let created = nv::nvrtcCreateProgram(
            &raw mut program,
            text.as_ptr(),
            name.as_ptr(),
            0,
            std::ptr::null(),
            std::ptr::null(),
        );
        if created != nv::nvrtcResult::NVRTC_SUCCESS {
            return Err(fail(format!("{created:?}")));
        }
        let compiled = nv::nvrtcCompileProgram(program, count, pointers.as_ptr());
        let (mut log_len, mut image_len) = (0, 0);
        let _ = nv::nvrtcGetProgramLogSize(program, &raw mut log_len);
        let mut log = vec![0u8; log_len];
        let _ = nv::nvrtcGetProgramLog(program, log.as_mut_ptr().cast());
        let log = String::from_utf8_lossy(&log).trim_end_matches('\0').to_owned();
        let sized = nv::nvrtcGetCUBINSize(program, &raw mut image_len);
        let mut image = vec![0u8; image_len];
        let read = nv::nvrtcGetCUBIN(program, image.as_mut_ptr().cast());
        let _ = nv::nvrtcDestroyProgram(&raw mut program);
        let ok = [compiled, sized, read].iter().all(|&r| r == nv::nvrtcResult::NVRTC_SUCCESS);
        if ok && image_len > 0 {
            Ok(Cubin::new(image, log))
        } else {
            Err(fail(format!("{compiled:?}\n{log}")))
        }
    }
}

/// Returns the compiler's options for a source.
pub(crate) fn options(source: &Source, arch: Arch) -> Vec<String> {
    let mut options = vec![
        format!("--gpu-architecture={}", arch.name()),
        "--std=c++17".to_owned(),
        "--ptxas-options=-v".to_owned(),
        "--extra-device-vectorization".to_owned(),
        "-default-device".to_owned(),
    ];
    options.extend(source.defines.iter().map(|(name, value)| format!("-D{name}={value}")));
    options
}

/// Reads the assembler's report: a kernel's name, then its stack and spills, then its registers and shared memory.
fn parse_uses(log: &str) -> Vec<FunctionUse> {
    let mut uses: Vec<FunctionUse> = Vec::new();
    for line in log.lines() {
        if let Some(name) = line.split("Compiling entry function '").nth(1) {
            let name = name.split('\'').next().unwrap_or_default().to_owned();
            uses.push(FunctionUse { name, ..FunctionUse::default() });
        }
        let Some(last) = uses.last_mut() else { continue };
        for part in line.split(',') {
            let number = part.split_whitespace().find_map(|w| w.parse::<usize>().ok()).unwrap_or(0);
            match part {
                part if part.contains("registers") => last.registers = number,
                part if part.contains("spill") => last.spill_bytes += number,
                part if part.contains("stack frame") => last.stack_bytes = number,
                part if part.contains("smem") => last.shared_bytes = number,
                _ => {}
            }
        }
    }
    uses
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_read_kernel_by_kernel() {
        let log = "ptxas info    : 0 bytes gmem\n\
            ptxas info    : Compiling entry function 'one' for 'sm_80'\n\
            ptxas info    : Function properties for one\n\
            \u{20}   8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads\n\
            ptxas info    : Used 40 registers, used 1 barriers, 1024 bytes smem, 384 bytes cmem[0]\n\
            ptxas info    : Compiling entry function 'two' for 'sm_80'\n\
            ptxas info    : Used 10 registers, used 0 barriers\n";
        let uses = parse_uses(log);
        let one = FunctionUse {
            name: "one".to_owned(),
            registers: 40,
            spill_bytes: 16,
            stack_bytes: 8,
            shared_bytes: 1024,
        };
        let two = FunctionUse { name: "two".to_owned(), registers: 10, ..FunctionUse::default() };
        assert_eq!(uses, [one, two]);
    }
}
