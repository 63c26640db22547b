//! One sequence on a loaded model.

use stallfree_comm::{Mesh, Part, Peers};
use stallfree_kernels::cpu::{CpuBackend, CpuConfig, KvType};
use stallfree_kernels::{Backend, RaggedSeq, StepInputs};
use stallfree_models::{Checkpoint, LoadOptions, Model, load};

const BLOCK_SIZE: usize = 4;
const NUM_BLOCKS: usize = 64;

pub(crate) struct Running {
    pub(crate) model: Box<dyn Model<CpuBackend>>,
    backend: CpuBackend,
}

impl Running {
    pub(crate) fn load(checkpoint: &Checkpoint, options: &LoadOptions<'_>) -> Self {
        Self::load_rank(checkpoint, options, Peers::none())
    }

    /// Computes the logits on `tensor * stages` ranks; those of the first rank of the last stage.
    pub(crate) fn logits_of_ranks(
        checkpoint: &Checkpoint,
        [tensor, stages]: [usize; 2],
        tokens: &[u32],
        chunks: &[usize],
    ) -> Vec<Vec<f32>> {
        let ranks = Part::all(tensor, stages).into_iter().zip(Mesh::threads(tensor * stages));
        std::thread::scope(|scope| {
            let run = |(part, world)| {
                let options = LoadOptions { part, ..LoadOptions::default() };
                let mut rank = Self::load_rank(checkpoint, &options, Peers::new(world, part));
                rank.logits(tokens, chunks)
            };
            let threads: Vec<_> = ranks.map(|rank| scope.spawn(move || run(rank))).collect();
            let mut logits: Vec<_> =
                threads.into_iter().map(|thread| thread.join().unwrap()).collect();
            logits.swap_remove(tensor * (stages - 1))
        })
    }

    fn load_rank(checkpoint: &Checkpoint, options: &LoadOptions<'_>, peers: Peers) -> Self {
        let config = CpuConfig { kv_type: KvType::F32, num_threads: 2, ..CpuConfig::default() };
        let mut backend = CpuBackend::with_peers(config, peers).unwrap();
        let model = load(checkpoint, &mut backend, options).unwrap();
        Self::new(model, backend)
    }

    pub(crate) fn new(model: Box<dyn Model<CpuBackend>>, mut backend: CpuBackend) -> Self {
        backend.allocate_kv(&model.kv_spec(NUM_BLOCKS, BLOCK_SIZE)).unwrap();
        Self { model, backend }
    }

    /// Returns the logits behind each token, computing the tokens in chunks of these sizes; the last size repeats.
    pub(crate) fn logits(&mut self, tokens: &[u32], chunks: &[usize]) -> Vec<Vec<f32>> {
        let mut logits = Vec::new();
        let mut sizes = chunks.iter().copied();
        let mut size = tokens.len();
        while logits.len() < tokens.len() {
            size = sizes.next().unwrap_or(size);
            let start = logits.len();
            let end = (start + size).min(tokens.len());
            logits.extend(self.step(&tokens[start..end], start));
        }
        logits
    }

    fn step(&mut self, tokens: &[u32], start: usize) -> Vec<Vec<f32>> {
        let context_len = start + tokens.len();
        // Neighbors in the sequence are not neighbors in the cache.
        let blocks: Vec<u32> = (0..context_len.div_ceil(BLOCK_SIZE))
            .map(|i| ((i * 23 + 7) % NUM_BLOCKS) as u32)
            .collect();
        let slot = |position: usize| {
            blocks[position / BLOCK_SIZE] * BLOCK_SIZE as u32 + (position % BLOCK_SIZE) as u32
        };
        self.backend.begin_step(&StepInputs {
            token_ids: tokens.to_vec(),
            positions: (start..context_len).map(|position| position as u32).collect(),
            slot_mapping: (start..context_len).map(slot).collect(),
            seqs: vec![RaggedSeq { rows: 0..tokens.len(), context_len, blocks: 0..blocks.len() }],
            block_ids: blocks.clone(),
        });
        let hidden = self.model.hidden(&mut self.backend);
        // Two slices, the second one first, as a sampler may ask for them.
        let rows: Vec<u32> = (0..tokens.len() as u32).collect();
        let (first, second) = rows.split_at(rows.len() / 2);
        let second = self.slice(hidden, second);
        let mut logits = self.slice(hidden, first);
        logits.extend(second);
        logits
    }

    fn slice(&mut self, hidden: <CpuBackend as Backend>::Tensor, rows: &[u32]) -> Vec<Vec<f32>> {
        if rows.is_empty() || !self.model.part().stage.is_last() {
            return vec![Vec::new(); rows.len()];
        }
        let logits = self.model.logits(&mut self.backend, hidden, rows);
        let values = self.backend.read(logits);
        values.chunks(self.model.config().vocab_size).map(<[f32]>::to_vec).collect()
    }
}

/// Checks that no row is off by more than `tolerance` of its length, as a vector.
pub(crate) fn assert_close(what: &str, got: &[Vec<f32>], expected: &[Vec<f32>], tolerance: f32) {
    assert_eq!(got.len(), expected.len(), "{what}: rows");
    let length = |values: &mut dyn Iterator<Item = f32>| values.map(|x| x * x).sum::<f32>().sqrt();
    for (row, (got, expected)) in got.iter().zip(expected).enumerate() {
        assert_eq!(got.len(), expected.len(), "{what}: columns of row {row}");
        let difference = length(&mut got.iter().zip(expected).map(|(a, b)| a - b));
        let relative = difference / length(&mut expected.iter().copied());
        assert!(relative <= tolerance, "{what}: row {row} is off by {relative} of its length");
    }
}

/// Returns some token ids below `vocab_size`.
pub(crate) fn prompt(len: usize, vocab_size: usize) -> Vec<u32> {
    (0..len).map(|i| ((i * i * 31 + i * 7 + 3) % vocab_size) as u32).collect()
}
