//! A server that lives as long as a sweep's runs.

use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process_group};

use crate::bench::serve::{ServeBenchArgs, is_ready};
use crate::console;

/// How long a server may take to load its model.
const MAX_START: Duration = Duration::from_secs(1200);

/// How long it may take to end before it is made to.
const MAX_STOP: Duration = Duration::from_secs(10);

const LOOK_EVERY: Duration = Duration::from_millis(250);

/// A process of our own, with all that it starts.
pub(super) struct Server {
    child: Child,
    command: String,
    log: PathBuf,
}

impl Server {
    /// Starts a shell's command line and waits until the server answers where `args` will ask. What it says goes to
    /// `server.log` in `folder`.
    ///
    /// # Errors
    /// It can't be started, ends, or does not answer in time.
    pub(super) fn start(command: &str, args: &ServeBenchArgs, folder: &Path) -> Result<Self> {
        if is_ready(args)? {
            bail!("--serve-cmd: another server answers at {} already", args.server.url());
        }
        let log = folder.join("server.log");
        let output = File::create(&log).with_context(|| format!("{}", log.display()))?;
        let errors = output.try_clone()?;
        let mut shell = Command::new("sh");
        shell.args(["-c", command]).stdin(Stdio::null()).stdout(output).stderr(errors);
        // What the shell starts is stopped with it.
        let child = shell.process_group(0).spawn().context("sh can't be started")?;
        let mut server = Self { child, command: command.to_owned(), log };
        console::note(format_args!("Starting `{command}`"));
        for _ in 0..MAX_START.as_millis() / LOOK_EVERY.as_millis() {
            server.check()?;
            if is_ready(args)? {
                return Ok(server);
            }
            thread::sleep(LOOK_EVERY);
        }
        bail!("`{command}` does not answer at {}", args.server.url())
    }

    /// Returns what started it.
    pub(super) fn command(&self) -> &str {
        &self.command
    }

    /// Makes sure that it still runs.
    ///
    /// # Errors
    /// It has ended.
    pub(super) fn check(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => {
                let (command, log) = (&self.command, self.log.display());
                bail!("the server `{command}` has ended ({status}); {log} may say why")
            }
        }
    }

    fn stop(&mut self) -> io::Result<ExitStatus> {
        let group = Pid::from_child(&self.child);
        kill_process_group(group, Signal::TERM)?;
        for _ in 0..MAX_STOP.as_millis() / LOOK_EVERY.as_millis() {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            thread::sleep(LOOK_EVERY);
        }
        kill_process_group(group, Signal::KILL)?;
        self.child.wait()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            tracing::debug!(%error, "the server was gone already");
        }
    }
}
