//! How lives end: by cancellation, failure, overload and shutdown, on the engine's own thread.

use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use stallfree_core::{BatchId, Clock, FinishReason, KvGeometry, SeqId, Time, WallClock};
use stallfree_engine::{
    Engine, EngineHandle, EngineInfo, EngineStats, Health, OutputStream, Readers, Replay,
    SeqOutput, StepObserver, StepRecord, SubmitError, ThreadedEngine,
};
use stallfree_scheduler::{Declaration, Planner, Scheduler, SchedulerConfig, Step};
use stallfree_testkit::equivalence::{self, Case};
use stallfree_testkit::{
    Fault, Language, ManualClock, MockConfig, MockExecutor, Pace, VOCAB_SIZE, greedy,
};

const MAX_MODEL_LEN: usize = 8192;

fn mock(fault: Option<Fault>) -> MockConfig {
    MockConfig {
        kv: KvGeometry { num_blocks: 2048, block_size: 16 },
        max_in_flight: 2,
        pace: Pace::Real,
        step_time: Duration::from_micros(200),
        token_time: Duration::ZERO,
        fault,
        ..MockConfig::default()
    }
}

fn engine(config: MockConfig) -> Engine {
    let limits = SchedulerConfig {
        max_num_seqs: 64,
        max_model_len: MAX_MODEL_LEN,
        ..SchedulerConfig::default()
    };
    let case = Case { policy: "sarathi", limits, num_blocks: 0, max_in_flight: 0 };
    equivalence::engine(&case, MockExecutor::boxed(config))
}

fn spawn(fault: Option<Fault>) -> ThreadedEngine {
    ThreadedEngine::spawn(engine(mock(fault)), Arc::new(WallClock::start()), 300).expect("a thread")
}

fn read(mut stream: OutputStream) -> SeqOutput {
    let mut all = SeqOutput::default();
    while let Some(output) = stream.blocking_next() {
        all.tokens.extend(output.tokens);
        all.finished = output.finished;
        all.error = output.error;
    }
    all
}

/// Waits until the engine's stats are as wanted; a minute at most.
fn wait_for(engine: &ThreadedEngine, what: &str, wanted: impl Fn(&EngineStats) -> bool) {
    let come = (0..60_000).any(|_| {
        let is_so = wanted(&engine.stats());
        thread::sleep(Duration::from_millis(u64::from(!is_so)));
        is_so
    });
    assert!(come, "not {what} within a minute: {:?}", engine.stats());
}

fn is_at_rest(stats: &EngineStats) -> bool {
    (stats.num_running, stats.num_waiting, stats.num_used_blocks) == (0, 0, 0)
}

#[test]
fn answers_come_and_the_engine_comes_to_rest() {
    let engine = spawn(None);
    let requests: Vec<_> = (0..40).map(|i| greedy(vec![i, 2, 3], 20)).collect();
    let streams: Vec<_> =
        requests.iter().map(|request| engine.submit(request.clone()).expect("room")).collect();
    for (request, stream) in requests.iter().zip(streams) {
        let output = read(stream);
        let tokens: Vec<_> = output.tokens.iter().map(|token| token.token).collect();
        assert_eq!(tokens, Language::answer(request, MAX_MODEL_LEN));
        assert_eq!(output.finished.map(|end| end.reason), Some(FinishReason::Length));
    }
    wait_for(&engine, "at rest", is_at_rest);
    let stats = engine.stats();
    assert_eq!((stats.prompt_tokens, stats.generation_tokens), (120, 800));
    assert_eq!(engine.health(), Health::Healthy);
}

#[test]
fn readers_are_woken_by_whom_they_are_left_to() {
    let engine = spawn(None);
    let (ringer, due) = channel::<Readers>();
    engine.set_ringer(Arc::new(move |readers| ringer.send(readers).expect("somebody listens")));
    let streams: Vec<_> =
        (0..20).map(|i| engine.submit(greedy(vec![i; 10], 100)).expect("room")).collect();
    thread::scope(|scope| {
        let ring =
            scope.spawn(|| due.into_iter().inspect(|readers| assert!(readers.len() > 1)).count());
        let readers: Vec<_> =
            streams.into_iter().map(|stream| scope.spawn(|| read(stream))).collect();
        for reader in readers {
            assert_eq!(reader.join().expect("no panic").tokens.len(), 100);
        }
        drop(engine);
        assert!(ring.join().expect("no panic") > 0);
    });
}

/// A reader that saw the token first would have to end its answer with an empty piece.
#[test]
fn the_last_token_and_the_end_come_together() {
    let engine = spawn(None);
    for _ in 0..200 {
        let mut stream = engine.submit(greedy(vec![1, 2, 3], 2)).expect("there is room");
        while let Some(output) = stream.blocking_next() {
            assert!(output.finished.is_none() || !output.tokens.is_empty());
        }
    }
}

#[test]
fn two_hundred_abandoned_long_requests_leave_nothing_behind() {
    let engine = spawn(None);
    let streams: Vec<_> =
        (0..200).map(|i| engine.submit(greedy(vec![i; 50], 8000)).expect("room")).collect();
    wait_for(&engine, "busy", |stats| stats.num_running == 64 && stats.num_waiting == 136);
    let num_steps = engine.stats().num_steps;
    drop(streams);
    wait_for(&engine, "at rest", is_at_rest);
    let late = engine.stats().num_steps - num_steps;
    assert!(late < 50, "the abandoned ran on for {late} steps");
    assert_eq!(read(engine.submit(greedy(vec![1], 10)).expect("room")).tokens.len(), 10);
}

#[test]
fn a_cancelled_sequence_is_gone_within_one_step() {
    for max_in_flight in [1, 2, 3] {
        let mut replay =
            Replay::new(engine(MockConfig { max_in_flight, pace: Pace::Virtual, ..mock(None) }));
        let stays = replay.submit(greedy(vec![1; 100], 50));
        let leaves = replay.submit(greedy(vec![2; 1000], 5000));
        for _ in 0..5 {
            replay.step(Time::MAX);
        }
        assert_eq!(replay.engine().stats().num_running, 2);
        drop(leaves);
        replay.step(Time::MAX);
        let stats = replay.engine().stats();
        assert_eq!((stats.num_running, stats.num_used_blocks), (1, 7), "{max_in_flight}");
        while replay.step(Time::MAX) {}
        assert_eq!(read(stays).tokens.len(), 50);
    }
}

#[test]
fn a_lost_executor_fails_every_request() {
    let what = "executor failed at batch 3: as the test asked";
    check_loss(Fault::Fails(BatchId(3)), what);
    check_loss(Fault::Panics(BatchId(3)), "the engine's thread panicked");
}

fn check_loss(fault: Fault, what: &str) {
    let engine = spawn(Some(fault));
    let submit = |i| engine.submit(greedy(vec![i; 10], 1000));
    let streams: Vec<_> = (0..100).filter_map(|i| submit(i).ok()).collect();
    assert!(!streams.is_empty());
    for stream in streams {
        let error = read(stream).error.expect("an error");
        assert!(error.starts_with(what), "{error}");
    }
    // Readers may hear of it a moment before the handle does.
    wait_for(&engine, "dead", |_| engine.health() != Health::Healthy);
    assert!(matches!(engine.health(), Health::Dead(reason) if reason.starts_with(what)));
    let refused = engine.submit(greedy(vec![1], 1)).expect_err("dead");
    assert!(matches!(refused, SubmitError::Dead(reason) if reason.starts_with(what)));
    wait_for(&engine, "at rest", is_at_rest);
}

#[test]
fn a_hanging_step_is_late_and_an_idle_engine_is_not() {
    let clock = Arc::new(ManualClock::default());
    let engine = engine(mock(Some(Fault::Hangs(BatchId(0)))));
    let engine = ThreadedEngine::spawn(engine, clock.clone(), 10).expect("a thread");
    clock.advance(Duration::from_secs(3600));
    assert_eq!(engine.health(), Health::Healthy);
    let stream = engine.submit(greedy(vec![1], 1)).expect("room");
    wait_for(&engine, "running", |stats| stats.num_running == 1);
    clock.advance(Duration::from_secs(9));
    assert_eq!(engine.health(), Health::Healthy);
    clock.advance(Duration::from_secs(2));
    assert_eq!(engine.health(), Health::Late { since: Duration::from_secs(11) });
    // Shutting down ends even what hangs.
    drop(engine);
    assert_eq!(read(stream).error.as_deref(), Some("the engine was shut down"));
}

#[test]
fn a_long_predicted_step_is_not_late() {
    let clock = Arc::new(ManualClock::default());
    let config = MockConfig { step_time: Duration::from_secs(20), ..mock(None) };
    let engine = engine(MockConfig { pace: Pace::Virtual, ..config });
    let engine = ThreadedEngine::spawn(engine, clock.clone(), 10).expect("a thread");
    let _stream = engine.submit(greedy(vec![1], 1)).expect("room");
    wait_for(&engine, "running", |stats| stats.num_running == 1);
    clock.advance(Duration::from_secs(19));
    assert_eq!(engine.health(), Health::Healthy);
}

#[test]
fn a_full_queue_refuses_with_a_time_to_retry() {
    let clock: Arc<dyn Clock> = Arc::new(WallClock::start());
    let engine = engine(mock(Some(Fault::Hangs(BatchId(0)))));
    let engine = ThreadedEngine::spawn(engine, clock, 5).expect("a thread");
    let submit = || engine.submit(greedy(vec![1; 5000], 10));
    // One runs and fills the step; the step hangs, so the others wait.
    let first = submit().expect("room");
    wait_for(&engine, "running", |stats| stats.num_running == 1);
    let others: Vec<_> = (0..5).map(|_| submit().expect("room")).collect();
    let Err(SubmitError::QueueFull { waiting: 5, retry_after }) = submit() else {
        panic!("the queue takes a sixth")
    };
    assert!((1..=60).contains(&retry_after.as_secs()));
    drop(others);
    wait_for(&engine, "empty", |stats| stats.num_waiting == 0);
    assert!(submit().is_ok());
    drop(first);
}

#[test]
fn draining_refuses_the_new_and_ends_the_old_well() {
    let engine = spawn(None);
    let streams: Vec<_> =
        (0..100).map(|i| engine.submit(greedy(vec![i; 10], 100)).expect("room")).collect();
    engine.drain();
    assert_eq!(engine.submit(greedy(vec![1], 1)).expect_err("draining"), SubmitError::Draining);
    for stream in streams {
        assert_eq!(read(stream).tokens.len(), 100);
    }
    wait_for(&engine, "at rest", is_at_rest);
}

#[test]
fn requests_that_can_never_run_are_refused() {
    let engine = spawn(None);
    let refusal = |len: usize| engine.submit(greedy(vec![1; len], 1)).expect_err("a refusal");
    assert_eq!(refusal(0), SubmitError::Empty);
    let too_long = SubmitError::TooLong { prompt: MAX_MODEL_LEN, limit: MAX_MODEL_LEN };
    assert_eq!(refusal(MAX_MODEL_LEN), too_long);
    let unknown = engine.submit(greedy(vec![1, VOCAB_SIZE], 1)).expect_err("a refusal");
    let vocab_size = VOCAB_SIZE as usize;
    assert_eq!(unknown, SubmitError::UnknownToken { token: VOCAB_SIZE, vocab_size });
    let longest = engine.submit(greedy(vec![1; MAX_MODEL_LEN - 1], 9)).expect("room");
    assert_eq!(read(longest).tokens.len(), 1);
}

/// Without the thread's check before it, the engine makes its own.
#[test]
fn a_token_that_the_model_does_not_know_fails_its_request_alone() {
    let mut replay = Replay::new(engine(MockConfig { pace: Pace::Virtual, ..mock(None) }));
    let bad = replay.submit(greedy(vec![1, VOCAB_SIZE], 3));
    let good = replay.submit(greedy(vec![1, 2], 3));
    while replay.step(Time::MAX) {}
    let error = read(bad).error.expect("an error");
    assert_eq!(
        error,
        "the prompt has the token 1000, but the model knows only those from 0 to 999"
    );
    assert_eq!(read(good).tokens.len(), 3);
}

#[test]
fn a_sequence_of_unsound_logits_fails_alone() {
    let fault = Some(Fault::Unsound(SeqId(1)));
    let mut replay = Replay::new(engine(MockConfig { pace: Pace::Virtual, ..mock(fault) }));
    let mut run = || {
        let streams: Vec<_> = (0..3).map(|i| replay.submit(greedy(vec![i; 40], 30))).collect();
        while replay.step(Time::MAX) {}
        streams.into_iter().map(read).collect::<Vec<_>>()
    };
    let ends = run();
    let error = ends[1].error.as_deref().expect("an error");
    assert!(error.contains("not a finite number"), "{error}");
    assert_eq!(ends.iter().map(|end| end.tokens.len()).collect::<Vec<_>>(), [30, 0, 30]);
    // Nor does anybody get its KV.
    let cached = |end: SeqOutput| end.finished.map(|end| end.num_cached_tokens);
    assert_eq!(run().into_iter().map(cached).collect::<Vec<_>>(), [Some(32), Some(0), Some(32)]);
}

/// Keeps what it sees.
#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<Vec<StepRecord>>>);

impl StepObserver for Recorder {
    fn on_step(&mut self, step: &StepRecord) {
        self.0.lock().expect("no panic").push(step.clone());
    }
}

fn engine_of(policy: Box<dyn Scheduler>, observer: Recorder) -> Engine {
    let executor = MockExecutor::boxed(MockConfig::default());
    let kv = executor.kv_geometry();
    let limits = SchedulerConfig { max_num_batched_tokens: 64, ..SchedulerConfig::default() };
    let info = EngineInfo {
        scheduler: "theirs".to_owned(),
        max_model_len: limits.max_model_len,
        kv,
        enable_prefix_caching: true,
    };
    let planner = Planner::with_scheduler(limits, kv, policy).expect("limits that work");
    Engine::new(planner, executor, Some(Box::new(observer)), info)
}

#[test]
fn an_observer_sees_every_step() {
    let limits = SchedulerConfig { max_num_batched_tokens: 64, ..SchedulerConfig::default() };
    let policy = stallfree_scheduler::Registry::default().build("sarathi", &limits).expect("known");
    let recorder = Recorder::default();
    let mut replay = Replay::new(engine_of(policy, recorder.clone()));
    replay.run([(Time::ZERO, greedy(vec![1; 100], 3))]);
    let steps = recorder.0.lock().expect("no panic");
    let seen = steps.iter().map(|step| {
        let chunk = step.chunks[0];
        (chunk.num_prompt_tokens, chunk.num_output_tokens, step.num_sampled, step.num_running)
    });
    assert_eq!(
        seen.collect::<Vec<_>>(),
        [(64, 0, 0, 1), (36, 0, 1, 1), (0, 1, 1, 1), (0, 1, 1, 1)]
    );
    let ms = |ms| Time::from_start(Duration::from_micros(ms));
    assert_eq!((steps[0].started, steps[0].finished), (Time::ZERO, ms(5640)));
    assert_eq!(steps[1].started, steps[0].finished);
}

/// Breaks its word never to leave the device idle.
#[derive(Debug)]
struct Lazy(Declaration);

impl Scheduler for Lazy {
    fn declares(&self) -> Declaration {
        self.0
    }

    fn schedule(&mut self, _: &mut Step<'_>) {}
}

#[test]
fn a_policy_that_plans_nothing_is_an_error_and_not_silence() {
    let limits = SchedulerConfig::default();
    let policy = stallfree_scheduler::Registry::default().build("sarathi", &limits).expect("known");
    let lazy = Box::new(Lazy(policy.declares()));
    let mut replay = Replay::new(engine_of(lazy, Recorder::default()));
    let outputs = replay.run([(Time::ZERO, greedy(vec![1], 1))]);
    let error = outputs[0].error.as_deref().expect("an error");
    assert!(error.starts_with("scheduler `theirs` plans nothing"), "{error}");
}
