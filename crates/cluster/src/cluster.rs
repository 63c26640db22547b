//! Drives a deployment to serve: an engine a thread.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use stallfree_core::{Clock, InstanceId, LeaseBook, Request, SeqId, Time};
use stallfree_engine::{
    Command, Engine, EngineHandle, EngineInfo, EngineStats, HandedOver, Health, LEASE, Membership,
    OutputStream, SubmitError, ThreadedEngine, output_stream,
};

use crate::switchboard::{Lines, Link, Switchboard};
use crate::{Directory, Dispatch, Role};

/// An instance to be.
#[derive(Debug)]
pub struct Start {
    /// Its engine.
    pub engine: Engine,
    /// What it is for.
    pub role: Role,
    /// Where its executor looks before it gives KV away.
    pub leases: LeaseBook,
}

/// Engines that serve as one.
pub struct Cluster {
    switchboard: Arc<Switchboard>,
    engines: Engines,
    info: EngineInfo,
    next_seq: AtomicU64,
    heartbeat: Option<JoinHandle<()>>,
}

/// Set once all have started; until then there is nothing to send.
type Engines = Arc<OnceLock<Vec<ThreadedEngine>>>;

struct Threads(Engines);

impl Lines for Threads {
    fn send(&self, to: InstanceId, command: Command) -> Result<(), Command> {
        match self.0.get().and_then(|engines| engines.get(to.0 as usize)) {
            Some(engine) => engine.send(command),
            None => Err(command),
        }
    }
}

impl Cluster {
    /// Starts the engines' threads. At most `max_waiting` sequences wait on each; further ones are refused.
    ///
    /// # Errors
    /// There is no instance, two of them have blocks of different sizes, or the system refuses a thread.
    pub fn spawn(
        instances: Vec<Start>,
        dispatch: Box<dyn Dispatch>,
        clock: &Arc<dyn Clock>,
        max_waiting: usize,
    ) -> io::Result<Self> {
        let roles: Vec<Role> = instances.iter().map(|start| start.role).collect();
        let infos: Vec<EngineInfo> =
            instances.iter().map(|start| start.engine.info().clone()).collect();
        let info = combine(&infos).map_err(|reason| io::Error::other(reason.to_owned()))?;
        let engines: Engines = Arc::default();
        let directory = Directory::new(&roles, dispatch);
        let switchboard = Switchboard::new(directory, Box::new(Threads(Arc::clone(&engines))));
        let spawn = |(index, start): (u32, Start)| {
            let Start { mut engine, leases, .. } = start;
            let instance = InstanceId(index);
            let peers = Box::new(Link { instance, switchboard: Arc::downgrade(&switchboard) });
            engine.join(Membership { instance, peers, leases });
            ThreadedEngine::spawn(engine, Arc::clone(clock), max_waiting)
        };
        let started: io::Result<Vec<_>> = (0..).zip(instances).map(spawn).collect();
        // The only one to set it.
        drop(engines.set(started?));
        let keeper = Arc::downgrade(&switchboard);
        let heartbeat =
            thread::Builder::new().name("stallfree-leases".to_owned()).spawn(move || {
                while let Some(switchboard) = keeper.upgrade() {
                    switchboard.renew_leases();
                    drop(switchboard);
                    thread::park_timeout(LEASE / 3);
                }
            })?;
        let next_seq = AtomicU64::new(0);
        Ok(Self { switchboard, engines, info, next_seq, heartbeat: Some(heartbeat) })
    }

    fn engines(&self) -> &[ThreadedEngine] {
        self.engines.get().map_or(&[], Vec::as_slice)
    }
}

/// Returns what is true of all instances: they have blocks of one size.
fn combine(infos: &[EngineInfo]) -> Result<EngineInfo, &'static str> {
    let Some((first, others)) = infos.split_first() else {
        return Err("a deployment needs an instance");
    };
    let mut info = first.clone();
    for other in others {
        if other.kv.block_size != info.kv.block_size {
            return Err("instances that hand KV over need the same block size");
        }
        info.kv.num_blocks += other.kv.num_blocks;
        info.max_model_len = info.max_model_len.min(other.max_model_len);
        info.enable_prefix_caching |= other.enable_prefix_caching;
        if other.scheduler != info.scheduler {
            info.scheduler = format!("{}, {}", info.scheduler, other.scheduler);
        }
    }
    Ok(info)
}

impl EngineHandle for Cluster {
    fn submit(&self, request: Request) -> Result<OutputStream, SubmitError> {
        let mut refused = SubmitError::Dead("no instance has started".to_owned());
        let mut takes = false;
        for (engine, begins) in self.engines().iter().zip(self.switchboard.begin_requests()) {
            engine.check(&request.prompt)?;
            // Room where nobody begins is of no use: decode instances get what was prefilled, however long the queue before that.
            match engine.check_queue() {
                Ok(()) => takes |= begins,
                Err(error) if begins => refused = error,
                Err(_) => {}
            }
        }
        if !takes {
            return Err(refused);
        }
        let id = SeqId(self.next_seq.fetch_add(1, Ordering::Relaxed));
        let canceller = Arc::downgrade(&self.switchboard);
        let (output, stream) = output_stream(id, move || {
            if let Some(switchboard) = canceller.upgrade() {
                switchboard.cancel(id);
            }
        });
        self.switchboard.route(HandedOver::new(id, request, self.now(), output), None);
        Ok(stream)
    }

    fn stats(&self) -> EngineStats {
        let mut sum = EngineStats::default();
        for stats in self.engines().iter().map(EngineHandle::stats) {
            sum.num_running += stats.num_running;
            sum.num_waiting += stats.num_waiting;
            sum.num_used_blocks += stats.num_used_blocks;
            sum.num_blocks += stats.num_blocks;
            sum.prompt_tokens += stats.prompt_tokens;
            sum.generation_tokens += stats.generation_tokens;
            sum.prefix_cache_queries += stats.prefix_cache_queries;
            sum.prefix_cache_hits += stats.prefix_cache_hits;
            sum.num_preemptions += stats.num_preemptions;
            sum.num_steps += stats.num_steps;
        }
        sum
    }

    /// The deployment is as healthy as the instance that has been late for longest, and dead once all are.
    fn health(&self) -> Health {
        let mut late = Duration::ZERO;
        let mut dead = None;
        let mut num_dead = 0;
        for engine in self.engines() {
            match engine.health() {
                Health::Healthy => {}
                Health::Late { since } => late = late.max(since),
                Health::Dead(reason) => {
                    num_dead += 1;
                    dead = Some(reason);
                }
            }
        }
        match dead {
            Some(reason) if num_dead == self.engines().len() => Health::Dead(reason),
            _ if late > Duration::ZERO => Health::Late { since: late },
            _ => Health::Healthy,
        }
    }

    fn info(&self) -> &EngineInfo {
        &self.info
    }

    fn now(&self) -> Time {
        self.engines().first().map_or(Time::ZERO, EngineHandle::now)
    }

    fn drain(&self) {
        self.engines().iter().for_each(EngineHandle::drain);
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(heartbeat) = self.heartbeat.take() {
            // It ends by itself, once the switchboard is gone.
            heartbeat.thread().unpark();
        }
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster").field("info", &self.info).finish_non_exhaustive()
    }
}
