//! `stallfree chat`: a conversation in the terminal, with a running server or with one inside this process.

mod client;
mod repl;

use std::io;

use anyhow::Result;

use crate::args::{self, ChatArgs};
use crate::environment::Environment;
use crate::serve::PrivateServer;
use client::Client;
use repl::Repl;

/// The flags of the server inside: one conversation needs no more.
const PRIVATE: [&str; 5] =
    ["stallfree", "serve", "--max-num-seqs=1", "--max-num-waiting=1", "--disable-log-stats"];

/// Talks until the input ends.
///
/// # Errors
/// There is nobody to talk to, or the terminal is gone.
pub(crate) fn run(args: &ChatArgs, environment: &Environment) -> Result<()> {
    if let Some(url) = &args.url {
        return talk(url, args);
    }
    // There is one way to talk: an engine of our own answers over HTTP, too, on a port that only this machine sees.
    let mut serve = args::serve_args(&PRIVATE)?;
    serve.engine.model = args.model.clone();
    serve.engine.cache.device = args.device.clone();
    serve.engine.cache.threads = args.threads;
    let server = PrivateServer::start(&serve, environment)?;
    talk(&format!("http://{}", server.address()), args)
}

fn talk(url: &str, args: &ChatArgs) -> Result<()> {
    let client = Client::connect(url, args)?;
    Repl::new(client, args.system.as_deref()).run(&mut io::stdin().lock(), &mut io::stdout().lock())
}
