//! A server whose instances are processes of their own, some of which are killed.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use stallfree_core::{Clock as _, WallClock};
use stallfree_models::tiny::TinyModel;
use tempfile::{NamedTempFile, TempDir};

use crate::server::{Server, stallfree, tiny_model};

/// What computes the same tokens everywhere.
const ENGINE: [&str; 2] = ["--device=cpu", "--threads=1"];

/// The process of an instance, which ends with the test, and its log.
struct Far(Child, NamedTempFile);

impl Far {
    fn start(model: &Path, port: u16, role: &str) -> Self {
        Self::start_with((model, port, role), &[], None)
    }

    fn start_with(
        (model, port, role): (&Path, u16, &str),
        flags: &[&str],
        cache: Option<&Path>,
    ) -> Self {
        let mut command = stallfree();
        command.arg("instance").arg(model).args(ENGINE).args(flags);
        if let Some(cache) = cache {
            command.env("STALLFREE_CACHE", cache);
        }
        command.arg(format!("--join=127.0.0.1:{port}")).arg(format!("--role={role}"));
        command.args(["--kv-cache-memory-bytes=16M", "--max-num-batched-tokens=256"]);
        let log = NamedTempFile::new().expect("a file");
        command.stderr(log.reopen().expect("the file"));
        Self(command.spawn().expect("the binary starts"), log)
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.1.path()).expect("its log")
    }

    fn signal(&self, name: &str) {
        let kill = Command::new("kill").args(["-s", name, &self.0.id().to_string()]).status();
        assert!(kill.is_ok_and(|status| status.success()), "kill -s {name}");
    }

    /// Sends SIGKILL.
    fn kill(&mut self) {
        self.0.kill().expect("it runs");
    }
}

impl Drop for Far {
    fn drop(&mut self) {
        let _ended = self.0.kill().and_then(|()| self.0.wait());
    }
}

/// A server that computes nothing itself, and its instances.
struct World {
    server: Server,
    far: Vec<Far>,
    port: u16,
    model: TempDir,
}

impl World {
    fn start(roles: &[&str], flags: &[&str]) -> Self {
        Self::start_with(roles, flags, &[], None)
    }

    fn start_with(
        roles: &[&str],
        flags: &[&str],
        far_flags: &[&str],
        cache: Option<&Path>,
    ) -> Self {
        let model = tiny_model();
        let count = format!("--wait-for-instances={}", roles.len());
        let mode = if roles.contains(&"mixed") { "--mode=simple" } else { "--mode=distserve" };
        let own =
            ["--served-model-name=tiny", mode, "--instances-listen=127.0.0.1:0", count.as_str()];
        let flags = [&ENGINE, &own[..], flags].concat();
        let mut server = Server::begin(model.path(), &flags, cache);
        let address = server.wait_for_rest(" instances at 127.0.0.1:");
        let port = address.parse().expect("a port");
        let start = |role: &&str| Far::start_with((model.path(), port, role), far_flags, cache);
        let far = roles.iter().map(start).collect();
        server.wait_until_it_listens();
        Self { server, far, port, model }
    }

    /// Asks and returns the stream.
    fn ask(&self, body: &Value) -> BufReader<impl Read + use<>> {
        BufReader::new(self.server.post("/v1/completions", body).expect("an answer"))
    }

    /// Waits until no block is in use and nobody waits, and stays so for longer than a report takes to come: all blocks have been given
    /// back. An engine that falls idle checks its books, and is lost if they disagree.
    fn wait_until_empty(&self) {
        let clock = WallClock::start();
        let mut num_empty = 0;
        while num_empty < 10 {
            let metrics = self.server.get("/metrics");
            let is_zero = |name: &&str| {
                let line = metrics.lines().find(|line| line.starts_with(&format!("vllm:{name}{{")));
                line.expect(name).ends_with(" 0")
            };
            let gauges = ["num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"];
            num_empty = if gauges.iter().all(is_zero) { num_empty + 1 } else { 0 };
            assert!(clock.now().since_start() < Duration::from_secs(60), "{metrics}");
            thread::sleep(Duration::from_millis(25)); // until the gauges are told again
        }
        assert_eq!(self.server.get("/health"), "");
    }
}

fn body(prompt: &str, max_tokens: usize) -> Value {
    json!({
        "model": "tiny", "prompt": prompt, "max_tokens": max_tokens, "temperature": 0,
        "ignore_eos": true, "logprobs": 0, "stream": true,
    })
}

/// Takes the next tokens of a stream; none at its end.
fn next(stream: &mut impl BufRead) -> Option<Vec<String>> {
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).expect("a stream");
        let event = line.trim().strip_prefix("data: ").unwrap_or_default();
        if event == "[DONE]" {
            return None;
        }
        assert!(!line.is_empty(), "the stream broke off");
        let Ok(event) = serde_json::from_str::<Value>(event) else { continue };
        assert!(event.get("error").is_none(), "{event}");
        if let Some(tokens) = event["choices"][0]["logprobs"]["tokens"].as_array() {
            return Some(tokens.iter().map(Value::to_string).collect());
        }
    }
}

fn rest(stream: &mut impl BufRead) -> Vec<String> {
    std::iter::from_fn(|| next(stream)).flatten().collect()
}

/// The bodies of requests that run for a while, and their tokens on a server that nothing happens to.
fn undisturbed() -> &'static [(Value, Vec<String>)] {
    static RUNS: OnceLock<Vec<(Value, Vec<String>)>> = OnceLock::new();
    RUNS.get_or_init(run_undisturbed)
}

fn run_undisturbed() -> Vec<(Value, Vec<String>)> {
    let model = tiny_model();
    let server =
        Server::start(model.path(), &[&ENGINE[..], &["--served-model-name=tiny"]].concat());
    let bodies = (0..6).map(|index| {
        let prompt = "what is computed here may go on there. ".repeat(1 + index * 4);
        body(&prompt, 700)
    });
    let run = |body: Value| {
        let stream = server.post("/v1/completions", &body).expect("an answer");
        let tokens = rest(&mut BufReader::new(stream));
        assert_eq!(tokens.len(), 700);
        (body, tokens)
    };
    bodies.map(run).collect()
}

#[test]
fn an_instance_that_cannot_load_says_why() {
    let mut world = World::start(&["mixed"], &[]);
    let flags = ["--max-model-len=1m"];
    let far = Far::start_with((world.model.path(), world.port, "mixed"), &flags, None);
    let line = world.server.wait_for("instance 1 is lost");
    assert!(line.contains("--max-model-len 1000000 is more than the model's"), "{line}");
    drop(far);
}

#[test]
fn clients_get_every_token_once_whichever_process_is_killed() {
    let expected = undisturbed();
    // Which one is killed, and how many tokens each client has by then.
    for (roles, victim, begun) in [
        (&["prefill", "decode", "decode"][..], 1, 20),
        (&["prefill", "prefill", "decode"][..], 0, 0),
        (&["mixed", "mixed"][..], 1, 5),
    ] {
        let mut world = World::start(roles, &[]);
        let mut streams: Vec<_> = expected.iter().map(|(body, _)| world.ask(body)).collect();
        let begin = |stream: &mut BufReader<_>| {
            let mut tokens = Vec::new();
            while tokens.len() < begun {
                tokens.extend(next(stream).expect("the stream goes on"));
            }
            tokens
        };
        let first: Vec<Vec<String>> = streams.iter_mut().map(begin).collect();
        world.far[victim].kill();
        let lost = world.server.wait_for("is lost: ");
        // By then all are decoding, or none has begun.
        assert!(begun == 0 || !lost.contains(" its 0 sequences"), "{lost}");
        for ((stream, first), (_, expected)) in streams.iter_mut().zip(first).zip(expected) {
            let tokens = [first, rest(stream)].concat();
            assert_eq!(&tokens, expected, "{roles:?}");
        }
        world.wait_until_empty();
        // Another process takes its place, and the server ends in good order with all of them.
        world.far[victim] = Far::start(world.model.path(), world.port, roles[victim]);
        world.server.wait_for("is ready: ");
        assert_eq!(rest(&mut world.ask(&expected[0].0)), expected[0].1);
        world.server.signal("TERM");
        assert_eq!(world.server.wait(), Some(0));
        for far in &mut world.far {
            assert_eq!(far.0.wait().expect("it ends").code(), Some(0));
        }
    }
}

/// One that hangs keeps its connection, but says nothing.
#[test]
fn an_instance_that_hangs_is_lost_and_ends_once_it_hears_so() {
    let expected = &undisturbed()[..2];
    let mut world = World::start(&["mixed", "mixed"], &[]);
    let mut streams: Vec<_> = expected.iter().map(|(body, _)| world.ask(body)).collect();
    let first: Vec<_> = streams.iter_mut().map(|stream| next(stream).expect("a token")).collect();
    world.far[0].signal("STOP");
    world.server.wait_for("it has said nothing for");
    for ((stream, first), (_, expected)) in streams.iter_mut().zip(first).zip(expected) {
        assert_eq!(&[first, rest(stream)].concat(), expected);
    }
    world.far[0].signal("CONT");
    assert_eq!(world.far[0].0.wait().expect("it ends").code(), Some(1));
    let log = world.far[0].log();
    assert!(log.contains("the server is lost"), "{log}");
    world.wait_until_empty();
}

#[test]
fn blocks_come_back_from_clients_that_leave_at_any_time() {
    let world = World::start(&["prefill", "decode"], &[]);
    let prompt = "a long prompt whose blocks are on their way when its client leaves. ".repeat(20);
    for wait_ms in [0, 1, 2, 5, 10, 20, 40, 80] {
        let streams: Vec<_> = (0..4).map(|_| world.ask(&body(&prompt, 500))).collect();
        thread::sleep(Duration::from_millis(wait_ms)); // until the blocks are somewhere on their way
        drop(streams);
    }
    world.wait_until_empty();
    assert_eq!(rest(&mut world.ask(&body(&prompt, 40))).len(), 40);
    world.wait_until_empty();
}

#[test]
fn local_instances_and_joined_ones_serve_together() {
    let expected = &undisturbed()[1];
    let world = World::start(&["decode"], &["--replica-spec=1,1", "--partition-id=1"]);
    assert_eq!(rest(&mut world.ask(&expected.0)), expected.1);
    world.wait_until_empty();
    // What was computed here went there: nothing was computed twice.
    let log = world.far[0].log();
    assert!(!log.contains("could not be fetched"), "{log}");
}

/// Fetches NIXL into a cache that later runs find it in; an error says why it can't be had.
fn fetch_nixl() -> Result<PathBuf, String> {
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("nixl");
    let mut doctor = stallfree();
    let output = doctor.args(["doctor", "--fetch", "nixl"]).env("STALLFREE_CACHE", &cache).output();
    let output = output.expect("the binary starts");
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() {
        return Ok(cache);
    }
    assert!(error.contains("NIXL could not be fetched"), "{error}");
    Err(error)
}

/// Real transfers between the memory of two processes; the one test that needs what a machine may lack, a package index, and says so.
#[test]
fn kv_goes_over_nixl() {
    let cache = match fetch_nixl() {
        Ok(cache) => cache,
        Err(error) => return eprintln!("skipped, because there is no package index: {error}"),
    };
    let (expected, flags) = (undisturbed(), ["--kv-transport=nixl"]);
    let (body, tokens) = &expected[3];
    let own = [&flags[..], &["--replica-spec=1,1", "--partition-id=1"]].concat();
    let world = World::start_with(&["decode"], &own, &flags, Some(&cache));
    for _ in 0..3 {
        assert_eq!(&rest(&mut world.ask(body)), tokens);
    }
    world.wait_until_empty();
    let log = world.far[0].log();
    assert!(log.contains("comes over NIXL") && !log.contains("could not be fetched"), "{log}");

    // One that is killed takes no reader along.
    let roles = ["prefill", "prefill", "decode"];
    let mut world = World::start_with(&roles, &flags, &flags, Some(&cache));
    for round in 0..2 {
        let mut streams: Vec<_> = expected.iter().map(|(body, _)| world.ask(body)).collect();
        if round == 1 {
            world.far[0].kill();
            world.server.wait_for("is lost: ");
        }
        for (stream, (_, tokens)) in streams.iter_mut().zip(expected) {
            assert_eq!(&rest(stream), tokens);
        }
    }
    world.wait_until_empty();
}

#[test]
fn an_instance_that_does_not_belong_says_why() {
    let world = World::start(&["mixed"], &[]);
    let own = world.model.path();
    let check_on = |engine: &[&str], model: &Path, flags: &[&str], words: &str| {
        let mut command = stallfree();
        command.arg("instance").arg(model).args(engine);
        let output = command.args(flags).output().expect("the binary starts");
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && error.contains(words), "{flags:?}: {error}");
    };
    let check = |model: &Path, flags: &[&str], words: &str| check_on(&ENGINE, model, flags, words);
    let join = format!("--join=127.0.0.1:{}", world.port);
    // Of the same sizes, but with other weights.
    let other = TempDir::new().expect("a folder");
    let tiny = TinyModel { seed: 1, ..TinyModel::new("LlamaForCausalLM") };
    tiny.write(other.path()).expect("a tiny model");
    check(other.path(), &[&join], "model: LlamaForCausalLM");
    check(own, &[&join, "--block-size=8"], "--block-size: 8 there, 16 at the server");
    check(own, &[&join, "--dtype=float32"], "KV cache: F32");
    check(own, &[&join, "--role=decode"], "start it with --mode distserve");
    check(own, &["--join=nowhere"], "--join nowhere");
    check_on(&["--device=sim:a100-80g-sxm"], own, &[&join], "--join: instances on simulated GPUs");
}
