//! The copier alone: blocks of ranks that are split one way into those of ranks that are split another way. All ranks may be on one GPU.

use std::sync::Arc;
use std::sync::mpsc::channel;

use stallfree_core::{BlockId, LeaseBook, SeqId};
use stallfree_device::Dtype;
use stallfree_kernels::cuda::{ActivationBytes, CudaBackend, CudaConfig};
use stallfree_kernels::{Backend as _, KvSpec};
use stallfree_transfer::{Copier, KvBytes, KvCopy, KvMemory, KvPart, KvPayload, RankMemory, Stuck};

use crate::Outcome;

const LAYERS: usize = 5;
const HEADS: usize = 4;
const NUM_BLOCKS: usize = 64;

/// A rank without a model.
struct Rank {
    part: KvPart,
    backend: CudaBackend,
}

impl Rank {
    fn new(part: KvPart, ordinal: usize) -> Outcome<Self> {
        let mut backend = CudaBackend::new(CudaConfig {
            ordinal,
            dtype: Dtype::F16,
            kernel_cache: std::env::temp_dir().join("stallfree-kernels"),
            ampere_path: false,
            weight_bytes: 1 << 20,
            max_tokens: 64,
            activation_bytes: ActivationBytes { base: 1 << 20, layer: 1 << 20, logits: 1 << 20 },
            records: true,
        })?;
        backend.allocate_kv(&KvSpec {
            num_layers: part.layers.len(),
            num_blocks: NUM_BLOCKS,
            block_size: 16,
            num_kv_heads: part.heads.len(),
            head_dim: 64,
        })?;
        Ok(Self { part, backend })
    }

    fn memory(&self) -> Outcome<RankMemory> {
        let cache = self.backend.device_kv().ok_or("its cache is not on a GPU")?;
        Ok(RankMemory { part: self.part.clone(), cache })
    }

    fn read(&mut self, blocks: &[u32]) -> KvBytes {
        let (piece, bytes) = (self.backend.kv_piece_bytes(), self.backend.read_kv(blocks));
        KvBytes { part: self.part.clone(), piece, bytes }
    }

    /// Fills blocks with bytes that say which head of which layer of which block they are.
    fn fill(&mut self, blocks: &[u32]) {
        let piece = self.backend.kv_piece_bytes();
        let mut pieces = Vec::new();
        for block in 0..blocks.len() {
            for layer in self.part.layers.clone() {
                for head in self.part.heads.clone() {
                    let first = (block * LAYERS + layer) * HEADS + head;
                    pieces.extend((0..piece).map(|i| ((first * 31 + i * 7) ^ (i >> 8)) as u8));
                }
            }
        }
        self.backend.write_kv(blocks, &pieces);
    }
}

/// Makes the ranks of one split: of each layer's heads, and of the layers.
fn ranks(tensor: usize, pipeline: usize, num_gpus: usize) -> Outcome<Vec<Rank>> {
    let share = |len: usize, index: usize, of: usize| index * len / of..(index + 1) * len / of;
    let rank = |index: usize| {
        let heads = share(HEADS, index % tensor, tensor);
        let layers = share(LAYERS, index / tensor, pipeline);
        Rank::new(KvPart { layers, heads }, index % num_gpus)
    };
    (0..tensor * pipeline).map(rank).collect()
}

pub(crate) fn run() -> Outcome<()> {
    let num_gpus = stallfree_device::probe().gpus.len().min(2);
    let from: Vec<u32> = (0..40).map(|i| i * 11 % NUM_BLOCKS as u32).collect();
    let to: Vec<u32> = (0..40).map(|i| (i * 23 + 7) % NUM_BLOCKS as u32).collect();
    let ids = |blocks: &[u32]| -> Vec<BlockId> { blocks.iter().map(|&b| BlockId(b)).collect() };
    let splits = [(1, 1), (2, 1), (1, 2), (4, 1), (2, 2)];
    for there in splits {
        let mut sources = ranks(there.0, there.1, num_gpus)?;
        sources.iter_mut().for_each(|rank| rank.fill(&from));
        let payload =
            KvPayload { parts: sources.iter_mut().map(|rank| rank.read(&from)).collect() };
        let memory: Outcome<Vec<RankMemory>> = sources.iter().map(Rank::memory).collect();
        let (ranks_there, leases) = (memory?, LeaseBook::default());
        let lease = leases.grant(SeqId(1));
        let memory = KvMemory { ranks: ranks_there.into(), leases };
        for here in splits {
            let mut targets = ranks(here.0, here.1, num_gpus)?;
            // Shows by the copy's end, too.
            let stuck: Stuck = Arc::new(drop::<String>);
            let own: Outcome<Vec<RankMemory>> = targets.iter().map(Rank::memory).collect();
            let copier = Copier::start(own?, &stuck)?;
            if !copier.reaches(stallfree_core::InstanceId(0), &memory) {
                return Err("the GPUs do not reach each other".into());
            }
            let blocks = ids(&from).into_iter().zip(ids(&to)).collect();
            let (sender, copied) = channel();
            let copy = KvCopy { from: memory.clone(), lease, blocks };
            copier.copy(copy, Box::new(move |result| drop(sender.send(result))));
            copied.recv()??;
            for rank in &mut targets {
                let KvBytes { part, piece, bytes } = rank.read(&to);
                if *payload.cut(&part, piece, to.len())? != *bytes {
                    return Err(format!("{there:?} to {here:?}: {part:?} differs").into());
                }
            }
        }
    }
    println!("{0} x {0} splits on {num_gpus} GPUs: the same bytes", splits.len());
    Ok(())
}
