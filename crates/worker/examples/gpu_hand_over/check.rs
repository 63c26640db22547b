//! KV that was copied from GPU to GPU: its bytes, and the tokens that come of it.

use std::sync::Arc;
use std::sync::mpsc::channel;

use serde_json::json;
use stallfree_cluster::{ClusterReplay, DispatchConfig, Role};
use stallfree_core::{
    Batch, BatchId, BlockId, Chunk, Executor as _, InstanceId, LeaseId, Parallel, SampleSpec,
    SamplingParams, SeqId, Time, TokenId,
};
use stallfree_engine::SeqOutput;
use stallfree_kernels::WeightType;
use stallfree_models::Checkpoint;
use stallfree_models::tiny::TinyModel;
use stallfree_transfer::{KvPart, KvPayload};
use stallfree_worker::ThreadExecutor;

use crate::Outcome;
use crate::deployment::{BLOCK_SIZE, Executors, Member, Settings, StepLog, prompt, request};

const NUM_PROMPTS: usize = 12;
const MAX_TOKENS: usize = 24;
const NUM_LAYERS: usize = 6;
const NUM_HEADS: usize = 4;

const SETTINGS: Settings =
    Settings { num_blocks: 512, max_num_seqs: 16, max_model_len: 1024, through_host: false };

const fn split(tensor: usize, pipeline: usize) -> Parallel {
    Parallel { tensor, pipeline }
}

const fn member(role: Role, first_gpu: usize, parallel: Parallel) -> Member {
    // Most prompts take several steps, so that their first blocks are copied while the others are computed.
    Member { role, first_gpu, parallel, max_num_batched_tokens: 256 }
}

/// Makes the model that is checked.
pub(crate) fn model() -> Outcome<Checkpoint> {
    let folder = std::env::temp_dir().join("stallfree-hand-over");
    let overrides = json!({
        "head_dim": 64, "num_attention_heads": 8, "num_key_value_heads": NUM_HEADS,
        "num_hidden_layers": NUM_LAYERS
    });
    let model =
        TinyModel { dtype: WeightType::F16, overrides, ..TinyModel::new("LlamaForCausalLM") };
    model.write(&folder)?;
    Ok(Checkpoint::open(&folder)?)
}

pub(crate) fn run(checkpoint: &Checkpoint) -> Outcome<()> {
    let whole = split(1, 1);
    let mut cases = vec![("one GPU, 1 x 1, then 1 x 1", (0, whole), (0, whole))];
    let num_gpus = stallfree_device::probe().gpus.len();
    if num_gpus > 1 {
        cases.extend([
            ("GPU 0, 1 x 1, then GPU 1, 1 x 1", (0, whole), (1, whole)),
            ("TP 1, then TP 2", (0, whole), (0, split(2, 1))),
            ("TP 2, then TP 1", (0, split(2, 1)), (1, whole)),
            ("PP 1, then PP 2", (1, whole), (0, split(1, 2))),
            ("PP 2, then TP 2", (0, split(1, 2)), (0, split(2, 1))),
        ]);
    }
    let alone = generate(checkpoint, &[member(Role::Mixed, 0, whole)], &SETTINGS, false)?;
    let distinct: std::collections::HashSet<_> = alone.iter().flatten().collect();
    println!("one instance alone draws {} different tokens", distinct.len());
    for (what, prefill, decode) in cases {
        let members =
            [member(Role::Prefill, prefill.0, prefill.1), member(Role::Decode, decode.0, decode.1)];
        bytes(checkpoint, &members).map_err(|error| format!("{what}: {error}"))?;
        let copied = generate(checkpoint, &members, &SETTINGS, false)?;
        let host = Settings { through_host: true, ..SETTINGS };
        let through_host = generate(checkpoint, &members, &host, false)?;
        let same = |tokens: &[Vec<TokenId>]| {
            tokens.iter().zip(&alone).filter(|(these, those)| these == those).count()
        };
        print!("{what}: the same bytes; {} of {NUM_PROMPTS} as one instance alone", same(&copied));
        if copied != through_host {
            let problem = "copied KV gives other tokens than KV through the host's memory";
            return Err(format!("{what}: {problem}").into());
        }
        if (prefill.1, decode.1) == (whole, whole) && copied != alone {
            return Err(format!("{what}: other tokens than one instance alone").into());
        }
        // Two instances whose ranks wait for each other must not compute at once on the same GPUs.
        if prefill.1 == whole || decode.1 == whole {
            let at_once = generate(checkpoint, &members, &SETTINGS, true)?;
            print!(", {} with all at once", same(&at_once));
        }
        println!();
    }
    Ok(())
}

/// Copies what a step has computed into blocks that a step under way still writes, and compares all bytes.
fn bytes(checkpoint: &Checkpoint, members: &[Member]) -> Outcome<()> {
    let mut executors = Executors::start(checkpoint, members, &SETTINGS)?;
    let num_blocks = 200_usize.div_ceil(BLOCK_SIZE);
    let pairs: Vec<(BlockId, BlockId)> = (0..num_blocks as u32)
        .map(|index| (BlockId(index * 37 % 512), BlockId((index * 53 + 11) % 512)))
        .collect();
    let (from, to): (Vec<_>, Vec<_>) = pairs.iter().copied().unzip();
    let vocab_size = checkpoint.config().vocab_size;
    submit(&mut executors.all[0].0, &from, prompt(1, 200, vocab_size));
    wait(&mut executors.all[0].0)?;
    let [there, here] = [0, 1].map(|index: usize| executors.all[index].1.grant(SeqId(1)));
    let old = LeaseId { generation: 0, ..there };
    for (lease, is_good) in [(old, false), (there, true)] {
        // A sequence that is gone: its blocks are in other hands.
        submit(&mut executors.all[1].0, &to, prompt(2, 200, vocab_size));
        executors.start_fetch(lease, &pairs)?;
        wait(&mut executors.all[1].0)?;
        let result = loop {
            if let Some((_, result)) = executors.all[1].0.fetched(Time::ZERO).pop() {
                break result;
            }
        };
        if result.is_ok() != is_good {
            return Err(format!("generation {}: {result:?}", lease.generation).into());
        }
    }
    let read = |instance, lease, blocks: &[BlockId]| -> Outcome<(usize, Vec<u8>)> {
        let (sender, receiver) = channel();
        let port = executors.ports.get(InstanceId(instance)).ok_or("no port")?;
        let deliver = move |payload: Result<KvPayload, String>| drop(sender.send(payload));
        port.read(lease, blocks, Box::new(deliver));
        let payload = receiver.recv()??;
        let piece = payload.parts.first().ok_or("nothing came")?.piece;
        let all = KvPart { layers: 0..NUM_LAYERS, heads: 0..NUM_HEADS };
        Ok((piece, payload.cut(&all, piece, blocks.len())?.into_owned()))
    };
    let (expected, found) = (read(0, there, &from)?, read(1, here, &to)?);
    if expected.1.iter().all(|&byte| byte == 0) || expected != found {
        return Err("the blocks differ".into());
    }
    Ok(())
}

fn submit(executor: &mut ThreadExecutor, blocks: &[BlockId], tokens: Vec<TokenId>) {
    let sample = SampleSpec {
        params: Arc::new(SamplingParams::greedy()),
        num_output_tokens: 0,
        banned: Arc::new([]),
        history: None,
    };
    let chunk = Chunk {
        seq: SeqId(9),
        num_computed_tokens: 0,
        tokens: 0..tokens.len(),
        blocks: 0..blocks.len(),
        sample: Some(sample),
        prompt_logprobs: None,
    };
    let (chunks, block_ids) = (vec![chunk], blocks.to_vec());
    executor.submit(Batch { id: BatchId(0), chunks, token_ids: tokens, block_ids }, Time::ZERO);
}

fn wait(executor: &mut ThreadExecutor) -> Outcome<()> {
    while executor.collect(Time::ZERO)?.is_none() {
        std::thread::yield_now();
    }
    Ok(())
}

/// Generates from all prompts, one after the other, so that batches are alike, or all at once.
fn generate(
    checkpoint: &Checkpoint,
    members: &[Member],
    settings: &Settings,
    at_once: bool,
) -> Outcome<Vec<Vec<TokenId>>> {
    let logs = vec![StepLog::default(); members.len()];
    let executors = Executors::start(checkpoint, members, settings)?;
    let instances = executors.into_instances(members, settings, &logs)?;
    let mut replay =
        ClusterReplay::new(instances, stallfree_cluster::build(&DispatchConfig::default())?);
    let vocab_size = checkpoint.config().vocab_size;
    let requests: Vec<_> = (0..NUM_PROMPTS)
        .map(|number| prompt(number, 100 + number * 67, vocab_size))
        .map(|prompt| (Time::ZERO, request(prompt, MAX_TOKENS)))
        .collect();
    let outputs: Vec<SeqOutput> = match at_once {
        true => replay.run(&requests),
        false => requests.iter().flat_map(|one| replay.run(std::slice::from_ref(one))).collect(),
    };
    for engine in replay.engines() {
        engine.check_integrity()?;
        if let Some(reason) = engine.dead() {
            return Err(reason.into());
        }
        if engine.stats().num_used_blocks > 0 {
            return Err("blocks are left".into());
        }
    }
    let mut all = Vec::new();
    for (index, output) in outputs.into_iter().enumerate() {
        let ended = output.finished.as_ref().ok_or_else(|| format!("{output:?}"))?;
        if members.len() > 1 && ended.times.kv_transfer_ended.is_none() {
            return Err(format!("sequence {index} was computed again").into());
        }
        all.push(output.tokens.into_iter().map(|token| token.token).collect());
    }
    Ok(all)
}
