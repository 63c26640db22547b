//! A model that is given every token, and tells the logits after each.

use std::ops::Range;

use stallfree_core::TokenId;
use stallfree_device::Dtype;
use stallfree_kernels::cpu::{CpuBackend, CpuConfig, KvType};
use stallfree_kernels::cuda::{ActivationBytes, CudaBackend, CudaConfig, STEP_MULTIPLE};
use stallfree_kernels::{Backend, RaggedSeq, StepInputs};
use stallfree_models::{Checkpoint, DtypeChoice, LoadOptions, Model};

pub(crate) type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

const BLOCK_SIZE: usize = 16;

/// How sequences are cut into steps.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Cut {
    /// Each in chunks of so many tokens, one after the other.
    Chunks(usize),
    /// All side by side, a token a step, as it is.
    Decodes,
    /// As [`Self::Decodes`], but recorded as graphs and replayed.
    Recorded,
}

/// Logits, `[rows, vocab_size]`.
pub(crate) type Logits = Vec<f32>;

pub(crate) struct Forced<B: Backend> {
    backend: B,
    model: Box<dyn Model<B>>,
    vocab_size: usize,
    max_seqs: usize,
}

impl Forced<CpuBackend> {
    /// Starts the CPU in single precision, with room for so many sequences of so many tokens.
    pub(crate) fn on_cpu(checkpoint: &Checkpoint, rooms: (usize, usize)) -> Outcome<Self> {
        let cpu = CpuConfig { kv_type: KvType::F32, ..CpuConfig::default() };
        let options = LoadOptions { dtype: DtypeChoice::F32, ..LoadOptions::default() };
        Self::start(checkpoint, CpuBackend::new(cpu)?, &options, rooms)
    }
}

impl Forced<CudaBackend> {
    /// Starts the GPU, with Ampere's instructions only if told so.
    pub(crate) fn on_gpu(
        checkpoint: &Checkpoint,
        (dtype, ampere_path): (Dtype, bool),
        rooms: (usize, usize),
    ) -> Outcome<Self> {
        let max_tokens = rooms.0.max(rooms.1).next_multiple_of(STEP_MULTIPLE);
        let config = checkpoint.config();
        let backend = CudaBackend::new(CudaConfig {
            ordinal: 0,
            dtype,
            kernel_cache: std::env::temp_dir().join("stallfree-kernels"),
            ampere_path,
            weight_bytes: config.num_parameters() as usize * 2 * 5 / 4 + (256 << 20),
            max_tokens,
            activation_bytes: ActivationBytes {
                base: 64 << 20,
                layer: 1 << 30,
                logits: max_tokens * config.vocab_size * 4 + 512,
            },
            records: true,
        })?;
        Self::start(checkpoint, backend, &LoadOptions::default(), rooms)
    }
}

impl<B: Backend + 'static> Forced<B> {
    fn start(
        checkpoint: &Checkpoint,
        mut backend: B,
        options: &LoadOptions<'_>,
        (max_seqs, max_len): (usize, usize),
    ) -> Outcome<Self> {
        let model = stallfree_models::load(checkpoint, &mut backend, options)?;
        backend.allocate_kv(&model.kv_spec(max_len.div_ceil(BLOCK_SIZE) * max_seqs, BLOCK_SIZE))?;
        Ok(Self { backend, model, vocab_size: checkpoint.config().vocab_size, max_seqs })
    }

    /// Writes texts side by side: `choose` picks the next token of a sequence from its logits.
    pub(crate) fn write_texts(
        &mut self,
        (num_sequences, len): (usize, usize),
        mut choose: impl FnMut(&[f32]) -> TokenId,
    ) -> Vec<Vec<TokenId>> {
        let first = |seq: usize| vec![(seq * 997 % self.vocab_size) as TokenId];
        let mut texts: Vec<Vec<TokenId>> = (0..num_sequences).map(first).collect();
        for position in 0..len - 1 {
            let vocab_size = self.vocab_size;
            let parts: Vec<_> = texts.iter().map(|text| &text[..]).enumerate().collect();
            let logits = self.step(&parts, position..position + 1, false);
            let next: Vec<TokenId> = logits.chunks(vocab_size).map(&mut choose).collect();
            texts.iter_mut().zip(next).for_each(|(text, token)| text.push(token));
        }
        texts
    }

    /// Returns, for each sequence, the logits after each of its tokens but the last. All are of one length.
    pub(crate) fn logits(&mut self, sequences: &[Vec<TokenId>], cut: Cut) -> Vec<Logits> {
        let mut found = vec![Logits::new(); sequences.len()];
        let num_rows = sequences.first().map_or(0, |tokens| tokens.len() - 1);
        let (chunk, abreast, is_recorded) = match cut {
            Cut::Chunks(len) => (len, 1, false),
            Cut::Decodes => (1, sequences.len(), false),
            Cut::Recorded => (1, sequences.len(), true),
        };
        for first in (0..sequences.len()).step_by(abreast) {
            let group = first..sequences.len().min(first + abreast);
            let parts: Vec<_> = group.clone().map(|seq| (seq, &sequences[seq][..])).collect();
            for start in (0..num_rows).step_by(chunk) {
                let range = start..num_rows.min(start + chunk);
                let each = range.len() * self.vocab_size;
                let logits = self.step(&parts, range, is_recorded);
                for (seq, logits) in group.clone().zip(logits.chunks(each)) {
                    found[seq].extend_from_slice(logits);
                }
            }
        }
        found
    }

    /// Runs the tokens `range` of some sequences, whose earlier ones are in the cache, and returns all their logits.
    fn step(
        &mut self,
        parts: &[(usize, &[TokenId])],
        range: Range<usize>,
        is_recorded: bool,
    ) -> &[f32] {
        let mut inputs = StepInputs::default();
        for &(seq, tokens) in parts {
            // A sequence's blocks lie apart, as they do after a while of serving.
            let block = |index: usize| (index * self.max_seqs + seq) as u32;
            let (rows, blocks) = (inputs.token_ids.len(), inputs.block_ids.len());
            inputs.token_ids.extend_from_slice(&tokens[range.clone()]);
            for position in range.clone() {
                let slot =
                    block(position / BLOCK_SIZE) as usize * BLOCK_SIZE + position % BLOCK_SIZE;
                inputs.positions.push(position as u32);
                inputs.slot_mapping.push(slot as u32);
            }
            inputs.block_ids.extend((0..range.end.div_ceil(BLOCK_SIZE)).map(block));
            inputs.seqs.push(RaggedSeq {
                rows: rows..inputs.token_ids.len(),
                context_len: range.end,
                blocks: blocks..inputs.block_ids.len(),
            });
        }
        let rows: Vec<u32> = (0..inputs.token_ids.len() as u32).collect();
        let model = &self.model;
        self.backend.begin_step(&inputs);
        let logits = if is_recorded {
            self.backend.record(&|backend| model.forward(backend, &rows))
        } else {
            model.forward(&mut self.backend, &rows)
        };
        // A device may have filled the step up with rows of its own.
        &self.backend.read(logits)[..rows.len() * self.vocab_size]
    }
}
