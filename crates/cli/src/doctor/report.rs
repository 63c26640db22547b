//! What is on this machine, as data: `--json` prints it as it is.

use std::path::{Path, PathBuf};

use serde::Serialize;
use stallfree_device::{LinkKind, find_library, gpu_is_usable, probe};
use stallfree_kernels::cpu::CpuConfig;
use stallfree_transfer::Nixl;
use stallfree_worker::GpuRanks;

use crate::environment::{Environment, NIXL_VERSION};
use crate::models;

/// What is on this machine.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) version: &'static str,
    /// Operating system and architecture.
    pub(super) platform: String,
    pub(super) cpu: Cpu,
    /// The NVIDIA driver.
    pub(super) driver: Option<Driver>,
    pub(super) gpus: Vec<Gpu>,
    pub(super) links: Vec<Link>,
    /// How ranks on these GPUs would talk, if there are several.
    pub(super) exchange: Option<Exchange>,
    pub(super) libraries: Vec<Library>,
    /// The way to RDMA.
    pub(super) nixl: Library,
    /// Where compiled kernels are kept.
    pub(super) kernel_cache: Folder,
    /// Where downloaded libraries are kept.
    pub(super) library_folder: PathBuf,
    /// Where downloaded models are kept.
    pub(super) model_folders: Vec<PathBuf>,
    pub(super) models: Vec<Model>,
    /// What `--device auto` takes.
    pub(super) choice: Choice,
}

#[derive(Debug, Serialize)]
pub(super) struct Cpu {
    pub(super) name: Option<String>,
    /// The instructions that kernels are chosen for.
    pub(super) instructions: String,
    pub(super) num_threads: usize,
    pub(super) memory_bytes: Option<u64>,
    pub(super) free_memory_bytes: Option<u64>,
}

#[derive(Debug, Serialize)]
pub(super) struct Driver {
    pub(super) version: Option<String>,
    /// The newest CUDA that it supports.
    pub(super) cuda_version: String,
}

#[derive(Debug, Serialize)]
pub(super) struct Gpu {
    pub(super) ordinal: usize,
    pub(super) name: String,
    pub(super) compute_capability: String,
    pub(super) num_sms: usize,
    pub(super) memory_bytes: u64,
    pub(super) free_memory_bytes: Option<u64>,
}

#[derive(Debug, Serialize)]
pub(super) struct Link {
    pub(super) gpus: [usize; 2],
    pub(super) kind: &'static str,
    /// Active NVLinks of each.
    pub(super) num_nvlinks: usize,
}

#[derive(Debug, Serialize)]
pub(super) struct Exchange {
    /// Peer memory or NCCL.
    pub(super) way: Option<&'static str>,
    /// Why in neither way, and what to do.
    pub(super) problem: Option<String>,
}

#[derive(Debug, Serialize)]
pub(super) struct Library {
    pub(super) name: &'static str,
    pub(super) file: &'static str,
    pub(super) version: Option<String>,
    pub(super) path: Option<PathBuf>,
    /// Why it can't be used, and what to do.
    pub(super) problem: Option<String>,
}

#[derive(Debug, Serialize)]
pub(super) struct Folder {
    pub(super) path: PathBuf,
    pub(super) num_files: usize,
    pub(super) bytes: u64,
}

#[derive(Debug, Serialize)]
pub(super) struct Model {
    pub(super) name: String,
    pub(super) path: PathBuf,
    pub(super) bytes: u64,
}

#[derive(Debug, Serialize)]
pub(super) struct Choice {
    /// As `--device` names it.
    pub(super) device: &'static str,
    /// Why not a GPU.
    pub(super) reason: Option<String>,
}

impl Report {
    /// Looks at everything; nothing is started, and no GPU's memory is taken.
    pub(super) fn collect(environment: &Environment) -> Self {
        let found = probe();
        let reason = gpu_is_usable(0).err().map(|error| error.to_string());
        let driver = found
            .driver
            .map(|driver| Driver { version: driver.version, cuda_version: dotted(driver.cuda) });
        let models = models::on_this_machine(environment).into_iter();
        Self {
            version: env!("CARGO_PKG_VERSION"),
            platform: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            cpu: cpu(),
            driver,
            exchange: exchange(found.gpus.len()),
            gpus: found.gpus.into_iter().map(gpu).collect(),
            links: found.links.into_iter().map(link).collect(),
            libraries: stallfree_device::Library::ALL.map(library).into(),
            nixl: nixl(environment),
            kernel_cache: folder(environment.kernels()),
            library_folder: environment.libraries(),
            model_folders: vec![environment.models(), environment.hub.cache.clone()],
            models: models
                .map(|(name, path)| Model { name, bytes: models::size(&path), path })
                .collect(),
            choice: Choice { device: if reason.is_none() { "cuda" } else { "cpu" }, reason },
        }
    }
}

fn cpu() -> Cpu {
    let config = CpuConfig::default();
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let bytes = |key: &str| {
        let kib: u64 = field(&memory, key)?.split_whitespace().next()?.parse().ok()?;
        Some(kib * 1024)
    };
    let cpus = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    Cpu {
        name: field(&cpus, "model name").map(str::to_owned),
        instructions: config.isa.to_string(),
        num_threads: config.num_threads,
        memory_bytes: bytes("MemTotal"),
        free_memory_bytes: bytes("MemAvailable"),
    }
}

/// Reads the first line `key: value` of one of the kernel's tables.
fn field<'a>(table: &'a str, key: &str) -> Option<&'a str> {
    let value = |line: &'a str| line.strip_prefix(key)?.trim_start().strip_prefix(':');
    table.lines().find_map(value).map(str::trim)
}

fn gpu(gpu: stallfree_device::Gpu) -> Gpu {
    Gpu {
        ordinal: gpu.ordinal,
        name: gpu.props.name,
        compute_capability: dotted(gpu.props.compute_capability),
        num_sms: gpu.props.num_sms,
        memory_bytes: gpu.props.memory_bytes as u64,
        free_memory_bytes: gpu.free_bytes,
    }
}

fn link(link: stallfree_device::Link) -> Link {
    let (kind, num_nvlinks) = match link.kind {
        LinkKind::NvLink(count) => ("NVLink", count),
        LinkKind::PcieSwitch => ("PCIe switch", 0),
        LinkKind::HostBridge => ("PCIe host bridge", 0),
        LinkKind::System => ("across NUMA nodes", 0),
    };
    Link { gpus: link.gpus, kind, num_nvlinks }
}

fn exchange(num_gpus: usize) -> Option<Exchange> {
    if num_gpus < 2 {
        return None;
    }
    let ranks = GpuRanks { gpus: 0..num_gpus, tensor: 1, num_nodes: 1, peer_memory: true };
    Some(match stallfree_worker::Exchange::choose(&ranks) {
        Ok(stallfree_worker::Exchange::PeerMemory) => {
            Exchange { way: Some("peer memory"), problem: None }
        }
        Ok(stallfree_worker::Exchange::Nccl) => Exchange { way: Some("NCCL"), problem: None },
        Err(problem) => Exchange { way: None, problem: Some(problem.to_string()) },
    })
}

fn library(library: stallfree_device::Library) -> Library {
    let (name, file) = (library.name(), library.file());
    match find_library(library) {
        Ok(found) => {
            Library { name, file, version: Some(found.version), path: found.path, problem: None }
        }
        Err(error) => {
            Library { name, file, version: None, path: None, problem: Some(error.to_string()) }
        }
    }
}

fn nixl(environment: &Environment) -> Library {
    let (name, file, folder) = ("NIXL", "libnixl_capi.so", environment.nixl());
    let found = Nixl::open(&folder);
    let path = found.as_ref().ok().map(|found| found.path().to_owned());
    let fetched = path.as_deref().is_some_and(|path| path.starts_with(&folder));
    let version = path.as_ref().map(|_| if fetched { NIXL_VERSION } else { "of the system" });
    Library { name, file, version: version.map(str::to_owned), path, problem: found.err() }
}

fn folder(path: PathBuf) -> Folder {
    let count =
        |path: &Path| std::fs::read_dir(path).map_or(0, |entries| entries.flatten().count());
    Folder { num_files: count(&path), bytes: models::size(&path), path }
}

fn dotted((major, minor): (u32, u32)) -> String {
    format!("{major}.{minor}")
}
