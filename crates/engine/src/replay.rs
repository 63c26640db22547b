//! Drives an engine in virtual time: the driver for simulations and tests.
//!
//! Time stands still while the engine steps and then jumps to the next event, so that a day of traffic takes as long as its
//! planning, and the same arrivals give the same outputs at the same moments. With an executor that cannot tell ahead when
//! it is done, it waits for it, and time does not pass meanwhile.

use std::sync::{Arc, Mutex};
use std::thread;

use stallfree_core::{Request, SeqId, Time, lock};

use crate::output::unpark_this_thread;
use crate::{Command, Engine, OutputStream, SeqOutput, Wake, output_stream};

/// An engine and its virtual time.
#[derive(Debug)]
pub struct Replay {
    engine: Engine,
    now: Time,
    next_seq: u64,
    inbox: Arc<Mutex<Vec<Command>>>,
}

impl Replay {
    /// Starts at time zero.
    #[must_use]
    pub fn new(mut engine: Engine) -> Self {
        engine.set_waker(unpark_this_thread());
        Self { engine, now: Time::ZERO, next_seq: 0, inbox: Arc::default() }
    }

    /// Returns the current moment.
    #[must_use]
    pub const fn now(&self) -> Time {
        self.now
    }

    /// Returns the engine.
    #[must_use]
    pub const fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Submits a request now. Dropping the stream cancels it at the next step.
    pub fn submit(&mut self, request: Request) -> OutputStream {
        self.submit_as_of(self.now, request)
    }

    /// Submits a request that came at `arrived`. A step moves time on to the next event, so that who answers to the step's outputs
    /// does so at a moment that is over.
    pub fn submit_as_of(&mut self, arrived: Time, request: Request) -> OutputStream {
        let id = SeqId(self.next_seq);
        self.next_seq += 1;
        let inbox = Arc::clone(&self.inbox);
        let (output, stream) = output_stream(id, move || send(&inbox, Command::Cancel(id)));
        send(&self.inbox, Command::run(id, request, arrived, output));
        stream
    }

    /// Takes one step and moves on to the next event, but no further than `limit`. Returns whether anything is left to do.
    pub fn step(&mut self, limit: Time) -> bool {
        let commands = std::mem::take(&mut *lock(&self.inbox));
        match self.engine.step(self.now, commands) {
            Wake::At(at) => self.now = at.min(limit).max(self.now),
            Wake::Output => thread::park(),
            Wake::Idle => return false,
        }
        true
    }

    /// Lets the engine run until `limit`, which is the current moment afterwards.
    pub fn run_until(&mut self, limit: Time) {
        while self.step(limit) && self.now < limit {}
        self.now = self.now.max(limit);
    }

    /// Runs requests, each arriving at its moment, until all have ended. Returns their outputs in the order given.
    pub fn run(&mut self, arrivals: impl IntoIterator<Item = (Time, Request)>) -> Vec<SeqOutput> {
        let mut arrivals: Vec<(usize, (Time, Request))> =
            arrivals.into_iter().enumerate().collect();
        arrivals.sort_by_key(|(_, (at, _))| *at);
        let mut streams = Vec::with_capacity(arrivals.len());
        for (index, (at, request)) in arrivals {
            if at > self.now {
                self.run_until(at);
            }
            streams.push((index, self.submit(request)));
        }
        while self.step(Time::MAX) {}
        streams.sort_by_key(|(index, _)| *index);
        streams.into_iter().map(|(_, mut stream)| stream.take()).collect()
    }
}

fn send(inbox: &Mutex<Vec<Command>>, command: Command) {
    lock(inbox).push(command);
}
