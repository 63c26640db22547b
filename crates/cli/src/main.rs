//! A fast LLM server in which the scheduler is yours to choose.

mod args;
mod bench;
mod calibrate;
mod chat;
mod config;
mod console;
mod doctor;
mod download;
mod environment;
mod instance;
mod log;
mod model_source;
mod models;
mod plan;
mod schedulers;
mod serve;
mod signals;

use std::process::ExitCode;

use args::Command;
use environment::Environment;

fn main() -> ExitCode {
    let parsed = match args::parse(std::env::args_os()) {
        Ok(parsed) => parsed,
        Err(error) => error.exit(),
    };
    let environment = Environment::read();
    stallfree_device::search_libraries_in(&environment.libraries());
    let is_quiet = matches!(
        parsed.cli.command,
        Command::Chat(_) | Command::Bench(_) | Command::Plan(_) | Command::Calibrate(_)
    );
    log::start(environment.log.as_deref().unwrap_or(if is_quiet { "warn" } else { "info" }));
    for notice in &parsed.notices {
        tracing::warn!("{notice}");
    }
    let done = match &parsed.cli.command {
        Command::Serve(args) => serve::run(args, &environment),
        Command::Instance(args) => instance::run(args, &environment),
        Command::Bench(args) => bench::run(args, &environment),
        Command::Plan(args) => plan::run(args, &environment),
        Command::Calibrate(args) => calibrate::run(args, &environment),
        Command::Schedulers => schedulers::print_all(),
        Command::Chat(args) => chat::run(args, &environment),
        Command::Doctor(args) => doctor::run(args, &environment),
        Command::Models => models::print_all(&environment),
        Command::Version => console::print(concat!("stallfree ", env!("CARGO_PKG_VERSION"), "\n"))
            .map_err(Into::into),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        // Who read our output has what it wanted.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            console::note(format_args!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let io = error.downcast_ref::<std::io::Error>();
    io.is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}
