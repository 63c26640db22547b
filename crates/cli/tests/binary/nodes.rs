//! One model on the ranks of two processes.

use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use stallfree_core::{Clock as _, WallClock};

use crate::server::{Server, stallfree, tiny_model};

/// A process that ends with the test.
struct Node(Child);

impl Node {
    fn start(model: &Path, flags: &[String]) -> Self {
        let mut command = stallfree();
        command.arg("serve").arg(model).arg("--kv-cache-memory-bytes=64M").args(flags);
        Self(command.stderr(Stdio::null()).spawn().expect("the binary starts"))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ended = self.0.kill().and_then(|()| self.0.wait());
    }
}

impl Node {
    /// Waits until it has ended by itself; returns its exit code, and none if it is still there after 20 s.
    fn wait(&mut self) -> Option<i32> {
        let clock = WallClock::start();
        while clock.now().since_start().as_secs() < 20 {
            if let Some(status) = self.0.try_wait().expect("it is ours") {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(20)); // until it has ended
        }
        None
    }
}

fn flags(port: u16, node: usize, [tensor, pipeline]: [usize; 2]) -> Vec<String> {
    let flag = |name: &str, value: &dyn ToString| format!("--{name}={}", value.to_string());
    vec![
        flag("device", &"cpu"),
        flag("threads", &2),
        flag("tensor-parallel-size", &tensor),
        flag("pipeline-parallel-size", &pipeline),
        flag("nnodes", &2),
        flag("node-rank", &node),
        flag("master-port", &port),
    ]
}

fn start_both(model: &Path, ranks: [usize; 2]) -> (Server, Node) {
    let here = flags(0, 0, ranks);
    let here: Vec<&str> = here.iter().map(String::as_str).collect();
    let named = [&here[..], &["--served-model-name=tiny"]].concat();
    let mut server = Server::begin(model, &named, None);
    let port = server.wait_for_rest("Waiting for 1 more nodes at 127.0.0.1:");
    let other = Node::start(model, &flags(port.parse().expect("a port"), 1, ranks));
    server.wait_until_it_listens();
    (server, other)
}

fn text(server: &Server) -> Value {
    let body = json!({
        "model": "tiny", "prompt": "one model, two processes", "max_tokens": 24, "temperature": 0,
        "ignore_eos": true, "logprobs": 2,
    });
    let answer = server.post("/v1/completions", &body).expect("an answer");
    let answer: Value = serde_json::from_reader(answer).expect("JSON");
    assert_eq!(answer["usage"]["completion_tokens"], 24, "{answer}");
    answer["choices"][0]["text"].clone()
}

#[test]
fn two_processes_answer_as_one() {
    let model = tiny_model();
    let alone = ["--device=cpu", "--threads=2", "--served-model-name=tiny"];
    let expected = text(&Server::start(model.path(), &alone));
    for ranks in [[2, 1], [1, 2], [2, 2]] {
        let (server, _other) = start_both(model.path(), ranks);
        assert_eq!(text(&server), expected, "{ranks:?}");
    }
}

#[test]
fn requests_are_answered_with_an_error_once_a_process_died() {
    let model = tiny_model();
    let (mut server, mut other) = start_both(model.path(), [2, 1]);
    text(&server);
    let clock = WallClock::start();
    other.0.kill().expect("it runs");
    server.wait_for("the engine is lost"); // although it has nothing to do
    let body = json!({ "model": "tiny", "prompt": "hello", "max_tokens": 5 });
    let answer = server.ask("/v1/completions", &body, &[]);
    assert!(answer.status().is_server_error(), "{}", answer.status());
    let seconds = clock.now().since_start().as_secs();
    assert!(seconds < 20, "it took {seconds} s");
    server.signal("TERM");
    let mut line = String::new();
    while !line.contains("Stopped") {
        line = server.wait_for("");
        assert!(!line.contains("the engine is lost"), "said twice");
    }
}

#[test]
fn a_process_that_can_not_start_ends_all_and_says_why() {
    let model = tiny_model();
    let nowhere = model.path().join("nowhere");
    let without_tokenizer = format!("--tokenizer={}", nowhere.display());
    for (path, flag) in [(&*nowhere, None), (model.path(), Some(without_tokenizer))] {
        let here = flags(0, 0, [2, 1]);
        let here: Vec<&str> = here.iter().map(String::as_str).collect();
        let mut server = Server::begin(model.path(), &here, None);
        let port = server.wait_for_rest("Waiting for 1 more nodes at 127.0.0.1:");
        let mut there = flags(port.parse().expect("a port"), 1, [2, 1]);
        there.extend(flag);
        let mut other = Node::start(path, &there);
        let line = server.wait_for("node 1 does not start: ");
        assert!(line.contains("nowhere"), "{line}");
        assert_eq!((server.wait(), other.wait()), (Some(1), Some(1)));
    }
}

#[test]
fn other_processes_end_with_node_0() {
    let model = tiny_model();
    for (signal, code) in [("TERM", Some(0)), ("KILL", Some(1))] {
        let (server, mut other) = start_both(model.path(), [2, 1]);
        text(&server);
        server.signal(signal);
        assert_eq!(other.wait(), code, "{signal}");
    }
}
