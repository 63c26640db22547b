//! How GPUs of one machine are connected, as the management library tells.

use nvml_wrapper::enum_wrappers::device::{P2pCapabilitiesIndex, P2pStatus, TopologyLevel};
use nvml_wrapper::{Device, Nvml};

/// The most NVLinks of a GPU that are asked for; current ones have 18.
const MAX_NVLINKS: u32 = 32;

/// The connection of two GPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// The driver's numbers of the two.
    pub gpus: [usize; 2],
    /// What lies between them.
    pub kind: LinkKind,
}

/// What lies between two GPUs, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkKind {
    /// NVLink, each GPU with so many active links, to the other or to a switch.
    NvLink(usize),
    /// PCIe switches.
    PcieSwitch,
    /// The PCIe host bridge, or several of one NUMA node.
    HostBridge,
    /// The connection of NUMA nodes.
    System,
}

/// Returns the links between GPUs, which are given by the driver's number and the bus address.
pub(crate) fn between(nvml: &Nvml, gpus: &[(usize, Option<String>)]) -> Vec<Link> {
    let managed: Vec<(usize, Device<'_>)> = gpus
        .iter()
        .filter_map(|(ordinal, bus)| Some((*ordinal, bus.as_deref()?)))
        .filter_map(|(ordinal, bus)| Some((ordinal, nvml.device_by_pci_bus_id(bus).ok()?)))
        .collect();
    let mut links = Vec::new();
    for (index, (first, one)) in managed.iter().enumerate() {
        for (second, other) in &managed[index + 1..] {
            if let Some(kind) = kind(nvml, one, other) {
                links.push(Link { gpus: [*first, *second], kind });
            }
        }
    }
    links
}

fn kind(nvml: &Nvml, one: &Device<'_>, other: &Device<'_>) -> Option<LinkKind> {
    let by_nvlink = one.p2p_status(other, P2pCapabilitiesIndex::NvLink);
    if matches!(by_nvlink, Ok(P2pStatus::Ok)) {
        let is_active = |link: &u32| one.link_wrapper_for(*link).is_active().unwrap_or(false);
        return Some(LinkKind::NvLink((0..MAX_NVLINKS).filter(is_active).count()));
    }
    Some(match nvml.topology_common_ancestor(one, other).ok()? {
        TopologyLevel::Internal | TopologyLevel::Single | TopologyLevel::Multiple => {
            LinkKind::PcieSwitch
        }
        TopologyLevel::HostBridge | TopologyLevel::Node => LinkKind::HostBridge,
        TopologyLevel::System => LinkKind::System,
    })
}
