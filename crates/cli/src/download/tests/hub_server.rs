//! A hub of one's own: speaks as much of the hub's protocol as the client needs, and misbehaves where it is told to.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use serde_json::json;

use crate::download::file::{hex, sha256};

pub(super) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// How the place that large files are redirected to misbehaves.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Faults {
    /// The connection ends after so many bytes, as often as `times_cut`.
    pub(super) cut_after: usize,
    pub(super) times_cut: usize,
    /// Ranges are ignored.
    pub(super) no_ranges: bool,
    /// The bytes are not those announced.
    pub(super) corrupt: bool,
}

/// One request as it came.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) path: String,
    pub(super) range: Option<String>,
    pub(super) authorization: Option<String>,
}

#[derive(Debug)]
struct State {
    files: Vec<(&'static str, Vec<u8>)>,
    faults: Mutex<Faults>,
    seen: Mutex<Vec<Seen>>,
}

/// The server; its thread ends with the process.
#[derive(Debug)]
pub(super) struct HubServer {
    pub(super) endpoint: String,
    state: Arc<State>,
}

impl HubServer {
    /// Serves `files` as the repository `org/name`; those over 1,000 bytes are kept elsewhere, as the hub does.
    pub(super) fn start(files: &[(&'static str, Vec<u8>)], faults: Faults) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(State {
            files: files.to_vec(),
            faults: Mutex::new(faults),
            seen: Mutex::default(),
        });
        let served = Arc::clone(&state);
        std::thread::Builder::new()
            .spawn(move || {
                for connection in listener.incoming() {
                    answer(&connection.unwrap(), &served);
                }
            })
            .unwrap();
        Self { endpoint, state }
    }

    pub(super) fn seen(&self) -> Vec<Seen> {
        self.state.seen.lock().unwrap().clone()
    }

    /// Returns the ranges that were asked for at the place for large files.
    pub(super) fn ranges(&self) -> Vec<Option<String>> {
        let large = self.seen().into_iter().filter(|seen| seen.path.starts_with("/cdn/"));
        large.map(|seen| seen.range).collect()
    }
}

fn answer(mut connection: &TcpStream, state: &State) {
    let mut lines = BufReader::new(connection).lines().map_while(Result::ok);
    let Some(request) = lines.next() else { return };
    let mut seen = Seen {
        path: request.split(' ').nth(1).unwrap_or_default().to_owned(),
        range: None,
        authorization: None,
    };
    for line in lines.take_while(|line| !line.is_empty()) {
        let (name, value) = line.split_once(": ").unwrap_or((&line, ""));
        match &*name.to_ascii_lowercase() {
            "range" => seen.range = Some(value.to_owned()),
            "authorization" => seen.authorization = Some(value.to_owned()),
            _ => {}
        }
    }
    state.seen.lock().unwrap().push(seen.clone());
    // A client that has gone away is none of the tests' business.
    let _written = connection.write_all(&response(&seen, state));
}

fn response(seen: &Seen, state: &State) -> Vec<u8> {
    let path = seen.path.as_str();
    if let Some(query) = path.strip_prefix("/api/models/org/name/revision/") {
        return match query.strip_suffix("?blobs=true") {
            Some("main") => status("200 OK", "", listing(state).as_bytes()),
            _ => status("404 Not Found", "X-Error-Code: RevisionNotFound\r\n", b"{}"),
        };
    }
    if path.starts_with("/api/models/org/gated/") {
        return status("401 Unauthorized", "", b"{}");
    }
    let content = |name: &str| state.files.iter().find(|(known, _)| *known == name);
    if let Some((name, bytes)) =
        path.strip_prefix(&format!("/org/name/resolve/{COMMIT}/")).and_then(content)
    {
        if bytes.len() <= 1000 {
            return status("200 OK", "", bytes);
        }
        return status("302 Found", &format!("Location: /cdn/{name}\r\n"), b"");
    }
    match path.strip_prefix("/cdn/").and_then(content) {
        Some((_, bytes)) => large(bytes, seen.range.as_deref(), state),
        None => status("404 Not Found", "X-Error-Code: RepoNotFound\r\n", b"{}"),
    }
}

fn listing(state: &State) -> String {
    let siblings = state.files.iter().map(|(name, bytes)| {
        let hash = hex(&sha256(bytes.as_slice()).unwrap());
        let mut sibling = json!({ "rfilename": name, "size": bytes.len(), "blobId": &hash[..40] });
        if bytes.len() > 1000 {
            sibling["lfs"] = json!({ "sha256": hash, "size": bytes.len() });
        }
        sibling
    });
    let siblings = siblings.collect::<Vec<_>>();
    json!({ "sha": COMMIT, "siblings": siblings }).to_string()
}

fn large(bytes: &[u8], range: Option<&str>, state: &State) -> Vec<u8> {
    let mut faults = state.faults.lock().unwrap();
    let range = range.filter(|_| !faults.no_ranges);
    let from: usize = range.map_or(0, |range| {
        range.trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap()
    });
    if from >= bytes.len() {
        return status("416 Range Not Satisfiable", "", b"");
    }
    let mut body = bytes[from..].to_vec();
    if faults.corrupt {
        body[0] ^= 1;
    }
    let (line, extra) = match range {
        None => ("200 OK", String::new()),
        Some(_) => {
            let (last, all) = (bytes.len() - 1, bytes.len());
            ("206 Partial Content", format!("Content-Range: bytes {from}-{last}/{all}\r\n"))
        }
    };
    let mut whole = status(line, &extra, &body);
    if faults.times_cut > 0 {
        faults.times_cut -= 1;
        whole.truncate(whole.len() - body.len() + faults.cut_after.min(body.len()));
    }
    whole
}

fn status(line: &str, extra: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "HTTP/1.1 {line}\r\nContent-Length: {}\r\nConnection: close\r\n{extra}\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}
