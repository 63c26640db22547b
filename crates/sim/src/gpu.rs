//! What GPUs can do, by their data sheets, and how they are connected.

use serde::{Deserialize, Serialize};

use crate::memory::memory_for;
use crate::shape::BYTES;
use crate::{Error, ModelShape, Step};

/// A kind of GPU and its surroundings; rates are peaks, which a calibration's factors scale down.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Gpu {
    /// Its name: `h100-sxm`.
    pub name: String,
    /// Dense 16-bit matrix products, in floating-point operations a second.
    pub flops: f64,
    /// Memory bandwidth, in bytes a second.
    pub bytes_per_s: f64,
    /// Memory, in bytes.
    pub memory_bytes: f64,
    /// How groups of these GPUs are connected, from the smallest group on.
    pub links: Vec<Link>,
}

/// How GPUs of one group reach each other.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Link {
    /// The most GPUs in a group.
    pub gpus: usize,
    /// From one GPU to the others, one direction, in bytes a second.
    pub bytes_per_s: f64,
    /// Before the first byte arrives, in seconds.
    pub latency_s: f64,
}

/// A GPU as the table below has it.
#[derive(Clone, Copy, Debug)]
pub struct Shipped {
    /// Its name.
    pub name: &'static str,
    /// In one line.
    pub doc: &'static str,
    /// The calibration that fits it best.
    pub calibration: &'static str,
    tflops: f64,
    gb_per_s: f64,
    memory_gib: f64,
    links: &'static [Link],
}

const fn link(gpus: usize, gb_per_s: f64, latency_us: f64) -> Link {
    Link { gpus, bytes_per_s: gb_per_s * 1e9, latency_s: latency_us * 1e-6 }
}

/// More GPUs than a model is spread over.
const MANY: usize = 1024;

/// PCIe 4.0 x16 in one machine, Ethernet of 100 Gbit/s and InfiniBand between machines.
const PCIE: Link = link(8, 31.5, 20.0);
const ETHERNET: Link = link(MANY, 12.5, 50.0);
const INFINIBAND: Link = link(MANY, 50.0, 20.0);

/// The GPUs that `--device sim:NAME` knows.
pub const SHIPPED: &[Shipped] = &[
    Shipped {
        name: "a100-80g-pcie",
        doc: "A100 80 GB PCIe: pairs bridged by NVLink, four in a machine",
        calibration: "a100",
        tflops: 312.0,
        gb_per_s: 1935.0,
        memory_gib: 79.2,
        links: &[link(2, 300.0, 12.0), Link { gpus: 4, ..PCIE }, ETHERNET],
    },
    Shipped {
        name: "a100-80g-sxm",
        doc: "A100 80 GB SXM: eight in a machine behind NVSwitch",
        calibration: "a100",
        tflops: 312.0,
        gb_per_s: 2039.0,
        memory_gib: 79.2,
        links: &[link(8, 300.0, 12.0), INFINIBAND],
    },
    Shipped {
        name: "a100-80g-distserve",
        doc: "The same as a100-80g-sxm, with the step times of DistServe's engine, whose host hardly shows",
        calibration: "a100-distserve",
        tflops: 312.0,
        gb_per_s: 2039.0,
        memory_gib: 79.2,
        links: &[link(8, 300.0, 12.0), INFINIBAND],
    },
    Shipped {
        name: "h100-sxm",
        doc: "H100 80 GB SXM: eight in a machine behind NVSwitch",
        calibration: "h100",
        tflops: 989.0,
        gb_per_s: 3350.0,
        memory_gib: 79.1,
        links: &[link(8, 450.0, 11.5), INFINIBAND],
    },
    Shipped {
        name: "h200-sxm",
        doc: "H200 141 GB SXM: eight in a machine behind NVSwitch",
        calibration: "h200",
        tflops: 989.0,
        gb_per_s: 4800.0,
        memory_gib: 139.7,
        links: &[link(8, 450.0, 11.5), INFINIBAND],
    },
    Shipped {
        name: "a40-48g",
        doc: "A40 48 GB: eight in a machine on PCIe",
        calibration: "a100",
        tflops: 149.7,
        gb_per_s: 696.0,
        memory_gib: 45.0,
        links: &[PCIE, ETHERNET],
    },
    Shipped {
        name: "a10-24g",
        doc: "A10 24 GB: eight in a machine on PCIe",
        calibration: "a100",
        tflops: 125.0,
        gb_per_s: 600.0,
        memory_gib: 22.5,
        links: &[PCIE, ETHERNET],
    },
];

impl Shipped {
    /// Returns the GPU.
    #[must_use]
    pub fn gpu(&self) -> Gpu {
        Gpu {
            name: self.name.to_owned(),
            flops: self.tflops * 1e12,
            bytes_per_s: self.gb_per_s * 1e9,
            memory_bytes: self.memory_gib * GIB,
            links: self.links.to_vec(),
        }
    }

    /// Finds a GPU by its name.
    ///
    /// # Errors
    /// There is none; the message lists those that there are.
    pub fn find(name: &str) -> Result<&'static Self, Error> {
        let known = || SHIPPED.iter().map(|gpu| gpu.name).collect::<Vec<_>>().join(", ");
        let found = SHIPPED.iter().find(|gpu| gpu.name == name);
        found.ok_or_else(|| Error::UnknownGpu { name: name.to_owned(), known: known() })
    }
}

pub(crate) const GIB: f64 = (1_u64 << 30) as f64;

impl Gpu {
    /// Describes the device that computed `steps` of a model, had it 16-bit weights: its peaks are what the fastest steps reach, and
    /// its memory is what leaves room for `kv_tokens`. Nothing is known of others beside it.
    #[must_use]
    pub fn reaching(name: &str, shape: &ModelShape, kv_tokens: usize, steps: &[Step]) -> Self {
        let weights = (shape.layer_parameters() * shape.num_layers) as f64;
        let fastest = |work: &dyn Fn(&Step) -> f64| {
            steps.iter().map(|step| work(step) / step.seconds).fold(1.0, f64::max)
        };
        Self {
            name: name.to_owned(),
            flops: fastest(&|step| 2.0 * weights * step.num_tokens() as f64),
            bytes_per_s: fastest(&|_| weights * BYTES as f64),
            memory_bytes: memory_for(shape, kv_tokens),
            links: Vec::new(),
        }
    }

    /// Returns how `gpus` of them are connected: by the link of the smallest group that holds so many.
    #[must_use]
    pub fn link(&self, gpus: usize) -> Option<Link> {
        self.links.iter().find(|link| link.gpus >= gpus).or(self.links.last()).copied()
    }
}
