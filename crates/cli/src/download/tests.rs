mod hub_server;

use std::fs;
use std::path::Path;

use hub_server::{COMMIT, Faults, HubServer};
use tempfile::TempDir;

use super::DownloadError;
use super::file::part_of;
use super::hub::{HubId, Weights, fetch};
use super::hub_cache::{self, HubCache};
use crate::environment::HubEnvironment;

fn environment(endpoint: &str, cache: &Path) -> HubEnvironment {
    HubEnvironment {
        cache: cache.to_owned(),
        token: Some("secret".to_owned()),
        certificates: None,
        endpoint: endpoint.to_owned(),
        offline: false,
    }
}

fn id(text: &str) -> HubId {
    text.parse().unwrap_or_else(|()| panic!("{text}"))
}

fn weights() -> Vec<u8> {
    (0..200_000_u32).flat_map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes()).collect()
}

fn model() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("README.md", b"not needed".to_vec()),
        ("config.json", b"{}".to_vec()),
        ("tokenizer.json", vec![b' '; 2000]),
        ("model.safetensors", weights()),
        ("consolidated.safetensors", b"the same weights again".to_vec()),
        ("onnx/model.safetensors", b"not needed".to_vec()),
    ]
}

#[test]
fn a_repository_comes_into_the_cache_once() {
    let folder = TempDir::new().unwrap();
    let server = HubServer::start(&model(), Faults::default());
    let hub = environment(&server.endpoint, folder.path());
    assert_eq!(HubCache::new(&hub, "org/name").find(&id("org/name"), "main", Weights::Any), None);

    let path = fetch(&hub, &id("org/name"), "main", Weights::Any).unwrap();
    let root = folder.path().join("models--org--name");
    assert_eq!(path, root.join("snapshots").join(COMMIT));
    let mut names: Vec<_> =
        fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["config.json", "model.safetensors", "tokenizer.json"]);
    assert_eq!(fs::read(path.join("model.safetensors")).unwrap(), weights());
    assert_eq!(fs::read_to_string(root.join("refs/main")).unwrap(), COMMIT);
    assert!(path.join("config.json").is_symlink());

    // The token goes to the hub, and not to where the hub sends us.
    for seen in server.seen() {
        let expected = (!seen.path.starts_with("/cdn/")).then_some("Bearer secret");
        assert_eq!(seen.authorization.as_deref(), expected, "{}", seen.path);
    }

    let requests = server.seen().len();
    let found = HubCache::new(&hub, "org/name").find(&id("org/name"), "main", Weights::Any);
    assert_eq!(found.as_deref(), Some(&*path));
    let found = HubCache::new(&hub, "org/name").find(&id("org/name"), COMMIT, Weights::Any);
    assert_eq!(found.as_deref(), Some(&*path));
    assert_eq!(hub_cache::models(&hub), [("org/name".to_owned(), path.clone())]);
    assert_eq!(fetch(&hub, &id("org/name"), "main", Weights::Any).unwrap(), path);
    assert_eq!(server.seen().len(), requests + 1, "only the list of files is asked for again");
}

/// Fetches through `faults`, after `before` was left by an earlier run, and returns the ranges asked for.
fn check_survives(faults: Faults, before: &[u8]) -> Vec<Option<String>> {
    let folder = TempDir::new().unwrap();
    let files = [("config.json", b"{}".to_vec()), ("model.safetensors", weights())];
    let server = HubServer::start(&files, faults);
    let hub = environment(&server.endpoint, folder.path());
    let hash = super::file::hex(&super::file::sha256(weights().as_slice()).unwrap());
    let blob = HubCache::new(&hub, "org/name").blob(&hash);
    if !before.is_empty() {
        fs::create_dir_all(blob.parent().unwrap()).unwrap();
        fs::write(part_of(&blob), before).unwrap();
    }
    let path = fetch(&hub, &id("org/name"), "main", Weights::Any).unwrap();
    assert_eq!(fs::read(path.join("model.safetensors")).unwrap(), weights(), "{faults:?}");
    assert!(!part_of(&blob).exists());
    server.ranges()
}

#[test]
fn a_transfer_goes_on_where_it_ended() {
    let all = weights().len();
    let range = |from: usize| Some(format!("bytes={from}-"));
    assert_eq!(check_survives(Faults::default(), b""), [None]);
    let cut = Faults { cut_after: 300_000, times_cut: 2, ..Faults::default() };
    assert_eq!(check_survives(cut, b""), [None, range(300_000), range(600_000)]);
    // What an earlier run left is kept.
    let before = &weights()[..12_345];
    assert_eq!(check_survives(Faults::default(), before), [range(12_345)]);
    assert_eq!(check_survives(Faults::default(), &weights()), [] as [Option<String>; 0]);
    // A server without ranges sends everything again.
    let no_ranges = Faults { no_ranges: true, ..Faults::default() };
    assert_eq!(check_survives(no_ranges, before), [range(12_345)]);
    // What an earlier run left may be of another file, or too long.
    assert_eq!(check_survives(Faults::default(), &[7; 1000]), [range(1000), None]);
    assert_eq!(check_survives(Faults::default(), &vec![7; all + 1]), [None]);
}

/// Checks how a fetch of `id` fails.
fn check_fails(server: &HubServer, what: &str, revision: &str, expected: &[&str]) -> DownloadError {
    let folder = TempDir::new().unwrap();
    let hub = environment(&server.endpoint, folder.path());
    let error = fetch(&hub, &id(what), revision, Weights::Any).expect_err(what);
    for expected in expected {
        assert!(error.to_string().contains(expected), "{what}: {error}");
    }
    let found = HubCache::new(&hub, "org/name").find(&id("org/name"), revision, Weights::Any);
    assert_eq!(found, None, "what is not complete is not there");
    error
}

#[test]
fn a_failure_says_what_to_do() {
    let start = |files: &[(&'static str, Vec<u8>)]| HubServer::start(files, Faults::default());
    let server = start(&model());
    check_fails(&server, "org/gated", "main", &["org/gated", "401", "HF_TOKEN"]);
    check_fails(&server, "org/none", "main", &["no model org/none"]);
    check_fails(&server, "org/name", "v9", &["org/name", "no revision 'v9'"]);
    check_fails(&server, "org/name:x.gguf", "main", &["no file 'x.gguf'"]);
    let ggufs = [("a.gguf", vec![1]), ("b.gguf", vec![2])];
    check_fails(&start(&ggufs), "org/name", "main", &["org/name:a.gguf", "b.gguf"]);
    check_fails(&start(&[("README.md", vec![1])]), "org/name", "main", &["can't be served"]);
    let corrupt = HubServer::start(&model(), Faults { corrupt: true, ..Faults::default() });
    check_fails(&corrupt, "org/name", "main", &["is corrupt", "sha256"]);
}

#[test]
fn one_gguf_file_is_a_model() {
    let folder = TempDir::new().unwrap();
    let server =
        HubServer::start(&[("a.gguf", vec![1; 2000]), ("b.gguf", vec![2])], Faults::default());
    let hub = environment(&server.endpoint, folder.path());
    let path = fetch(&hub, &id("org/name:a.gguf"), "main", Weights::Any).unwrap();
    assert_eq!(fs::read(&path).unwrap(), [1; 2000]);
    let cache = HubCache::new(&hub, "org/name");
    assert_eq!(cache.find(&id("org/name:a.gguf"), "main", Weights::Any), Some(path.clone()));
    assert_eq!(cache.find(&id("org/name:b.gguf"), "main", Weights::Any), None);
    assert_eq!(cache.find(&id("org/name"), "main", Weights::Any), Some(path));
}

#[test]
fn two_at_once_download_once() {
    let folder = TempDir::new().unwrap();
    let server = HubServer::start(&model(), Faults::default());
    let hub = environment(&server.endpoint, folder.path());
    let paths = std::thread::scope(|scope| {
        let fetch = || fetch(&hub, &id("org/name"), "main", Weights::Any).unwrap();
        [scope.spawn(fetch), scope.spawn(fetch)].map(|thread| thread.join().unwrap())
    });
    for path in paths {
        assert_eq!(fs::read(path.join("model.safetensors")).unwrap(), weights());
    }
    let large = server.seen().into_iter().filter(|seen| seen.path == "/cdn/model.safetensors");
    assert_eq!(large.count(), 1);
}

#[test]
fn a_cut_off_snapshot_is_not_a_model() {
    let folder = TempDir::new().unwrap();
    let hub = environment("", folder.path());
    let cache = HubCache::new(&hub, "org/name");
    let snapshot = cache.snapshot("c");
    let find = |weights| cache.find(&id("org/name"), "c", weights).is_some();
    fs::create_dir_all(&snapshot).unwrap();
    fs::write(snapshot.join("config.json"), "{}").unwrap();
    assert!(find(Weights::None) && !find(Weights::Any));
    let index = r#"{"weight_map":{"a":"1.safetensors","b":"2.safetensors"}}"#;
    fs::write(snapshot.join("model.safetensors.index.json"), index).unwrap();
    fs::write(snapshot.join("1.safetensors"), "").unwrap();
    assert!(!find(Weights::Any));
    fs::write(snapshot.join("2.safetensors"), "").unwrap();
    assert!(find(Weights::Any) && !find(Weights::Gguf));
}

#[test]
fn a_missing_network_is_noticed() {
    let folder = TempDir::new().unwrap();
    for endpoint in ["http://127.0.0.1:1", "http://stallfree.invalid"] {
        let hub = environment(endpoint, folder.path());
        let error = fetch(&hub, &id("org/name"), "main", Weights::Any).unwrap_err();
        assert!(matches!(error, DownloadError::Unreachable { .. }), "{error}");
    }
}

#[test]
fn ids_are_told_from_paths() {
    for good in ["org/name", "o-1/n_2.x", "org/name:a.gguf", "org/name:sub/a-Q4_0.gguf"] {
        assert_eq!(id(good).to_string(), good);
    }
    for bad in
        ["name", "a/b/c", "/a", "../b", "a/..", "a/b:c.txt", "a/b:../c.gguf", "a b/c", "a/b:"]
    {
        assert!(bad.parse::<HubId>().is_err(), "{bad}");
    }
}
