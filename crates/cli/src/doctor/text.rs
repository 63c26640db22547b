//! The report for a terminal.

use std::fmt::Write as _;

use super::report::{Exchange, Gpu, Library, Link, Report};
use crate::console::{bytes, wrap};

/// Columns of the first column, and of all.
const LABEL: usize = 11;
const WIDTH: usize = 100;

/// Describes a machine, a line for each thing.
pub(super) fn describe(report: &Report) -> String {
    let mut text = format!("stallfree {}, {}\n\n", report.version, report.platform);
    let mut line = |label: &str, value: &str| {
        let lines = wrap(value, LABEL, WIDTH);
        // Writing to a string can't fail.
        let _ = write!(text, "{label:<LABEL$}{}", lines.get(LABEL..).unwrap_or_default());
    };
    let cpu = &report.cpu;
    line(
        "CPU",
        &format!(
            "{}, {} threads, {}",
            cpu.name.as_deref().unwrap_or("unknown"),
            cpu.num_threads,
            cpu.instructions
        ),
    );
    line("Memory", &memory(cpu.memory_bytes.unwrap_or(0), cpu.free_memory_bytes));
    match &report.driver {
        None => line("Driver", "no NVIDIA driver"),
        Some(driver) => {
            let version = driver.version.as_deref().unwrap_or("of unknown version");
            line("Driver", &format!("NVIDIA {version}, CUDA {}", driver.cuda_version));
        }
    }
    report.gpus.iter().for_each(|gpu| line(&format!("GPU {}", gpu.ordinal), &describe_gpu(gpu)));
    for link in &report.links {
        line(&format!("GPU {}-{}", link.gpus[0], link.gpus[1]), &describe_link(link));
    }
    if let Some(exchange) = &report.exchange {
        line("Ranks", &describe_exchange(exchange));
    }
    let libraries = report.libraries.iter().chain([&report.nixl]);
    libraries.for_each(|library| line(library.name, &describe_library(library)));
    let kernels = &report.kernel_cache;
    line(
        "Kernels",
        &format!(
            "{}, {} compiled, {}",
            kernels.path.display(),
            kernels.num_files,
            bytes(kernels.bytes)
        ),
    );
    for (index, folder) in report.model_folders.iter().enumerate() {
        line(if index == 0 { "Models" } else { "" }, &folder.display().to_string());
    }
    for model in &report.models {
        line("", &format!("{}, {}", model.name, bytes(model.bytes)));
    }
    text.push_str(&verdict(report));
    text
}

/// Says what `--device auto` takes, and what would bring more.
fn verdict(report: &Report) -> String {
    let choice = match (&report.choice.reason, report.gpus.first()) {
        (None, Some(gpu)) => {
            format!("--device auto computes on GPU {}, {}.", gpu.ordinal, gpu.name)
        }
        (None, None) => "--device auto computes on the GPU.".to_owned(),
        (Some(reason), _) => format!("--device auto computes on the CPU: {reason}."),
    };
    let missing = report.libraries.iter().any(|library| library.problem.is_some());
    let fetch = if missing {
        " `stallfree doctor --fetch` brings the libraries that are missing."
    } else {
        ""
    };
    format!("\n{}", wrap(&(choice + fetch), 0, WIDTH))
}

fn memory(total: u64, free: Option<u64>) -> String {
    match free {
        Some(free) => format!("{}, {} free", bytes(total), bytes(free)),
        None => bytes(total),
    }
}

fn describe_gpu(gpu: &Gpu) -> String {
    format!(
        "{}, compute capability {}, {} SMs, {}",
        gpu.name,
        gpu.compute_capability,
        gpu.num_sms,
        memory(gpu.memory_bytes, gpu.free_memory_bytes)
    )
}

fn describe_link(link: &Link) -> String {
    match link.num_nvlinks {
        0 => link.kind.to_owned(),
        count => format!("{}, {count} links", link.kind),
    }
}

fn describe_exchange(exchange: &Exchange) -> String {
    match (exchange.way, &exchange.problem) {
        (Some("NCCL"), _) => "GPUs cannot all reach each other's memory: through NCCL".to_owned(),
        (Some(way), _) => {
            format!("through {way}; with --disable-custom-all-reduce or --nnodes, through NCCL")
        }
        (None, problem) => problem.clone().unwrap_or_default(),
    }
}

fn describe_library(library: &Library) -> String {
    match (&library.version, &library.path) {
        (Some(version), Some(path)) => format!("{version}, {}", path.display()),
        (Some(version), None) => version.clone(),
        (None, _) => {
            let problem = library.problem.as_deref().unwrap_or(library.file);
            problem.split(';').next().unwrap_or(problem).to_owned()
        }
    }
}
