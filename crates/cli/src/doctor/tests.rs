use std::collections::HashSet;

use stallfree_device::Library;

use super::report::{Exchange, Gpu, Link, Report};
use super::{libraries, text};
use crate::environment::Environment;

fn report() -> Report {
    Report::collect(&Environment::read())
}

#[test]
fn every_thing_has_its_line_within_the_width() {
    let mut report = report();
    for ordinal in 0..2 {
        report.gpus.push(Gpu {
            ordinal,
            name: "NVIDIA H100 80GB HBM3".to_owned(),
            compute_capability: "9.0".to_owned(),
            num_sms: 132,
            memory_bytes: 80 << 30,
            free_memory_bytes: Some(79 << 30),
        });
    }
    report.links.push(Link { gpus: [0, 1], kind: "NVLink", num_nvlinks: 18 });
    report.exchange = Some(Exchange { way: Some("peer memory"), problem: None });
    report.choice.reason =
        Some("libcublasLt.so.13 was not found; ".to_owned() + &"word ".repeat(30));
    let text = text::describe(&report);
    let begins = |start: &str| text.lines().any(|line| line.starts_with(start));
    for start in [
        "CPU ",
        "Memory ",
        "Driver ",
        "GPU 0 ",
        "GPU 1 ",
        "Ranks ",
        "NVRTC ",
        "cuBLASLt ",
        "NCCL ",
        "NIXL ",
        "Kernels ",
        "Models ",
    ] {
        assert!(begins(start), "{start}: {text}");
    }
    assert!(text.contains("GPU 0-1    NVLink, 18 links"), "{text}");
    assert!(text.contains("80.0 GiB, 79.0 GiB free"), "{text}");
    assert!(begins("--device auto computes on the CPU: libcublasLt"), "{text}");
    // A path is one word, however long.
    let is_wide = |line: &&str| line.chars().count() > 100 && line.split_whitespace().count() > 4;
    assert_eq!(text.lines().find(is_wide), None);
}

#[test]
fn the_choice_is_what_serve_does() {
    let report = report();
    let usable = stallfree_device::gpu_is_usable(0).is_ok();
    assert_eq!(report.choice.device, if usable { "cuda" } else { "cpu" });
    assert_eq!(report.choice.reason.is_none(), usable);
    let json = serde_json::to_value(&report).unwrap();
    for key in
        ["cpu", "driver", "gpus", "links", "libraries", "nixl", "kernel_cache", "models", "choice"]
    {
        assert!(json.get(key).is_some(), "{key}: {json}");
    }
}

#[test]
fn every_library_comes_from_a_pinned_wheel() {
    let mut hashes = HashSet::new();
    for library in Library::ALL {
        let wheel = libraries::wheel(library);
        let files: Vec<&str> =
            library.companions().iter().copied().chain([library.file()]).collect();
        assert_eq!(wheel.files, files, "what is opened, in that order");
        assert!(wheel.package.requirement.contains("=="));
        for hash in wheel.package.sha256 {
            assert!(hash.len() == 64 && hashes.insert(*hash), "{hash}");
        }
    }
}
