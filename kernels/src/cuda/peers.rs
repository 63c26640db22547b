//! Launches `cuda/peers.cu`: what the ranks of one host do through each other's memory.

use std::sync::Arc;

use stallfree_device::{Arg, Device, DeviceArena, DeviceSlice, Dtype, Function, Launch, Stream};

use super::{Build, CudaError, CudaTensor, Toolchain, check_len};

/// The most ranks that share a layer.
pub const MAX_RANKS: usize = 8;
/// Blocks of a launch that meet their peers' blocks.
const MAX_BLOCKS: usize = 264;
/// Blocks that carry rows from stage to stage.
const STAGE_BLOCKS: usize = 132;
/// Up to so many bytes a matrix is pushed: measured on two H100s, 16 rows of 7,168 and 32 of 4,096 elements (docs/performance.md).
const PUSH_BYTES: usize = 256 << 10;

/// A rank's memory that its peers write, and the addresses of theirs.
#[derive(Debug)]
pub(super) struct Wires {
    rank: usize,
    num_ranks: usize,
    /// Counts launches, by row and by block.
    row_epochs: DeviceSlice,
    block_epochs: DeviceSlice,
    mailboxes: [u64; MAX_RANKS],
    flags: [u64; MAX_RANKS],
    /// Where every rank's activations begin, laid out alike.
    activations: [u64; MAX_RANKS],
    _arena: DeviceArena,
}

/// The memory that peers write, and what they read, before they know of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ends {
    mailbox: DeviceSlice,
    flags: DeviceSlice,
    activations: DeviceSlice,
}

impl Wires {
    /// Takes the memory of rank `rank` of `num_ranks`, whose peers read `activations`.
    pub(super) fn new(
        device: &Arc<Device>,
        stream: &Stream,
        (rank, num_ranks): (usize, usize),
        activations: DeviceSlice,
    ) -> Result<(Self, Ends), CudaError> {
        if num_ranks > MAX_RANKS {
            let what = format!("{num_ranks} ranks a layer, more than {MAX_RANKS}");
            return Err(CudaError::Unsupported { what });
        }
        // Two mailboxes from each rank, every word with its epoch beside it.
        let mailbox_bytes = 2 * num_ranks * PUSH_BYTES * 2;
        let row_bytes = PUSH_BYTES / 16 * 4;
        let block_bytes = MAX_BLOCKS * 4;
        let all = mailbox_bytes + row_bytes + (1 + num_ranks) * block_bytes + 4096;
        let mut arena = DeviceArena::new(device, all)?;
        let whole = arena.take("what ranks tell each other", all)?;
        stream.fill(whole, 0)?;
        stream.synchronize()?;
        arena.reset_to(0);
        let mailbox = arena.take("mailboxes", mailbox_bytes)?;
        let row_epochs = arena.take("counts of rows", row_bytes)?;
        let block_epochs = arena.take("counts of blocks", block_bytes)?;
        let flags = arena.take("flags", num_ranks * block_bytes)?;
        let none = [0; MAX_RANKS];
        let this = Self {
            rank,
            num_ranks,
            row_epochs,
            block_epochs,
            mailboxes: none,
            flags: none,
            activations: none,
            _arena: arena,
        };
        Ok((this, Ends { mailbox, flags, activations }))
    }

    /// Learns where the memory of all ranks is, in the order of ranks.
    pub(super) fn connect(&mut self, ends: &[Ends]) {
        for (rank, end) in ends.iter().take(MAX_RANKS).enumerate() {
            self.mailboxes[rank] = end.mailbox.address();
            self.flags[rank] = end.flags.address();
            self.activations[rank] = end.activations.address();
        }
    }

    pub(super) const fn num_ranks(&self) -> usize {
        self.num_ranks
    }

    /// Returns the addresses on all ranks of what is at `x` on this one.
    fn everywhere(&self, x: DeviceSlice) -> Arg {
        let offset = x.address().wrapping_sub(self.activations[self.rank]);
        Arg::Addresses(self.activations.map(|base| base.wrapping_add(offset)))
    }
}

/// What leads from a stage to the next, and from the one before: rows go into the next one's inbox, two steps' worth.
#[derive(Debug)]
pub(super) struct StageWires {
    inbox: DeviceSlice,
    /// What came, what the next stage took, and counts of what was sent and received, by block.
    counts: [DeviceSlice; 4],
    /// The next stage's inbox and what came there.
    next: Option<[u64; 2]>,
    /// What was taken of what the stage before sent: in its memory.
    taken_there: Option<u64>,
    _arena: DeviceArena,
}

impl StageWires {
    /// Takes the memory for steps of at most `step_bytes` of rows.
    pub(super) fn new(
        device: &Arc<Device>,
        stream: &Stream,
        step_bytes: usize,
    ) -> Result<Self, CudaError> {
        let (slot, count) = (step_bytes.next_multiple_of(256), STAGE_BLOCKS * 4);
        let mut arena = DeviceArena::new(device, 2 * slot + 4 * (count + 256) + 4096)?;
        let inbox = arena.take("rows from the stage before", 2 * slot)?;
        let all = arena.take("counts of a stage", 4 * (count + 256))?;
        stream.fill(all, 0)?;
        stream.synchronize()?;
        let counts = [0, 1, 2, 3].map(|place| all.slice(place * (count + 256), count));
        Ok(Self { inbox, counts, next: None, taken_there: None, _arena: arena })
    }

    /// Learns where the memory of the stages around it is.
    pub(super) fn connect(before: &mut Self, after: &mut Self) {
        before.next = Some([after.inbox.address(), after.counts[0].address()]);
        after.taken_there = Some(before.counts[1].address());
    }

    fn slot_vectors(&self) -> usize {
        self.inbox.len() / 2 / 16
    }
}

/// Sums over ranks of rows of one length, and such rows from stage to stage.
#[derive(Debug)]
pub(super) struct PeerOps {
    push: Function,
    pull: Function,
    gather: Function,
    send: Function,
    receive: Function,
    cols: usize,
    threads: usize,
}

/// What follows a sum.
#[derive(Clone, Copy, Debug)]
pub(super) enum Then {
    /// It is the result.
    Nothing(CudaTensor),
    /// It is added to a residual.
    Add(CudaTensor),
    /// It is added to a residual, and the norm of that, with a weight, is the result.
    AddNorm { residual: CudaTensor, weight: DeviceSlice, out: CudaTensor, eps: f32 },
}

impl PeerOps {
    pub(super) fn build(dtype: Dtype, cols: usize, num_ranks: usize) -> Result<Build, CudaError> {
        if cols == 0 || !cols.is_multiple_of(8) || cols * 2 > PUSH_BYTES {
            return Err(CudaError::Unsupported { what: format!("rows of {cols} elements") });
        }
        let defines = vec![
            ("COLS", cols.to_string()),
            ("THREADS", threads(cols).to_string()),
            ("RANKS", num_ranks.to_string()),
            ("MAX_BLOCKS", MAX_BLOCKS.to_string()),
            ("MAX_ROWS", max_rows(cols).to_string()),
        ];
        let file = ("peers.cu", include_str!("../../cuda/peers.cu"));
        let kernels =
            &["all_reduce_push", "all_reduce_pull", "gather_columns", "send_rows", "receive_rows"];
        Ok(Build::new(dtype, file, kernels, defines))
    }

    /// Compiles for rows of `cols` elements, a multiple of 8, and loads.
    pub(super) fn load(
        tools: &Toolchain,
        cols: usize,
        num_ranks: usize,
    ) -> Result<Self, CudaError> {
        let build = Self::build(tools.dtype, cols, num_ranks)?;
        let [push, pull, gather, send, receive] = tools.load(&build)?;
        Ok(Self { push, pull, gather, send, receive, cols, threads: threads(cols) })
    }

    /// Submits the sum over ranks of `x`, `[rows, cols]`, and what follows it.
    pub(super) fn all_reduce(
        &self,
        stream: &Stream,
        wires: &Wires,
        x: CudaTensor,
        then: Then,
    ) -> Result<(), CudaError> {
        let null = Arg::Ptr(0);
        let (residual, weight, out, eps) = match then {
            Then::Nothing(out) => (null, null, out, 0.0),
            Then::Add(residual) => (Arg::from(residual.data), null, residual, 0.0),
            Then::AddNorm { residual, weight, out, eps } => {
                check_len("weight", weight, self.cols, 2)?;
                check_len("residual", residual.data, x.rows * self.cols, 2)?;
                (Arg::from(residual.data), Arg::from(weight), out, eps)
            }
        };
        check_len("x", x.data, x.rows * self.cols, 2)?;
        check_len("out", out.data, x.rows * self.cols, 2)?;
        let rank = Arg::from(wires.rank);
        let operands = [residual, weight, out.data.into()];
        let [residual, weight, out] = operands;
        let launch = |blocks| Launch {
            grid: (blocks, 1, 1),
            threads: self.threads,
            shared_bytes: 0,
            overlap: true,
        };
        if x.rows <= max_rows(self.cols) {
            let mailboxes = Arg::Addresses(wires.mailboxes);
            let epochs = Arg::from(wires.row_epochs);
            let args = [x.data.into(), residual, weight, out, mailboxes, epochs, rank, eps.into()];
            // SAFETY: the arguments are the kernel's, the lengths are checked above, and mailboxes hold as many rows.
            return Ok(unsafe { self.push.launch(stream, launch(x.rows), &args) }?);
        }
        let (xs, flags) = (wires.everywhere(x.data), Arg::Addresses(wires.flags));
        let epochs = Arg::from(wires.block_epochs);
        let rows = Arg::from(x.rows);
        let args = [xs, residual, weight, out, flags, epochs, rank, rows, eps.into()];
        // SAFETY: as above; peers' activations are laid out as this rank's, and live as long.
        Ok(unsafe { self.pull.launch(stream, launch(x.rows.min(MAX_BLOCKS)), &args) }?)
    }

    /// Submits the columns of all ranks' logits `x` side by side into `out`; each rank has `share` of them, the last what is left.
    pub(super) fn gather_columns(
        &self,
        stream: &Stream,
        wires: &Wires,
        (x, out): (CudaTensor, CudaTensor),
        share: usize,
    ) -> Result<(), CudaError> {
        check_len("x", x.data, x.rows * x.cols, 4)?;
        check_len("out", out.data, out.rows * out.cols, 4)?;
        let blocks = out.cols.div_ceil(wires.num_ranks * self.threads * 4).clamp(1, MAX_BLOCKS);
        let launch =
            Launch { grid: (blocks, 1, 1), threads: self.threads, shared_bytes: 0, overlap: true };
        let args = [
            wires.everywhere(x.data),
            out.data.into(),
            Arg::Addresses(wires.flags),
            wires.block_epochs.into(),
            wires.rank.into(),
            x.rows.into(),
            out.cols.into(),
            share.into(),
        ];
        // SAFETY: the arguments are the kernel's, and peers' logits lie where this rank's do.
        Ok(unsafe { self.gather.launch(stream, launch, &args) }?)
    }

    /// Submits the sending of `x`, `[rows, cols]`, to the next stage.
    pub(super) fn send(
        &self,
        stream: &Stream,
        wires: &StageWires,
        x: CudaTensor,
    ) -> Result<(), CudaError> {
        let Some([inbox, arrived]) = wires.next else { return Ok(()) };
        let [_, taken, sent, _] = wires.counts;
        let vectors = self.check_rows("x", wires, x)?;
        let args = [
            x.data.into(),
            Arg::Ptr(inbox),
            Arg::Ptr(arrived),
            taken.into(),
            sent.into(),
            vectors.into(),
            wires.slot_vectors().into(),
        ];
        // SAFETY: the arguments are the kernel's; the rows fit a slot of the next stage's inbox, which is as large as this one's.
        Ok(unsafe { self.send.launch(stream, self.stage_launch(), &args) }?)
    }

    /// Submits the wait for what the stage before sends, `[rows, cols]` as `out` is.
    pub(super) fn receive(
        &self,
        stream: &Stream,
        wires: &StageWires,
        out: CudaTensor,
    ) -> Result<(), CudaError> {
        let Some(taken) = wires.taken_there else { return Ok(()) };
        let [arrived, _, _, received] = wires.counts;
        let vectors = self.check_rows("out", wires, out)?;
        let args = [
            out.data.into(),
            wires.inbox.into(),
            arrived.into(),
            Arg::Ptr(taken),
            received.into(),
            vectors.into(),
            wires.slot_vectors().into(),
        ];
        // SAFETY: the arguments are the kernel's, and the lengths are checked.
        Ok(unsafe { self.receive.launch(stream, self.stage_launch(), &args) }?)
    }

    /// Every launch has as many blocks, so that all of a slot belongs to one step.
    const fn stage_launch(&self) -> Launch {
        let grid = (STAGE_BLOCKS, 1, 1);
        Launch { grid, threads: self.threads, shared_bytes: 0, overlap: true }
    }

    /// Returns how many times 16 bytes a step's rows are.
    fn check_rows(
        &self,
        operand: &'static str,
        wires: &StageWires,
        x: CudaTensor,
    ) -> Result<usize, CudaError> {
        check_len(operand, x.data, x.rows * self.cols, 2)?;
        check_len("inbox", wires.inbox, 2 * x.rows * self.cols, 2)?;
        Ok(x.rows * self.cols / 8)
    }
}

/// Returns how many rows are pushed at most.
const fn max_rows(cols: usize) -> usize {
    PUSH_BYTES / (cols * 2)
}

/// A thread for every 16 bytes of a row, in whole warps, up to 1,024.
const fn threads(cols: usize) -> usize {
    let wanted = (cols / 8).next_multiple_of(32);
    if wanted > 1024 { 1024 } else { wanted }
}
