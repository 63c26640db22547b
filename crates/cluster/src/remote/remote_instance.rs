//! An instance in another process, as its server sees it.
//!
//! The server keeps each sequence that runs there, with all that its reader has been given. So what the instance leaves when it is lost
//! goes on elsewhere as if its engine had handed it over; the tokens that were on their way are drawn again, and are the same.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use stallfree_core::{InstanceId, SeqId, SeqMap, lock};
use stallfree_engine::{
    Command, EngineInfo, EngineStats, HandedOver, Health, InstanceChange, Peers as _, PromptLimits,
    SeqOutput, SubmitError,
};
use tokio::sync::{Notify, mpsc};

use super::convert::{self, Load};
use super::message::{self as wire, NewsKind, Order, OrderKind};
use crate::instance::Instance;
use crate::switchboard::{Link, Switchboard};

/// How many orders may wait to be sent. Queues are bounded where requests come in; this many wait only if the instance does not read.
pub(crate) const MAX_ORDERS: usize = 1 << 16;

/// An instance in another process.
pub(crate) struct RemoteInstance {
    pub(crate) id: InstanceId,
    orders: mpsc::Sender<Order>,
    switchboard: Weak<Switchboard>,
    max_waiting: usize,
    state: Mutex<State>,
    /// Set off when it takes no more orders.
    pub(crate) overrun: Notify,
}

struct State {
    /// What runs there; output tokens are those that came here.
    seqs: SeqMap<HandedOver>,
    /// How many sequences it was sent.
    num_sent: u64,
    limits: PromptLimits,
    stats: EngineStats,
    load: Load,
    /// Why it takes nothing: it is not there yet, or lost.
    absent: Option<String>,
    is_draining: bool,
    /// Whether its process is to end.
    leaves: bool,
}

impl RemoteInstance {
    /// Makes the place of an instance that still has to load its model.
    pub(crate) fn new(
        id: InstanceId,
        orders: mpsc::Sender<Order>,
        switchboard: Weak<Switchboard>,
        (limits, max_waiting): (PromptLimits, usize),
    ) -> Self {
        let state = State {
            seqs: SeqMap::default(),
            num_sent: 0,
            limits,
            stats: EngineStats::default(),
            load: Load::default(),
            absent: Some(format!("instance {id} is still loading the model")),
            is_draining: false,
            leaves: false,
        };
        let state = Mutex::new(state);
        Self { id, orders, switchboard, max_waiting, state, overrun: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Takes note that it has loaded its model.
    pub(crate) fn ready(&self, info: &EngineInfo) {
        let mut state = self.lock();
        state.limits.max_model_len = info.max_model_len;
        state.stats.num_blocks = info.kv.num_blocks;
        state.absent = None;
    }

    /// Sends an order; one that finds no room means that the instance is to be given up.
    pub(crate) fn order(&self, kind: OrderKind) {
        if let Err(mpsc::error::TrySendError::Full(_)) =
            self.orders.try_send(Order { kind: Some(kind) })
        {
            self.overrun.notify_one();
        }
    }

    pub(crate) fn report(&self, report: &wire::Report) {
        let mut state = self.lock();
        (state.stats, state.load) = convert::report_in(report);
    }

    /// Takes news; an error says why the instance is lost.
    pub(crate) fn hear(&self, news: NewsKind) -> Result<(), String> {
        match news {
            NewsKind::Output(output) => self.pass_on(*output),
            NewsKind::HandOver(hand_over) => self.hand_over(hand_over),
            NewsKind::Release(lease) => self.release(lease),
            NewsKind::Offer(offer) => self.link().offer(convert::offer_in(offer)),
            NewsKind::TakeBack(seq) => self.link().take_back(SeqId(seq)),
            NewsKind::Account(account) => self.link().report(convert::account_in(&account)),
            NewsKind::Leaving(()) => self.leave(),
            NewsKind::Lost(reason) => return Err(reason),
            NewsKind::Hello(_) | NewsKind::Ready(_) => {
                return Err("it says out of turn who it is".to_owned());
            }
        }
        Ok(())
    }

    fn link(&self) -> Link {
        Link { instance: self.id, switchboard: Weak::clone(&self.switchboard) }
    }

    fn pass_on(&self, output: wire::Output) {
        let id = SeqId(output.seq);
        let output = convert::output_in(output);
        let ends = output.finished.is_some() || output.error.is_some();
        let mut state = self.lock();
        // One that was cancelled may be gone.
        let Some(seq) = state.seqs.get_mut(&id) else { return };
        note(seq, &output);
        seq.output.update(|pending| merge(pending, output));
        if ends {
            let ended = state.seqs.remove(&id);
            drop(state);
            drop(ended);
            self.link().ended(id);
        }
    }

    /// Others take a sequence on.
    fn hand_over(&self, wire::HandOver { seq, kv, progress }: wire::HandOver) {
        let kv = kv.map(convert::lease_in);
        let seq = self.lock().seqs.remove(&SeqId(seq));
        match (seq, kv) {
            (Some(mut seq), kv) => {
                seq.kv = kv.map(Arc::new);
                seq.progress = convert::progress_in(&progress);
                self.link().take(seq, None);
            }
            // Nobody wants it any more.
            (None, Some(kv)) => self.link().release(&kv),
            (None, None) => {}
        }
    }

    fn release(&self, lease: wire::Lease) {
        let lease = convert::lease_in(lease);
        if let Some(seq) = self.lock().seqs.get_mut(&lease.id.seq) {
            seq.kv = None;
        }
        self.link().release(&lease);
    }

    /// Has others go on with what it has: its process is to end.
    fn leave(&self) {
        tracing::info!("Instance {} leaves; others go on with what it has", self.id);
        self.lock().leaves = true;
        if let Some(switchboard) = self.switchboard.upgrade() {
            let draining = InstanceChange { draining: Some(true), ..InstanceChange::default() };
            switchboard.change(self.id, draining);
        }
    }

    /// Gives the instance up: others take on what it had. Later calls change nothing.
    pub(crate) fn lose(&self, reason: &str) {
        let mut state = self.lock();
        let reason = format!("instance {} is lost: {reason}", self.id);
        let (was_there, leaves) = (state.absent.is_none(), state.leaves);
        state.absent = Some(reason.clone());
        let gone = EngineStats {
            num_blocks: 0,
            num_running: 0,
            num_waiting: 0,
            num_used_blocks: 0,
            ..state.stats
        };
        state.stats = gone;
        state.load = Load::default();
        let mut seqs: Vec<HandedOver> = std::mem::take(&mut state.seqs).into_values().collect();
        drop(state);
        if let Some(switchboard) = self.switchboard.upgrade() {
            // Nothing of it is to come back here.
            switchboard.board().directory.lose(self.id);
        }
        if leaves && seqs.is_empty() {
            tracing::info!("Instance {} has left", self.id);
        } else if was_there {
            tracing::error!("{reason}; others take on its {} sequences", seqs.len());
        } else {
            tracing::warn!("{reason}, before it was ready");
        }
        seqs.sort_unstable_by_key(|seq| (seq.arrived, seq.id));
        for seq in seqs {
            self.link().take(seq, Some(&reason));
        }
    }
}

/// Takes note of what a reader is given, so that others can go on from there.
fn note(seq: &mut HandedOver, output: &SeqOutput) {
    let progress = &mut seq.progress;
    if let Some(admission) = output.admission {
        progress.times.scheduled = progress.times.scheduled.or(Some(admission.at));
        progress.num_cached_tokens = admission.num_cached_tokens;
    }
    if let Some(first) = output.tokens.first() {
        progress.times.first_token = progress.times.first_token.or(Some(first.at));
    }
    progress.times.last_token =
        output.tokens.last().map(|last| last.at).or(progress.times.last_token);
    progress.num_prompt_logprobs += output.prompt_logprobs.len();
    seq.output_tokens.extend(output.tokens.iter().map(|token| token.token));
}

/// Adds what has come to what the reader has not taken yet.
fn merge(pending: &mut SeqOutput, output: SeqOutput) {
    let SeqOutput { admission, tokens, prompt_logprobs, finished, error, retry_after } = output;
    pending.admission = pending.admission.or(admission);
    pending.tokens.extend(tokens);
    pending.prompt_logprobs.extend(prompt_logprobs);
    pending.finished = finished;
    pending.error = error;
    pending.retry_after = retry_after;
}

impl Instance for RemoteInstance {
    fn send(&self, command: Command) -> Result<(), Command> {
        let mut state = self.lock();
        if state.absent.is_some() {
            return Err(command);
        }
        let (seq, until) = match command {
            Command::Run { seq, until } => (*seq, until),
            Command::Cancel(id) => {
                self.order(OrderKind::Cancel(id.0));
                return Ok(());
            }
            Command::Release(id) => {
                self.order(OrderKind::Release(id.0));
                return Ok(());
            }
            Command::Renew(ids) => {
                let seqs = ids.iter().map(|id| id.0).collect();
                self.order(OrderKind::Renew(wire::Seqs { seqs }));
                return Ok(());
            }
            Command::Offer(offer) => {
                self.order(OrderKind::Offer(convert::offer_out(&offer)));
                return Ok(());
            }
            Command::Retract(id) => {
                self.order(OrderKind::Retract(id.0));
                return Ok(());
            }
            Command::LeaveAll => {
                self.order(OrderKind::LeaveAll(()));
                return Ok(());
            }
        };
        let run = convert::run_out(&seq, until);
        state.seqs.insert(seq.id, seq);
        state.num_sent += 1;
        self.order(OrderKind::Run(Box::new(run)));
        Ok(())
    }

    fn limits(&self) -> PromptLimits {
        self.lock().limits
    }

    fn check_queue(&self) -> Result<(), SubmitError> {
        let state = self.lock();
        let on_their_way = state.num_sent.saturating_sub(state.load.num_taken);
        let waiting = state.stats.num_waiting + usize::try_from(on_their_way).unwrap_or(usize::MAX);
        match &state.absent {
            Some(reason) => Err(SubmitError::Dead(reason.clone())),
            None if state.is_draining => Err(SubmitError::Draining),
            None if waiting >= self.max_waiting => {
                Err(SubmitError::QueueFull { waiting, retry_after: state.load.retry_after })
            }
            None => Ok(()),
        }
    }

    fn stats(&self) -> EngineStats {
        self.lock().stats.clone()
    }

    fn health(&self) -> Health {
        let state = self.lock();
        match (&state.absent, state.load.late) {
            (Some(reason), _) => Health::Dead(reason.clone()),
            (None, Some(since)) => Health::Late { since },
            (None, None) => Health::Healthy,
        }
    }

    fn drain(&self) {
        self.lock().is_draining = true;
    }
}

impl fmt::Debug for RemoteInstance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteInstance").field("id", &self.id).finish_non_exhaustive()
    }
}
