//! Drives a deployment to serve: an engine a thread, of this process or of another.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use stallfree_core::{Clock, InstanceId, LeaseBook, Request, SeqId, Time};
use stallfree_engine::{
    Engine, EngineHandle, EngineInfo, EngineStats, HandedOver, Health, InstanceChange,
    InstanceStatus, LEASE, Membership, OutputStream, Ringer, SubmitError, ThreadedEngine,
    output_stream,
};

use crate::instance::Instances;
use crate::remote::GateConfig;
use crate::remote::gate::{Deployment, Gate, OpenGate};
use crate::switchboard::{Link, Switchboard};
use crate::{Directory, Dispatcher, Role};

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

/// How a deployment serves.
pub struct ClusterConfig {
    /// Who gets a sequence.
    pub dispatch: Dispatcher,
    /// The deployment's time.
    pub clock: Arc<dyn Clock>,
    /// At most so many sequences wait on each instance, and for any of them; further ones are refused.
    pub max_waiting: usize,
    /// How instances in other processes join, if they may.
    pub gate: Option<GateConfig>,
}

/// Engines that serve as one.
pub struct Cluster {
    switchboard: Arc<Switchboard>,
    instances: Instances,
    info: EngineInfo,
    clock: Arc<dyn Clock>,
    next_seq: AtomicU64,
    max_waiting: usize,
    heartbeat: Option<JoinHandle<()>>,
    _gate: Option<OpenGate>,
}

impl Cluster {
    /// Starts the engines' threads, and waits for as many instances in other processes as the gate is to wait for.
    ///
    /// # Errors
    /// There is no instance, two of them have blocks of different sizes, or the system refuses a thread.
    pub fn spawn(local: Vec<Start>, config: ClusterConfig) -> io::Result<Self> {
        let ClusterConfig { dispatch, clock, max_waiting, gate } = config;
        let roles: Vec<Role> = local.iter().map(|start| start.role).collect();
        let mut infos: Vec<EngineInfo> =
            local.iter().map(|start| start.engine.info().clone()).collect();
        let instances = Instances::default();
        let directory = Directory::new(&roles, dispatch);
        let lines = Box::new(instances.clone());
        let switchboard = Switchboard::new(directory, lines, Arc::clone(&clock));
        for (index, start) in (0..).zip(local) {
            let Start { mut engine, leases, .. } = start;
            let instance = InstanceId(index);
            let peers = Box::new(Link { instance, switchboard: Arc::downgrade(&switchboard) });
            engine.join(Membership { instance, peers, leases });
            let engine = ThreadedEngine::spawn(engine, Arc::clone(&clock), max_waiting)?;
            instances.push(Arc::new(engine));
        }
        let deployment = Deployment {
            switchboard: Arc::downgrade(&switchboard),
            instances: instances.clone(),
            clock: Arc::clone(&clock),
            max_waiting,
        };
        let gate = gate.map(|config| Gate::open(config, deployment)).transpose()?;
        let (open, founders) =
            gate.map_or((None, Vec::new()), |(open, founders)| (Some(open), founders));
        infos.extend(founders);
        let info = combine(&infos).map_err(|reason| io::Error::other(reason.to_owned()))?;
        if let Some(gate) = &open {
            gate.promise(&info);
        }
        let keeper = Arc::downgrade(&switchboard);
        let heartbeat =
            thread::Builder::new().name("stallfree-leases".to_owned()).spawn(move || {
                while let Some(switchboard) = keeper.upgrade() {
                    let pause = look_after(&switchboard);
                    drop(switchboard);
                    thread::park_timeout(pause);
                }
            })?;
        switchboard.set_keeper(heartbeat.thread().clone());
        Ok(Self {
            switchboard,
            instances,
            info,
            clock,
            next_seq: AtomicU64::new(0),
            max_waiting,
            heartbeat: Some(heartbeat),
            _gate: open,
        })
    }
}

/// Keeps what is wanted and refuses what has waited too long; returns until when there is nothing to do.
fn look_after(switchboard: &Switchboard) -> Duration {
    switchboard.renew_leases();
    switchboard.look_after();
    let timeout = switchboard.next_timeout().map(|at| at - switchboard.now());
    timeout.map_or(LEASE / 3, |timeout| timeout.min(LEASE / 3))
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
        let mut refused = SubmitError::Dead("every instance is lost".to_owned());
        let mut takes = false;
        for (instance, begins) in self.instances.all().iter().zip(self.switchboard.begin_requests())
        {
            instance.limits().check(&request.prompt)?;
            // Room where nobody begins is of no use: decode instances get what was prefilled, however long the queue before that.
            match instance.check_queue() {
                Ok(()) => takes |= begins,
                Err(error) if begins => refused = error,
                Err(_) => {}
            }
        }
        if !takes {
            return Err(refused);
        }
        let waiting = self.switchboard.num_waiting();
        if waiting >= self.max_waiting {
            return Err(SubmitError::QueueFull { waiting, retry_after: Duration::from_secs(1) });
        }
        self.switchboard.check_slo(&request)?;
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
        let mut sum: EngineStats =
            self.instances.all().iter().map(|instance| instance.stats()).sum();
        sum.num_waiting += self.switchboard.num_waiting();
        sum
    }

    /// The deployment is as healthy as the instance that has been late for longest, and dead once all are.
    fn health(&self) -> Health {
        let mut late = Duration::ZERO;
        let mut dead = None;
        let mut lives = false;
        for instance in self.instances.all() {
            match instance.health() {
                Health::Healthy => lives = true,
                Health::Late { since } => (lives, late) = (true, late.max(since)),
                Health::Dead(reason) => dead = Some(reason),
            }
        }
        match dead {
            Some(reason) if !lives => Health::Dead(reason),
            _ if late > Duration::ZERO => Health::Late { since: late },
            _ => Health::Healthy,
        }
    }

    fn info(&self) -> &EngineInfo {
        &self.info
    }

    fn now(&self) -> Time {
        self.clock.now()
    }

    fn drain(&self) {
        self.instances.all().iter().for_each(|instance| instance.drain());
    }

    fn set_ringer(&self, ringer: Ringer) {
        self.instances.all().iter().for_each(|instance| instance.set_ringer(Arc::clone(&ringer)));
    }

    fn instances(&self) -> Vec<InstanceStatus> {
        self.switchboard.instances()
    }

    fn change_instance(&self, id: InstanceId, change: InstanceChange) -> Option<InstanceStatus> {
        self.switchboard.change(id, change)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(heartbeat) = self.heartbeat.take() {
            // It ends by itself, once the switchboard is gone.
            heartbeat.thread().unpark();
        }
        // Here, and not on the thread of an engine that would wait for itself: it may hold the switchboard last.
        drop(self.instances.take());
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster").field("info", &self.info).finish_non_exhaustive()
    }
}

impl fmt::Debug for ClusterConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClusterConfig").field("dispatch", &self.dispatch).finish_non_exhaustive()
    }
}
