//! How ranks on GPUs talk: through each other's memory, or through NCCL.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use stallfree_comm::nccl::{self, Communicator, Communicators, Membership, UniqueId};
use stallfree_comm::{Control, Part};
use stallfree_core::Parallel;
use stallfree_device::{Device, DeviceError, check_reach};
use stallfree_kernels::cuda::{CudaError, MAX_RANKS};

use crate::Error;
use crate::nodes::{gone, share_ids};
use crate::ranks::on_each;

/// How long ranks that are all loaded wait for each other: NCCL makes connections meanwhile.
const JOIN_PATIENCE: Duration = Duration::from_secs(120);

/// How ranks on GPUs talk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exchange {
    /// Kernels write and read the memory of other GPUs.
    PeerMemory,
    /// NVIDIA's library does what the connections allow, between hosts, too.
    Nccl,
}

/// What decides how ranks talk.
#[derive(Clone, Debug)]
pub struct GpuRanks {
    /// The GPUs of this process.
    pub gpus: Range<usize>,
    /// Ranks that share a layer.
    pub tensor: usize,
    /// Processes that have as many ranks each.
    pub num_nodes: usize,
    /// Whether ranks may talk through each other's memory.
    pub peer_memory: bool,
}

impl Exchange {
    /// Decides: peer memory where all GPUs reach it, unless it is not wanted; takes no memory of a GPU.
    ///
    /// # Errors
    /// A GPU is missing, or ranks can only talk through NCCL and it is not there; the line says why they can.
    pub fn choose(ranks: &GpuRanks) -> Result<Self, Error> {
        if ranks.gpus.len() * ranks.num_nodes == 1 {
            return Ok(Self::PeerMemory); // with nobody
        }
        let reason = if ranks.num_nodes > 1 {
            format!("--nnodes {}", ranks.num_nodes)
        } else if !ranks.peer_memory {
            "--disable-custom-all-reduce".to_owned()
        } else if ranks.tensor > MAX_RANKS {
            format!("--tensor-parallel-size {}, more than {MAX_RANKS}", ranks.tensor)
        } else {
            match check_reach(ranks.gpus.clone()) {
                Ok(()) => return Ok(Self::PeerMemory),
                Err(apart @ DeviceError::OutOfReach { .. }) => apart.to_string(),
                Err(error) => return Err(CudaError::from(error).into()),
            }
        };
        match nccl::find() {
            Ok(_) => Ok(Self::Nccl),
            Err(problem) => Err(Error::NoNccl { reason, problem }),
        }
    }
}

/// Where the ids of a rank's communicators are among those of all: the ranks of each stage have one, then the stages of each share.
fn places(part: Part) -> [Option<usize>; 2] {
    let num_stages = if part.tensor.of > 1 { part.stage.of } else { 0 };
    let tensor = (part.tensor.of > 1).then_some(part.stage.index);
    let stages = (part.stage.of > 1).then_some(num_stages + part.tensor.index);
    [tensor, stages]
}

/// Returns how many communicators all ranks have together.
fn num_groups(parallel: Parallel) -> usize {
    Part::all(parallel.tensor, parallel.pipeline)
        .into_iter()
        .flat_map(places)
        .flatten()
        .max()
        .map_or(0, |last| last + 1)
}

/// Joins this process's ranks, each with its GPU, to the others by NCCL, once those of all nodes have come here: returns each one's
/// communicators.
pub(crate) fn join<'a>(
    gpus: impl Iterator<Item = (Part, &'a Arc<Device>)>,
    parallel: Parallel,
    (node, controls): (usize, &mut [Control]),
) -> Result<Vec<Communicators>, Error> {
    let ids = share_ids(node, controls, || {
        let id = |_| Ok(UniqueId::new().map_err(CudaError::from)?.to_bytes().to_vec());
        (0..num_groups(parallel)).map(id).collect()
    })?;
    let join = |device, place: Option<usize>, rank| {
        let Some(place) = place else { return Ok::<Option<Arc<Communicator>>, Error>(None) };
        let id = ids.get(place).and_then(|id| UniqueId::from_bytes(id));
        let id = id.ok_or_else(|| gone(0, "it sent no id of NCCL's"))?;
        let membership = Membership { id, rank, patience: JOIN_PATIENCE };
        Ok(Some(Communicator::join(device, membership).map_err(CudaError::from)?))
    };
    on_each(gpus, |(part, device)| {
        let [tensor, stages] = places(part);
        Ok(Communicators {
            tensor: join(device, tensor, part.tensor)?,
            stages: join(device, stages, part.stage)?,
        })
    })
}

#[cfg(test)]
mod tests {
    use stallfree_comm::Part;
    use stallfree_core::Parallel;

    use super::{Exchange, GpuRanks, num_groups, places};

    #[test]
    fn every_group_has_an_id_of_its_own() {
        let check = |tensor, pipeline, expected: usize| {
            let parallel = Parallel { tensor, pipeline };
            let mut members = vec![Vec::new(); num_groups(parallel)];
            for part in Part::all(parallel.tensor, parallel.pipeline) {
                for (place, ranks) in places(part)
                    .into_iter()
                    .zip([part.tensor_ranks().collect::<Vec<_>>(), part.stage_ranks()])
                {
                    match place {
                        Some(place) => members[place].push(ranks),
                        None => assert_eq!(ranks, [part.rank()]),
                    }
                }
            }
            assert_eq!(members.len(), expected, "{parallel:?}");
            for group in members {
                let ranks = &group[0];
                assert!(group.iter().all(|other| other == ranks), "{parallel:?}: {group:?}");
                assert_eq!(group.len(), ranks.len(), "{parallel:?}: {group:?}");
            }
        };
        check(1, 1, 0);
        check(2, 1, 1);
        check(1, 3, 1);
        check(2, 3, 5);
    }

    #[test]
    fn whoever_needs_nccl_and_has_none_hears_why() {
        let choose = |num_ranks: usize, num_nodes, peer_memory| {
            Exchange::choose(&GpuRanks {
                gpus: 0..num_ranks,
                tensor: num_ranks,
                num_nodes,
                peer_memory,
            })
        };
        assert!(matches!(choose(1, 1, false), Ok(Exchange::PeerMemory)));
        let check = |found: Result<Exchange, crate::Error>, reason: &str| {
            let has_nccl = stallfree_comm::nccl::find().is_ok();
            match found {
                Ok(exchange) => assert!(has_nccl && exchange == Exchange::Nccl, "{reason}"),
                Err(error) => {
                    let text = error.to_string();
                    let says = |words: &str| text.contains(words);
                    assert!(!has_nccl && says(reason) && says("libnccl.so.2"), "{text}");
                    assert!(says("doctor --fetch") && text.lines().count() == 1, "{text}");
                }
            }
        };
        check(choose(2, 1, false), "--disable-custom-all-reduce");
        check(choose(1, 2, true), "--nnodes 2");
        check(choose(16, 1, true), "--tensor-parallel-size 16");
    }
}
