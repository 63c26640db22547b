//! What a rank exchanges with others: sums, columns, and rows from stage to stage, through one of two ways.
//!
//! Over peer memory a kernel does all of it and what follows (`peers.rs`). Through NCCL the sum is NCCL's, and what follows is the same
//! kernel's, which then has nobody to wait for.

use std::sync::Arc;

use stallfree_comm::nccl::{Communicator, Communicators};
use stallfree_device::{Device, DeviceArena, DeviceSlice, Rows, Stream};

use super::peers::{PeerOps, StageWires, Then, Wires};
use super::{CudaError, CudaTensor, Toolchain};

/// Rows of logits that are gathered at once: every rank's columns come one rank after the other and are then put side by side.
const GATHER_ROWS: usize = 128;

/// What joins a rank to others.
#[derive(Debug)]
pub(super) struct Exchange {
    /// To the ranks that share its layers, or, with NCCL, to none.
    pub(super) wires: Wires,
    pub(super) ops: PeerOps,
    /// To the stages around it.
    pub(super) stages: Option<StageWires>,
    nccl: Option<NcclWires>,
}

/// The communicators, and where gathered columns lie before they are put side by side.
#[derive(Debug)]
struct NcclWires {
    communicators: Communicators,
    gathered: DeviceSlice,
    _arena: Option<DeviceArena>,
}

impl Exchange {
    /// Joins a rank to others whose memory it reaches.
    pub(super) const fn over_memory(wires: Wires, ops: PeerOps) -> Self {
        Self { wires, ops, stages: None, nccl: None }
    }

    /// Joins a rank to others through NCCL, for rows of `hidden_size` and logits of `vocab_size`.
    pub(super) fn through_nccl(
        tools: &Toolchain,
        stream: &Stream,
        communicators: Communicators,
        (hidden_size, vocab_size): (usize, usize),
    ) -> Result<Self, CudaError> {
        // What follows a sum is a kernel that sums over one rank.
        let nothing = DeviceSlice::default();
        let (mut wires, end) = Wires::new(&tools.device, stream, (0, 1), nothing)?;
        wires.connect(&[end]);
        let ops = PeerOps::load(tools, hidden_size, 1)?;
        let nccl = NcclWires::new(&tools.device, communicators, vocab_size)?;
        Ok(Self { wires, ops, stages: None, nccl: Some(nccl) })
    }

    fn tensor(&self) -> Option<&Arc<Communicator>> {
        self.nccl.as_ref()?.communicators.tensor.as_ref()
    }

    fn stage_ranks(&self) -> Option<&Arc<Communicator>> {
        self.nccl.as_ref()?.communicators.stages.as_ref()
    }

    /// Returns how many ranks share its layers.
    pub(super) fn num_ranks(&self) -> usize {
        self.tensor().map_or(self.wires.num_ranks(), |ranks| ranks.rank().of)
    }

    /// Refuses to begin a step that would wait for the lost.
    pub(super) fn check(&self) -> Result<(), CudaError> {
        let communicators = self.nccl.iter().flat_map(|nccl| nccl.communicators.all());
        let problem = communicators.filter_map(|communicator| communicator.problem()).next();
        problem.map_or(Ok(()), |problem| Err(problem.into()))
    }

    /// Submits the sum over ranks of `x`, `[rows, cols]`, which may take its place, and what follows it.
    pub(super) fn all_reduce(
        &self,
        stream: &Stream,
        x: CudaTensor,
        then: Then,
    ) -> Result<(), CudaError> {
        let Some(ranks) = self.tensor() else {
            return self.ops.all_reduce(stream, &self.wires, x, then);
        };
        match then {
            Then::Nothing(out) => Ok(ranks.all_reduce(stream, x.data, out.data, x.dtype)?),
            Then::Add(_) | Then::AddNorm { .. } => {
                ranks.all_reduce(stream, x.data, x.data, x.dtype)?;
                self.ops.all_reduce(stream, &self.wires, x, then)
            }
        }
    }

    /// Submits the columns of all ranks' logits `x` side by side into `out`; each rank has `share` of them, the last ones what is left.
    pub(super) fn gather_columns(
        &self,
        stream: &Stream,
        (x, out): (CudaTensor, CudaTensor),
        share: usize,
    ) -> Result<(), CudaError> {
        match (&self.nccl, self.tensor()) {
            (Some(nccl), Some(ranks)) => nccl.gather_columns(stream, ranks, (x, out), share),
            _ => self.ops.gather_columns(stream, &self.wires, (x, out), share),
        }
    }

    /// Submits the sending of `x` to the next stage, if there is one.
    pub(super) fn send(&self, stream: &Stream, x: CudaTensor) -> Result<(), CudaError> {
        match (self.stage_ranks(), &self.stages) {
            (Some(stages), _) if stages.rank().is_last() => Ok(()),
            (Some(stages), _) => Ok(stages.send(stream, x.data, stages.rank().index + 1)?),
            (None, Some(wires)) => self.ops.send(stream, wires, x),
            (None, None) => Ok(()),
        }
    }

    /// Submits the wait for what the stage before sends, as much as `out` is.
    pub(super) fn receive(&self, stream: &Stream, out: CudaTensor) -> Result<(), CudaError> {
        match (self.stage_ranks(), &self.stages) {
            (Some(stages), _) if stages.rank().is_first() => Ok(()),
            (Some(stages), _) => Ok(stages.receive(stream, out.data, stages.rank().index - 1)?),
            (None, Some(wires)) => self.ops.receive(stream, wires, out),
            (None, None) => Ok(()),
        }
    }
}

impl NcclWires {
    fn new(
        device: &Arc<Device>,
        communicators: Communicators,
        vocab_size: usize,
    ) -> Result<Self, CudaError> {
        let num_ranks = communicators.tensor.as_ref().map_or(1, |ranks| ranks.rank().of);
        if num_ranks == 1 {
            return Ok(Self { communicators, gathered: DeviceSlice::default(), _arena: None });
        }
        let bytes = num_ranks * GATHER_ROWS * column_share(vocab_size, num_ranks) * 4;
        let mut arena = DeviceArena::new(device, bytes + 4096)?;
        let gathered = arena.take("gathered logits", bytes)?;
        Ok(Self { communicators, gathered, _arena: Some(arena) })
    }

    fn gather_columns(
        &self,
        stream: &Stream,
        ranks: &Communicator,
        (x, out): (CudaTensor, CudaTensor),
        share: usize,
    ) -> Result<(), CudaError> {
        let (rank, num_ranks, whole) = (ranks.rank().index, ranks.rank().of, out.cols * 4);
        for first in (0..x.rows).step_by(GATHER_ROWS) {
            let num_rows = (x.rows - first).min(GATHER_ROWS);
            // All send as much as the first, which has the most columns.
            let place = num_rows * share * 4;
            let gathered = self.gathered.slice(0, num_ranks * place);
            let (own, bytes) = (gathered.slice(rank * place, place), x.cols * 4);
            stream.copy(
                own.slice(0, num_rows * bytes),
                x.data.slice(first * bytes, num_rows * bytes),
            )?;
            ranks.all_gather(stream, own, gathered)?;
            for from in 0..num_ranks {
                let begin = (from * share).min(out.cols);
                let width = share.min(out.cols - begin) * 4;
                let rows = Rows { width, count: num_rows, from_pitch: width, to_pitch: whole };
                let to = out.data.slice(first * whole + begin * 4, out.data.len());
                stream.copy_rows(to, gathered.slice(from * place, place), rows)?;
            }
        }
        Ok(())
    }
}

/// Returns how many of `cols` columns each rank has; the last ones have what is left.
pub(super) const fn column_share(cols: usize, num_ranks: usize) -> usize {
    cols.div_ceil(num_ranks).next_multiple_of(8)
}
