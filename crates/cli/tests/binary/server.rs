//! A server process with a tiny model.

use std::io::{BufRead as _, BufReader, Read};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::Value;
use stallfree_models::tiny::TinyModel;
use tempfile::TempDir;

/// Writes a tiny model.
pub(crate) fn tiny_model() -> TempDir {
    let folder = TempDir::new().expect("a folder");
    TinyModel::new("LlamaForCausalLM").write(folder.path()).expect("a tiny model");
    folder
}

/// Returns the binary, cut off from this machine's models and network.
pub(crate) fn stallfree() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_stallfree"));
    let nowhere = Path::new(env!("CARGO_TARGET_TMPDIR")).join("nowhere");
    command.env("STALLFREE_CACHE", &nowhere).env("HF_HOME", &nowhere).env("HF_HUB_OFFLINE", "1");
    for name in ["STALLFREE_LOG", "RUST_LOG", "VLLM_API_KEY", "STALLFREE_API_KEY", "OPENAI_API_KEY"]
    {
        command.env_remove(name);
    }
    command
}

/// Returns a port for a server that can't be asked which one it took: below those that the system gives to whoever takes any, and
/// another one with each call and each process.
pub(crate) fn own_port() -> u16 {
    static CALLS: AtomicU32 = AtomicU32::new(0);
    let number = std::process::id() * 16 + CALLS.fetch_add(1, Ordering::Relaxed);
    u16::try_from(20_000 + number % 12_000).expect("it is below 32,000")
}

/// A server that ends with the test.
#[derive(Debug)]
pub(crate) struct Server {
    process: Child,
    log: BufReader<ChildStderr>,
    pub(crate) url: String,
}

impl Server {
    /// Starts one on a free port and waits until it listens.
    pub(crate) fn start(model: &Path, flags: &[&str]) -> Self {
        let mut server = Self::begin(model, flags, None);
        server.wait_until_it_listens();
        server
    }

    /// Starts one without waiting, perhaps with a cache, where others have none.
    pub(crate) fn begin(model: &Path, flags: &[&str], cache: Option<&Path>) -> Self {
        let mut command = stallfree();
        if let Some(cache) = cache {
            command.env("STALLFREE_CACHE", cache);
        }
        let mut process = command
            .arg("serve")
            .arg(model)
            .args(["--host=127.0.0.1", "--port=0", "--kv-cache-memory-bytes=64M"])
            .arg("--max-num-batched-tokens=256")
            .args(flags)
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let log = BufReader::new(process.stderr.take().expect("a pipe"));
        Self { process, log, url: String::new() }
    }

    /// Waits until it listens.
    pub(crate) fn wait_until_it_listens(&mut self) {
        let url = self.wait_for_rest("Listening on ");
        url.trim_end_matches(". Try:").clone_into(&mut self.url);
    }

    /// Reads the log up to a line that contains `text`, and returns what follows it there.
    pub(crate) fn wait_for_rest(&mut self, text: &str) -> String {
        let line = self.wait_for(text);
        let (_, rest) = line.split_once(text).expect("the line was found by it");
        rest.to_owned()
    }

    /// Reads the log up to a line that contains `text`, and returns that line.
    pub(crate) fn wait_for(&mut self, text: &str) -> String {
        let mut seen = String::new();
        loop {
            let start = seen.len();
            let read = self.log.read_line(&mut seen).expect("a log");
            assert!(read > 0, "the server ended without {text:?}:\n{seen}");
            if seen[start..].contains(text) {
                return seen[start..].trim_end().to_owned();
            }
        }
    }

    /// Posts a body and returns the answer's.
    pub(crate) fn post(&self, path: &str, body: &Value) -> Result<impl Read + use<>, ureq::Error> {
        let config = ureq::Agent::config_builder().timeout_global(Some(Duration::from_secs(120)));
        let agent: ureq::Agent = config.build().into();
        let request = agent.post(format!("{}{path}", self.url));
        let response = request.header("Content-Type", "application/json").send(body.to_string())?;
        Ok(response.into_body().into_reader())
    }

    /// Returns what a path answers.
    pub(crate) fn get(&self, path: &str) -> String {
        let answer = ureq::get(format!("{}{path}", self.url)).call().expect("an answer");
        answer.into_body().read_to_string().expect("text")
    }

    /// Posts a body with headers and returns the answer, whatever its status.
    pub(crate) fn ask(
        &self,
        path: &str,
        body: &Value,
        headers: &[(&str, &str)],
    ) -> ureq::http::Response<ureq::Body> {
        let config = ureq::Agent::config_builder().http_status_as_error(false);
        let agent: ureq::Agent =
            config.timeout_global(Some(Duration::from_secs(120))).build().into();
        let mut request = agent.post(format!("{}{path}", self.url));
        for (name, value) in headers.iter().chain(&[("Content-Type", "application/json")]) {
            request = request.header(*name, *value);
        }
        request.send(body.to_string()).expect("an answer")
    }

    /// Sends a signal by its name.
    pub(crate) fn signal(&self, name: &str) {
        let status =
            Command::new("kill").args(["-s", name, &self.process.id().to_string()]).status();
        assert!(status.is_ok_and(|status| status.success()), "kill -s {name}");
    }

    /// Waits for the end and returns the exit status.
    pub(crate) fn wait(&mut self) -> Option<i32> {
        self.process.wait().expect("it was not waited for before").code()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // A test that failed must not leave it running; one that did not has waited for its end.
        let _ended = self.process.kill().and_then(|()| self.process.wait());
    }
}
