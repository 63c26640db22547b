//! A flag that nobody knows is answered with the one that was probably meant.

use clap::CommandFactory as _;
use clap::error::{ContextKind, ContextValue, ErrorKind};

use super::{Cli, vllm};

/// How alike two names must be; 1 is the same.
const ALIKE: f64 = 0.85;

/// Rewrites clap's error about an unknown flag; others stay as they are.
pub(super) fn explain(error: clap::Error) -> clap::Error {
    let unknown = match (error.kind(), error.get(ContextKind::InvalidArg)) {
        (ErrorKind::UnknownArgument, Some(ContextValue::String(arg))) => arg.clone(),
        _ => return error,
    };
    let Some(name) = unknown.strip_prefix("--") else { return error };
    let name = name.split('=').next().unwrap_or(name);
    let message = match nearest(name) {
        Some(same) if same == name => {
            format!("--{name} is no flag of this command, but of another one; --help lists all\n")
        }
        Some(nearest) => format!("there is no flag --{name}; did you mean --{nearest}?\n"),
        None => format!("there is no flag --{name}; --help lists all\n"),
    };
    clap::Error::raw(ErrorKind::UnknownArgument, message)
}

/// Returns the flag that is spelled most alike: ours, or one of vLLM's, which is then answered by name.
fn nearest(name: &str) -> Option<String> {
    let cli = Cli::command();
    let ours = cli.get_subcommands().flat_map(clap::Command::get_arguments);
    let ours = ours.filter_map(clap::Arg::get_long).map(str::to_owned);
    let all = ours.chain(vllm::names().map(str::to_owned));
    let ranked = all.map(|known| (strsim::jaro_winkler(name, &known), known));
    let best = ranked.max_by(|a, b| a.0.total_cmp(&b.0))?;
    (best.0 >= ALIKE).then_some(best.1)
}
