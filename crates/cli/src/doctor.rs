//! `stallfree doctor`: what this machine has, what would run on it, and what is missing for more.

mod libraries;
mod report;
mod text;

use anyhow::Result;
use stallfree_device::{Library, find_library};
use stallfree_transfer::Nixl;

use crate::args::{DoctorArgs, LibraryName};
use crate::console::{self, print};
use crate::environment::Environment;
use report::Report;

/// Fetches what was asked for, then prints what is there.
///
/// # Errors
/// A download failed, or standard output can't be written.
pub(crate) fn run(args: &DoctorArgs, environment: &Environment) -> Result<()> {
    if let Some(named) = &args.fetch {
        fetch(named, environment)?;
    }
    let report = Report::collect(environment);
    if args.json {
        print(format_args!("{}\n", serde_json::to_string_pretty(&report)?))?;
    } else {
        print(text::describe(&report))?;
    }
    Ok(())
}

/// Brings the libraries that are missing, of those named; of all, if none is.
fn fetch(named: &[LibraryName], environment: &Environment) -> Result<()> {
    let is_wanted = |library: &Library| named.is_empty() || named.contains(&name(*library));
    for library in Library::ALL.into_iter().filter(is_wanted) {
        match find_library(library) {
            Ok(_) => console::note(format_args!("{} is there", library.name())),
            Err(_) => libraries::fetch(library, environment)?,
        }
    }
    // Only hosts with RDMA have a use for it, and it is large.
    if named.contains(&LibraryName::Nixl) {
        match Nixl::open(&environment.nixl()) {
            Ok(_) => console::note("NIXL is there"),
            Err(_) => libraries::fetch_nixl(environment)?,
        }
    }
    Ok(())
}

const fn name(library: Library) -> LibraryName {
    match library {
        Library::Nvrtc => LibraryName::Nvrtc,
        Library::CublasLt => LibraryName::CublasLt,
        Library::Nccl => LibraryName::Nccl,
    }
}

#[cfg(test)]
mod tests;
