//! How long a hand-over takes, how fast KV moves, and how much decode steps slow down meanwhile.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use stallfree_cluster::{Cluster, Role};
use stallfree_core::{BlockId, Clock, Parallel, SeqId, TokenId, WallClock};
use stallfree_engine::{EngineHandle as _, OutputStream, SeqOutput, StepRecord};
use stallfree_models::{Checkpoint, ModelConfig};

use crate::Outcome;
use crate::deployment::{BLOCK_SIZE, Executors, Member, Settings, StepLog, prompt, request, spawn};

const PROMPT: usize = 4096;
/// Sequences that decode all the time. With those that come and go, steps are filled up to the same 64.
const DECODING: usize = 58;
const CONTEXT: usize = 1024;
const WINDOW: Duration = Duration::from_millis(1200);

const SETTINGS: Settings =
    Settings { num_blocks: 20_000, max_num_seqs: 64, max_model_len: 8192, through_host: false };

/// Which GPUs prefill and decode, the most tokens of a prefill step, and what else is different.
struct Case {
    gpus: [usize; 2],
    chunk: usize,
    settings: Settings,
    /// Whether to measure steps beside hand-overs.
    steps: bool,
}

/// Measures all cases, or one of them.
pub(crate) fn run(folder: &Path, only: Option<usize>) -> Outcome<()> {
    let checkpoint = Checkpoint::dummy(folder)?;
    let host = Settings { through_host: true, ..SETTINGS };
    let case = |gpus, chunk, settings, steps| Case { gpus, chunk, settings, steps };
    // Two models and caches on one GPU.
    let shared = Settings { num_blocks: 12_000, ..SETTINGS };
    let cases = [
        case([0, 1], 8192, SETTINGS, true),
        case([0, 1], 2048, SETTINGS, true),
        case([0, 0], 8192, shared, true),
        case([0, 1], 512, SETTINGS, false),
        case([0, 1], 8192, host, true),
        case([0, 0], 2048, shared, false),
        case([0, 0], 8192, Settings { through_host: true, ..shared }, false),
    ];
    let num_gpus = stallfree_device::probe().gpus.len();
    for (index, case) in cases.iter().enumerate() {
        if case.gpus[1] < num_gpus && only.is_none_or(|only| only == index) {
            measure(&checkpoint, case)?;
        }
    }
    Ok(())
}

/// A deployment that runs.
struct Running {
    cluster: Cluster,
    clock: Arc<dyn Clock>,
    /// What the decode instance did.
    decode: StepLog,
    vocab_size: usize,
    num_prompts: usize,
}

fn measure(checkpoint: &Checkpoint, case: &Case) -> Outcome<()> {
    let whole = Parallel::NONE;
    let [prefill, decode] = case.gpus;
    let member = |role, first_gpu, max_num_batched_tokens| Member {
        role,
        first_gpu,
        parallel: whole,
        max_num_batched_tokens,
    };
    let members = [member(Role::Prefill, prefill, case.chunk), member(Role::Decode, decode, 8192)];
    let logs = [StepLog::default(), StepLog::default()];
    let mut executors = Executors::start(checkpoint, &members, &case.settings)?;
    let block_bytes = block_bytes(checkpoint.config());
    let way = if case.settings.through_host { "through the host" } else { "copied" };
    println!(
        "\nGPU {prefill} prefills, at most {} tokens a step, GPU {} decodes; {way}",
        case.chunk, case.gpus[1]
    );
    if !case.settings.through_host {
        moves(&mut executors, block_bytes)?;
    }
    let instances = executors.into_instances(&members, &case.settings, &logs)?;
    let clock: Arc<dyn Clock> = Arc::new(WallClock::start());
    let [_, decode] = logs;
    let vocab_size = checkpoint.config().vocab_size;
    let cluster = spawn(instances, Arc::clone(&clock), None)?;
    let mut running = Running { cluster, clock, decode, vocab_size, num_prompts: 0 };
    let bytes = PROMPT.div_ceil(BLOCK_SIZE) as f64 * block_bytes;
    running.idle(bytes, if case.settings.through_host { 5 } else { 20 })?;
    if case.steps {
        running.busy()?;
    }
    Ok(())
}

/// Moves blocks in random places while neither side computes: from the order to the end of it.
fn moves(executors: &mut Executors, block_bytes: f64) -> Outcome<()> {
    let lease = executors.all[0].1.grant(SeqId(1));
    for num_blocks in [PROMPT / BLOCK_SIZE, PROMPT / BLOCK_SIZE / 8] {
        let pairs: Vec<(BlockId, BlockId)> = (0..num_blocks as u32)
            .map(|index| (BlockId(index * 7919 % 10_007), BlockId((index * 6007 + 5) % 10_007)))
            .collect();
        let mut rates = Vec::new();
        for _ in 0..20 {
            let clock = WallClock::start();
            executors.fetch(lease, &pairs)??;
            let seconds = clock.now().since_start().as_secs_f64();
            rates.push(num_blocks as f64 * block_bytes / seconds / 1e9);
        }
        rates.sort_by(f64::total_cmp);
        println!(
            "  {num_blocks} blocks, nothing else to do: {:.0} to {:.0} GB/s, median {:.0}",
            rates[1], // the first opens the way
            rates[19],
            rates[10]
        );
    }
    Ok(())
}

fn block_bytes(model: &ModelConfig) -> f64 {
    (model.num_layers * 2 * model.num_kv_heads * BLOCK_SIZE * model.head_dim * 2) as f64
}

impl Running {
    fn prompt(&mut self, len: usize) -> Vec<TokenId> {
        self.num_prompts += 1;
        prompt(self.num_prompts, len, self.vocab_size)
    }

    fn submit(&mut self, len: usize, max_tokens: usize) -> Outcome<OutputStream> {
        let prompt = self.prompt(len);
        Ok(self.cluster.submit(request(prompt, max_tokens))?)
    }

    /// Hands sequences over, one after the other, to an instance that does nothing else.
    fn idle(&mut self, bytes: f64, count: usize) -> Outcome<()> {
        let (mut until_step, mut until_token) = (Vec::new(), Vec::new());
        let (mut early, mut tail, mut moved) = (Vec::new(), Vec::new(), Vec::new());
        for number in 0..count + 2 {
            let stream = self.submit(PROMPT, 4)?;
            let id = stream.seq();
            let output = read(stream)?;
            let steps = self.decode.take();
            let has_it = |step: &&StepRecord| step.chunks.iter().any(|chunk| chunk.seq == id);
            let began = steps.iter().find(has_it).ok_or("it was not handed over")?.started;
            let ended = output.finished.as_ref().ok_or("it did not end")?;
            let first = ended.times.first_token.ok_or("no token")?;
            let moments = ended.times.kv_transfer_started.zip(ended.times.kv_transfer_ended);
            let (from, to) = moments.ok_or("its KV was computed again")?;
            if number < 2 {
                continue; // compiles, loads, records
            }
            until_step.push(ms(began - first));
            until_token.push(output.tokens.get(1).map_or(0.0, |token| ms(token.at - first)));
            early.push(ms(first - from));
            tail.push(ms(to - first));
            moved.push(bytes / (to - from).as_secs_f64() / 1e9);
        }
        println!(
            "  {PROMPT} tokens, {count} times: first token to first decode step {}",
            spread(&mut until_step)
        );
        println!("    to second token {}", spread(&mut until_token));
        println!("    KV begins to move before the first token by {}", spread(&mut early));
        println!("    and is there after it by {}", spread(&mut tail));
        moved.sort_by(f64::total_cmp);
        println!("    GB/s from first order to last end: median {:.0}", moved[moved.len() / 2]);
        Ok(())
    }

    /// Hands sequences over to an instance that decodes for others all the time.
    fn busy(&mut self) -> Outcome<()> {
        let mut decoding = Vec::new();
        for _ in 0..DECODING {
            decoding.push(self.submit(CONTEXT, 6000)?);
        }
        for stream in &mut decoding {
            // Its second token comes from the decode instance.
            let mut tokens = 0;
            while tokens < 2 {
                tokens += stream.blocking_next().ok_or("a sequence ended")?.tokens.len();
            }
        }
        let (mut steady, mut burst) = (Effect::default(), Effect::default());
        for _ in 0..2 {
            let before = self.window(&mut decoding, Load::None)?;
            let during = self.window(&mut decoding, Load::Steady)?;
            let between = self.window(&mut decoding, Load::None)?;
            steady.add(&before, &during, &between);
            let during = self.window(&mut decoding, Load::Burst)?;
            let after = self.window(&mut decoding, Load::None)?;
            burst.add(&between, &during, &after);
        }
        println!("  {DECODING} decoding at contexts from {CONTEXT} tokens, step by step:");
        steady.print("prefill all the time, 4,096 tokens each");
        burst.print("bursts of 16 prompts of 512 tokens, three a second");
        Ok(())
    }

    /// Lets some time pass; returns how long the decode instance's steps took, with how many of its sequences were handed over.
    fn window(&mut self, decoding: &mut [OutputStream], load: Load) -> Outcome<Window> {
        self.decode.take();
        let began = self.clock.now();
        let mut visitors: Vec<OutputStream> = Vec::new();
        let mut handed_over = 0;
        let mut next_burst = began;
        while self.clock.now() - began < WINDOW {
            match load {
                Load::None => {}
                // One is prefilled, one waits.
                Load::Steady if visitors.len() < 2 => visitors.push(self.submit(PROMPT, 2)?),
                Load::Burst if visitors.is_empty() && self.clock.now() >= next_burst => {
                    for _ in 0..16 {
                        visitors.push(self.submit(512, 2)?);
                    }
                    next_burst = self.clock.now() + Duration::from_millis(333);
                }
                Load::Steady | Load::Burst => {}
            }
            visitors.retain_mut(|stream| {
                let has_ended = stream.take().finished.is_some();
                handed_over += usize::from(has_ended);
                !has_ended
            });
            decoding.iter_mut().for_each(|stream| drop(stream.take()));
            std::thread::sleep(Duration::from_micros(500));
        }
        let steps = self.decode.take();
        for stream in visitors {
            read(stream)?;
        }
        Ok(Window { times: step_times(&steps), handed_over })
    }
}

#[derive(Clone, Copy)]
enum Load {
    None,
    Steady,
    Burst,
}

struct Window {
    /// Milliseconds of each step.
    times: Vec<f64>,
    handed_over: usize,
}

/// Times from one step's end to the next one's: there is always a step to do.
fn step_times(steps: &[StepRecord]) -> Vec<f64> {
    steps.windows(2).map(|pair| ms(pair[1].finished - pair[0].finished)).collect()
}

/// Steps with something beside them, and without it just before and after.
#[derive(Default)]
struct Effect {
    with: Vec<f64>,
    without: Vec<f64>,
    handed_over: usize,
}

impl Effect {
    fn add(&mut self, before: &Window, during: &Window, after: &Window) {
        self.without.extend(before.times.iter().chain(&after.times));
        self.with.extend(&during.times);
        self.handed_over += during.handed_over;
    }

    fn print(&mut self, what: &str) {
        let mean = |times: &[f64]| times.iter().sum::<f64>() / times.len().max(1) as f64;
        let (without, with) = (mean(&self.without), mean(&self.with));
        self.with.sort_by(f64::total_cmp);
        self.without.sort_by(f64::total_cmp);
        let at = |times: &[f64], share: f64| {
            times.get((times.len() as f64 * share) as usize).copied().unwrap_or(f64::NAN)
        };
        println!(
            "    {what}: {} handed over, mean {with:.3} ms beside {without:.3}: {:+.1} %; P99 {:.2} beside {:.2}, longest {:.2} beside {:.2}",
            self.handed_over,
            (with / without - 1.0) * 100.0,
            at(&self.with, 0.99),
            at(&self.without, 0.99),
            self.with.last().copied().unwrap_or(f64::NAN),
            self.without.last().copied().unwrap_or(f64::NAN),
        );
    }
}

/// Reads a stream to its end.
fn read(mut stream: OutputStream) -> Outcome<SeqOutput> {
    let mut all = SeqOutput::default();
    while let Some(output) = stream.blocking_next() {
        if let Some(error) = output.error {
            return Err(error.into());
        }
        all.tokens.extend(output.tokens);
        all.finished = output.finished;
    }
    Ok(all)
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn spread(values: &mut [f64]) -> String {
    values.sort_by(f64::total_cmp);
    let (Some(least), Some(most)) = (values.first(), values.last()) else { return String::new() };
    format!("{least:.2} to {most:.2} ms, median {:.2} ms", values[values.len() / 2])
}
