//! An instance's GPU fails while sequences decode, and with it its process: where they go, and whether their streams go on. The other
//! instance has another GPU, where there is one; else both share one, of which CUDA takes only the failed process's part away.

use std::io::Write as _;
use std::process::Child;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use stallfree_cluster::{Cluster, Role};
use stallfree_core::{Clock as _, Parallel, TokenId, WallClock};
use stallfree_engine::{EngineHandle as _, Health, OutputStream, OutputToken};
use stallfree_models::Checkpoint;

use crate::deployment::{Executors, Member, Settings, StepLog, prompt, request, spawn};
use crate::{Outcome, apart};

const NUM_SEQS: usize = 12;
const MAX_TOKENS: usize = 160;
/// Tokens that every stream has when the GPU fails.
const BEFORE: usize = 24;
/// How soon all have to have ended.
const PATIENCE: Duration = Duration::from_secs(30);

const SETTINGS: Settings =
    Settings { num_blocks: 1024, max_num_seqs: 16, max_model_len: 1024, through_host: false };

/// Runs sequences undisturbed, and again with a failure of the instance of this role in the middle.
pub(crate) fn run(checkpoint: &Checkpoint, lost: &str) -> Outcome<()> {
    let lost = lost.parse::<Role>()?;
    let undisturbed = generate(checkpoint, lost, false)?;
    let disturbed = generate(checkpoint, lost, true)?;
    let same = disturbed.iter().zip(&undisturbed).filter(|(these, those)| these == those).count();
    println!("{lost} lost: {same} of {NUM_SEQS} streams have the tokens of an undisturbed run");
    // Each token is drawn for its place: one that is lost or comes twice changes all that follow. What another batch rounds differently
    // changes a few streams.
    if same < NUM_SEQS / 2 {
        return Err("too many streams went on differently".into());
    }
    Ok(())
}

/// Is the instance in the other process.
pub(crate) fn join(checkpoint: &Checkpoint, port: u16, role: &str, gpu: usize) -> Outcome<()> {
    let role = role.parse::<Role>()?;
    apart::run(checkpoint, (port, &member(role, gpu)), &SETTINGS)
}

const fn member(role: Role, first_gpu: usize) -> Member {
    let parallel = Parallel::NONE;
    Member { role, first_gpu, parallel, max_num_batched_tokens: 256 }
}

/// Generates with the instance of role `apart` in a process of its own, which fails if `fails`.
fn generate(checkpoint: &Checkpoint, apart: Role, fails: bool) -> Outcome<Vec<Vec<TokenId>>> {
    let last_gpu = stallfree_device::probe().gpus.len().clamp(1, 2) - 1;
    let [away, here] = match apart {
        Role::Prefill => [member(Role::Prefill, 0), member(Role::Decode, last_gpu)],
        Role::Decode => [member(Role::Decode, last_gpu), member(Role::Prefill, 0)],
        Role::Mixed => return Err("lose an instance that prefills, or one that decodes".into()),
    };
    let executors = Executors::start(checkpoint, &[here], &SETTINGS)?;
    let (gate, port) = apart::gate(checkpoint, &executors.ports)?;
    let instances = executors.into_instances(&[here], &SETTINGS, &[StepLog::default()])?;
    let mut other = apart::spawn(port, away.role, away.first_gpu)?;
    let clock = Arc::new(WallClock::start());
    let cluster = spawn(instances, Arc::clone(&clock) as _, Some(gate))?;
    let (begun, all_begun) = mpsc::channel();
    let vocab_size = checkpoint.config().vocab_size;
    let submit = |number, begun: &mpsc::Sender<()>| -> Outcome<Reader> {
        let request = request(prompt(number, 100 + number * 67, vocab_size), MAX_TOKENS);
        let (stream, begun) = (cluster.submit(request)?, begun.clone());
        Ok(thread::Builder::new().name("reader".to_owned()).spawn(move || read(stream, begun))?)
    };
    let readers = (0..NUM_SEQS).map(|number| submit(number, &begun)).collect::<Outcome<_>>()?;
    drop(begun);
    while all_begun.recv_timeout(PATIENCE).is_ok() {}
    let failed = clock.now();
    if fails {
        other.stdin.take().ok_or("no input")?.write_all(b"fail\n")?;
    }
    let outputs = wait_for_all(readers)?;
    if fails {
        let later = |output: &&OutputToken| output.at > failed;
        let num_after = outputs.iter().flatten().filter(later).count();
        let took = (clock.now() - failed).as_secs_f64();
        println!(
            "  {num_after} of {} tokens came after the failure, the last {took:.2} s after it",
            NUM_SEQS * MAX_TOKENS
        );
        // A GPU that had nothing to do is only now known to be lost.
        let (begun, _) = mpsc::channel();
        wait_for_all(vec![submit(1, &begun)?, submit(2, &begun)?])?;
    }
    if !fails && other.try_wait()?.is_some() {
        return Err("the other process has ended".into());
    }
    is_idle(&cluster)?;
    // It ends by what failed, or with its server.
    drop(cluster);
    wait_for_end(&mut other)?;
    let tokens = |output: Vec<OutputToken>| output.into_iter().map(|token| token.token).collect();
    Ok(outputs.into_iter().map(tokens).collect())
}

/// Waits until nothing is left anywhere. What the other process has is heard of a little later.
fn is_idle(cluster: &Cluster) -> Outcome<()> {
    let clock = WallClock::start();
    loop {
        let (stats, health) = (cluster.stats(), cluster.health());
        let is_alive = !matches!(health, Health::Dead(_));
        if is_alive && stats.num_running + stats.num_waiting + stats.num_used_blocks == 0 {
            return Ok(());
        }
        if !is_alive || clock.now().since_start() > PATIENCE {
            return Err(format!("afterwards: {health:?}, {stats:?}").into());
        }
        thread::sleep(Duration::from_millis(1));
    }
}

fn wait_for_end(process: &mut Child) -> Outcome<()> {
    let clock = WallClock::start();
    while process.try_wait()?.is_none() {
        if clock.now().since_start() > PATIENCE {
            process.kill()?;
            return Err("the other process does not end".into());
        }
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// A thread that reads a stream.
type Reader = thread::JoinHandle<Result<Vec<OutputToken>, String>>;

fn wait_for_all(readers: Vec<Reader>) -> Outcome<Vec<Vec<OutputToken>>> {
    let clock = WallClock::start();
    while !readers.iter().all(Reader::is_finished) {
        if clock.now().since_start() > PATIENCE {
            return Err("streams do not end".into());
        }
        thread::sleep(Duration::from_millis(1));
    }
    let join = |reader: Reader| Ok(reader.join().map_err(|_| "a reader panicked")??);
    readers.into_iter().map(join).collect()
}

/// Reads a stream to its end; drops the `begun` of all streams once it has [`BEFORE`] tokens.
fn read(mut stream: OutputStream, begun: mpsc::Sender<()>) -> Result<Vec<OutputToken>, String> {
    let mut tokens = Vec::new();
    let mut begun = Some(begun);
    while let Some(output) = stream.blocking_next() {
        if let Some(error) = output.error {
            return Err(error);
        }
        tokens.extend(output.tokens);
        begun = begun.filter(|_| tokens.len() < BEFORE);
    }
    match tokens.len() {
        MAX_TOKENS => Ok(tokens),
        other => Err(format!("{other} tokens instead of {MAX_TOKENS}")),
    }
}
