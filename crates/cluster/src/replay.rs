//! Drives a deployment in virtual time: for simulations and tests.

use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use stallfree_core::{Clock, InstanceId, Request, SeqId, Time, lock};
use stallfree_engine::{
    Command, Engine, EngineStats, HandedOver, InstanceChange, LEASE, Membership, OutputStream,
    SeqOutput, VirtualTime, Wake, output_stream, unpark_this_thread,
};

use crate::switchboard::{Lines, Link, Switchboard};
use crate::{Directory, Dispatcher, Role, Start};

/// Engines on one virtual clock.
#[derive(Debug)]
pub struct ClusterReplay {
    engines: Vec<(Engine, Wake)>,
    mail: Mail,
    switchboard: Arc<Switchboard>,
    now: VirtualClock,
    next_renewal: Time,
    next_seq: u64,
}

/// What the time is, for all.
#[derive(Clone, Debug, Default)]
struct VirtualClock(Arc<Mutex<Time>>);

impl VirtualClock {
    fn set(&self, now: Time) {
        *lock(&self.0) = now;
    }
}

impl Clock for VirtualClock {
    fn now(&self) -> Time {
        *lock(&self.0)
    }
}

/// Commands on their way, for each engine; none for one that is lost.
#[derive(Clone, Debug)]
struct Mail(Arc<Mutex<Vec<Option<Vec<Command>>>>>);

impl Mail {
    fn lock(&self) -> MutexGuard<'_, Vec<Option<Vec<Command>>>> {
        lock(&self.0)
    }
}

impl Lines for Mail {
    fn send(&self, to: InstanceId, command: Command) -> Result<(), Command> {
        match self.lock().get_mut(to.0 as usize) {
            Some(Some(commands)) => {
                commands.push(command);
                Ok(())
            }
            _ => Err(command),
        }
    }
}

impl ClusterReplay {
    /// Starts at time zero.
    #[must_use]
    pub fn new(instances: Vec<Start>, dispatcher: Dispatcher) -> Self {
        let roles: Vec<Role> = instances.iter().map(|start| start.role).collect();
        let mail = Mail(Arc::new(Mutex::new(roles.iter().map(|_| Some(Vec::new())).collect())));
        let directory = Directory::new(&roles, dispatcher);
        let now = VirtualClock::default();
        let clock = Arc::new(now.clone());
        let switchboard = Switchboard::new(directory, Box::new(mail.clone()), clock);
        let join = |(index, start): (u32, Start)| {
            let Start { mut engine, leases, .. } = start;
            let instance = InstanceId(index);
            let peers = Box::new(Link { instance, switchboard: Arc::downgrade(&switchboard) });
            engine.join(Membership { instance, peers, leases });
            engine.set_waker(unpark_this_thread());
            (engine, Wake::Idle)
        };
        let engines = (0..).zip(instances).map(join).collect();
        let next_renewal = Time::ZERO + LEASE / 3;
        Self { engines, mail, switchboard, now, next_renewal, next_seq: 0 }
    }

    /// Returns the current moment.
    #[must_use]
    pub fn now(&self) -> Time {
        self.now.now()
    }

    /// Returns the engines, in order.
    pub fn engines(&self) -> impl Iterator<Item = &Engine> {
        self.engines.iter().map(|(engine, _)| engine)
    }

    /// Changes an instance; without effect if there is no such instance.
    pub fn change_instance(&mut self, id: InstanceId, change: InstanceChange) {
        self.switchboard.change(id, change);
    }

    /// Submits a request now. Dropping the stream cancels it.
    pub fn submit(&mut self, request: Request) -> OutputStream {
        self.submit_as_of(self.now(), request)
    }

    /// Submits a request that came at `arrived`, see [`VirtualTime`].
    pub fn submit_as_of(&mut self, arrived: Time, request: Request) -> OutputStream {
        let id = SeqId(self.next_seq);
        self.next_seq += 1;
        let canceller = Arc::downgrade(&self.switchboard);
        let (output, stream) = output_stream(id, move || {
            if let Some(switchboard) = canceller.upgrade() {
                switchboard.cancel(id);
            }
        });
        match self.switchboard.check_slo(&request) {
            Ok(()) => {
                self.switchboard.route(HandedOver::new(id, request, arrived, output), None);
            }
            Err(error) => output.refuse(&error.to_string(), Duration::from_secs(1)),
        }
        stream
    }

    /// Lets every engine with something to do take a step, then moves on to the next event, but no further than `limit`. Returns
    /// whether anything is left to do.
    pub fn step(&mut self, limit: Time) -> bool {
        let now = self.now();
        if now >= self.next_renewal {
            self.switchboard.renew_leases();
            self.next_renewal = now + LEASE / 3;
        }
        if self.switchboard.next_timeout().is_some_and(|at| at <= now) {
            self.switchboard.look_after();
        }
        for (index, (engine, wake)) in self.engines.iter_mut().enumerate() {
            let commands = match &mut self.mail.lock()[index] {
                Some(commands) => std::mem::take(commands),
                None => continue,
            };
            let is_due = match wake {
                Wake::At(at) => *at <= now,
                Wake::Output => true,
                Wake::Idle => false,
            };
            if commands.is_empty() && !is_due {
                continue;
            }
            *wake = engine.step(now, commands);
            if engine.dead().is_some() {
                let unread = self.mail.lock()[index].take();
                let lost = unread.into_iter().flatten();
                engine.step(now, lost);
                *wake = Wake::Idle;
            }
        }
        let has_mail = self.mail.lock().iter().flatten().any(|commands| !commands.is_empty());
        if has_mail {
            return true;
        }
        let at = |(_, wake): &(Engine, Wake)| match wake {
            Wake::At(at) => Some(*at),
            Wake::Output | Wake::Idle => None,
        };
        if self.engines.iter().any(|(_, wake)| *wake == Wake::Output) {
            // Real executors: time stands still while they compute.
            thread::park();
            return true;
        }
        let events = self.engines.iter().filter_map(at).chain(self.switchboard.next_timeout());
        let Some(next) = events.min() else { return false };
        self.now.set(next.min(self.next_renewal).min(limit).max(now));
        true
    }

    /// Lets the engines run until `limit`, which is the current moment afterwards.
    pub fn run_until(&mut self, limit: Time) {
        while self.step(limit) && self.now() < limit {}
        self.now.set(self.now().max(limit));
    }

    /// Runs requests, each arriving at its moment, until all have ended. Returns their outputs in the order given.
    pub fn run(&mut self, arrivals: &[(Time, Request)]) -> Vec<SeqOutput> {
        let mut order: Vec<usize> = (0..arrivals.len()).collect();
        order.sort_by_key(|&index| arrivals[index].0);
        let mut streams = Vec::with_capacity(arrivals.len());
        for index in order {
            let (at, request) = &arrivals[index];
            if *at > self.now() {
                self.run_until(*at);
            }
            streams.push((index, self.submit(request.clone())));
        }
        while self.step(Time::MAX) {}
        streams.sort_by_key(|(index, _)| *index);
        streams.into_iter().map(|(_, mut stream)| stream.take()).collect()
    }
}

impl VirtualTime for ClusterReplay {
    fn now(&self) -> Time {
        self.now()
    }

    fn submit_as_of(&mut self, arrived: Time, request: Request) -> OutputStream {
        self.submit_as_of(arrived, request)
    }

    fn step(&mut self, limit: Time) -> bool {
        self.step(limit)
    }

    fn run_until(&mut self, limit: Time) {
        self.run_until(limit);
    }

    fn num_finished(&self) -> u64 {
        self.engines().map(Engine::num_finished).sum()
    }

    fn stats(&self) -> EngineStats {
        let mut sum: EngineStats = self.engines().map(Engine::stats).cloned().sum();
        sum.num_waiting += self.switchboard.num_waiting();
        sum
    }
}
