//! Carries out what the directory decides.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};
use std::thread::Thread;
use std::time::Duration;

use stallfree_core::{Clock, InstanceId, KvLease, KvOffer, Request, SeqId, Time, lock};
use stallfree_engine::{
    Command, HandedOver, InstanceChange, InstanceStatus, Peers, Report, SubmitError,
};

use crate::directory::Place;
use crate::waiting::{Waiting, WaitingList};
use crate::{Directory, SeqView};

/// After so long an instance's next report has what waits tried again, whatever it says: predictions become certain as time goes by.
const RETRY: Duration = Duration::from_millis(50);

/// The way to the engines.
pub(crate) trait Lines: Send + Sync {
    /// Sends a command; it comes back if the engine is lost.
    fn send(&self, to: InstanceId, command: Command) -> Result<(), Command>;
}

/// The directory and the way to the engines. The directory stays locked while a command is sent, so that a cancellation never
/// overtakes the sequence that it is for.
pub(crate) struct Switchboard {
    board: Mutex<Board>,
    lines: Box<dyn Lines>,
    clock: Arc<dyn Clock>,
    /// Who looks after what waits here.
    keeper: OnceLock<Thread>,
}

#[derive(Debug)]
pub(crate) struct Board {
    pub(crate) directory: Directory,
    waiting: WaitingList,
    /// When these were tried last.
    tried: Time,
}

/// Why a sequence changes its place.
#[derive(Clone, Copy, Debug)]
struct Reason<'a> {
    /// What its reader hears if there is none.
    text: &'a str,
    /// Whether the instance that had it is lost.
    rescued: bool,
}

impl Switchboard {
    pub(crate) fn new(
        directory: Directory,
        lines: Box<dyn Lines>,
        clock: Arc<dyn Clock>,
    ) -> Arc<Self> {
        let board =
            Mutex::new(Board { directory, waiting: WaitingList::default(), tried: Time::ZERO });
        Arc::new(Self { board, lines, clock, keeper: OnceLock::new() })
    }

    pub(crate) fn board(&self) -> MutexGuard<'_, Board> {
        lock(&self.board)
    }

    /// Names the thread that calls [`look_after`](Self::look_after).
    pub(crate) fn set_keeper(&self, keeper: Thread) {
        // There is one.
        drop(self.keeper.set(keeper));
    }

    /// Gives a sequence to an instance; `lost` says why another one left it, if it is lost.
    pub(crate) fn route(&self, seq: HandedOver, lost: Option<&str>) {
        let text = lost.unwrap_or("every instance is lost");
        let reason = Reason { text, rescued: lost.is_some() };
        let mut board = self.board();
        // One that comes makes no room, unless it leaves an instance.
        let makes_room = board.directory.has(seq.id);
        if let Some(seq) = self.settle(&mut board, seq, reason) {
            let view = SeqView::of(&seq);
            board.waiting.push(Waiting { seq, view, since: self.clock.now() });
            if let Some(keeper) = self.keeper.get() {
                keeper.unpark();
            }
        }
        if makes_room {
            self.settle_waiting(&mut board);
        }
    }

    /// Gives a sequence to an instance, or ends it; returns it if it has to wait.
    fn settle(
        &self,
        board: &mut Board,
        mut seq: HandedOver,
        reason: Reason<'_>,
    ) -> Option<HandedOver> {
        let now = self.clock.now();
        let directory = &mut board.directory;
        let (mut text, mut rescued) = (reason.text.to_owned(), reason.rescued);
        loop {
            let next = directory.next(seq.id);
            let place = directory.place(&seq, rescued, now);
            let goes_there = |next: &InstanceId| match place {
                Place::Instance(to, _) => to == *next && seq.kv.is_some(),
                Place::Nowhere | Place::Wait | Place::Lost => false,
            };
            if let Some(next) = next.filter(|next| !goes_there(next)) {
                drop(self.lines.send(next, Command::Retract(seq.id)));
            }
            match place {
                Place::Nowhere => {
                    if let Some(lease) = seq.kv {
                        self.free(directory, &lease);
                    }
                    return None;
                }
                Place::Wait => return Some(seq),
                Place::Lost => {
                    // Without its KV there may still be a place for it.
                    let Some(lease) = seq.kv.take() else {
                        seq.output.fail(&text);
                        return None;
                    };
                    self.free(directory, &lease);
                }
                Place::Instance(to, until) => {
                    match self.lines.send(to, Command::Run { seq: Box::new(seq), until }) {
                        Err(Command::Run { seq: back, .. }) => seq = *back,
                        Ok(()) | Err(_) => return None,
                    }
                    directory.lose(to);
                    text = format!("instance {to} is lost");
                }
            }
            rescued = false;
        }
    }

    /// Tries again what waits: in the order of the queues, those last whose deadline is over. Refuses what has waited too long.
    ///
    /// The more waits, the longer that takes: it is for when there is room for a prompt that was not there before.
    fn settle_waiting(&self, board: &mut Board) {
        if board.waiting.len() == 0 {
            return;
        }
        let now = self.clock.now();
        board.tried = now;
        let (order, timeout) = {
            let dispatcher = board.directory.dispatcher();
            (dispatcher.order, dispatcher.timeout)
        };
        let mut waiting: Vec<Option<Waiting>> =
            board.waiting.take().into_iter().map(Some).collect();
        let steps = board.directory.prefill_steps();
        let mut queue: Vec<usize> = (0..waiting.len()).collect();
        queue.sort_by_cached_key(|&place| {
            waiting[place].as_ref().map(|Waiting { view, seq, .. }| {
                let prefill_time = steps.prefill_time(0, view.num_uncomputed);
                let is_late = view.deadline().is_some_and(|deadline| now + prefill_time > deadline);
                (is_late, order.rank(&view.standing(prefill_time)), view.arrived, seq.id)
            })
        });
        for place in queue {
            let is_over = |waiting: &mut Waiting| now - waiting.since >= timeout;
            let directory = &mut board.directory;
            let found = waiting[place]
                .take_if(|waiting| is_over(waiting) || !directory.waits(&waiting.view, now));
            let Some(mut found) = found else { continue };
            if is_over(&mut found) {
                directory.ended(found.seq.id, now);
                let reason =
                    format!("no instance could take the request for {} s", timeout.as_secs());
                found.seq.output.refuse(&reason, timeout);
                continue;
            }
            let Waiting { seq, view, since } = found;
            let reason = Reason { text: "every instance is lost", rescued: false };
            let seq = self.settle(board, seq, reason);
            waiting[place] = seq.map(|seq| Waiting { seq, view, since });
        }
        waiting.into_iter().flatten().for_each(|waiting| board.waiting.push(waiting));
    }

    /// Tries again what waits if that can change anything now that an instance has told how it is.
    fn settle_if_room(&self, board: &mut Board, instance: InstanceId) {
        let Some(least) = board.waiting.least() else { return };
        let now = self.clock.now();
        if now - board.tried >= RETRY || board.directory.may_take(instance, least, now) {
            self.settle_waiting(board);
        }
    }

    pub(crate) fn now(&self) -> Time {
        self.clock.now()
    }

    /// Looks after what waits.
    pub(crate) fn look_after(&self) {
        self.settle_waiting(&mut self.board());
    }

    /// Returns when something will have waited too long.
    pub(crate) fn next_timeout(&self) -> Option<Time> {
        let board = self.board();
        let timeout = board.directory.dispatcher().timeout;
        board.waiting.next_timeout(timeout)
    }

    /// Returns how many sequences no instance has yet.
    pub(crate) fn num_waiting(&self) -> usize {
        self.board().waiting.len()
    }

    /// Checks that a request that comes now can have its first token in time, if that is to be checked.
    ///
    /// # Errors
    /// It cannot.
    pub(crate) fn check_slo(&self, request: &Request) -> Result<(), SubmitError> {
        let board = self.board();
        let Some(slo) = request.slo.ttft.filter(|_| board.directory.dispatcher().early_rejection)
        else {
            return Ok(());
        };
        let now = self.clock.now();
        let num_tokens = request.prompt.len();
        let view = SeqView {
            num_tokens,
            num_uncomputed: num_tokens,
            priority: request.priority,
            arrived: now,
            slo: request.slo,
            ..SeqView::default()
        };
        let before: Vec<SeqView> = board.waiting.views().collect();
        let predicted = board.directory.predict_ttft(&view, &before, now);
        if predicted <= slo {
            return Ok(());
        }
        Err(SubmitError::TooLate { predicted, slo, retry_after: predicted - slo })
    }

    fn free(&self, directory: &mut Directory, lease: &KvLease) {
        directory.release(lease);
        // A lost engine keeps nothing.
        drop(self.lines.send(lease.instance, Command::Release(lease.id.seq)));
    }

    pub(crate) fn begin_requests(&self) -> Vec<bool> {
        self.board().directory.begin_requests()
    }

    fn offer(&self, offer: KvOffer) {
        let mut board = self.board();
        if let Some(next) = board.directory.offer(&offer, self.clock.now()) {
            // One that is lost shows when the sequence comes.
            drop(self.lines.send(next, Command::Offer(offer)));
        }
    }

    fn take_back(&self, id: SeqId) {
        let mut board = self.board();
        if let Some(next) = board.directory.take_back(id) {
            drop(self.lines.send(next, Command::Retract(id)));
        }
    }

    pub(crate) fn cancel(&self, id: SeqId) {
        let mut board = self.board();
        match board.directory.cancel(id) {
            // What a lost engine had comes back and is dropped then.
            Some(instance) => drop(self.lines.send(instance, Command::Cancel(id))),
            // If it waits here, nobody has to hear of it.
            None => {
                if board.waiting.remove(id).is_some() {
                    board.directory.ended(id, self.clock.now());
                }
            }
        }
    }

    /// Returns how the instances are.
    pub(crate) fn instances(&self) -> Vec<InstanceStatus> {
        self.board().directory.instances()
    }

    /// Changes an instance, and returns how it is from now on; `None` if there is no such instance.
    pub(crate) fn change(&self, id: InstanceId, change: InstanceChange) -> Option<InstanceStatus> {
        let mut board = self.board();
        if board.directory.change(id, change) {
            // A lost one has nothing to leave.
            drop(self.lines.send(id, Command::LeaveAll));
        }
        self.settle_waiting(&mut board);
        board.directory.instances().into_iter().find(|status| status.instance == id)
    }

    /// Takes note that an instance is there.
    pub(crate) fn enter(&self, instance: InstanceId) {
        let mut board = self.board();
        board.directory.enter(instance);
        self.settle_waiting(&mut board);
    }

    /// Lets instances keep what others still want.
    pub(crate) fn renew_leases(&self) {
        let board = self.board();
        for (instance, seqs) in board.directory.leases() {
            drop(self.lines.send(instance, Command::Renew(seqs)));
        }
    }
}

impl fmt::Debug for Switchboard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Switchboard").field("board", &self.board).finish_non_exhaustive()
    }
}

/// The others, as one instance sees them.
pub(crate) struct Link {
    pub(crate) instance: InstanceId,
    pub(crate) switchboard: Weak<Switchboard>,
}

impl Peers for Link {
    fn take(&mut self, mut seq: HandedOver, lost: Option<&str>) {
        // Without a deployment the reader hears that the engine is gone.
        let Some(switchboard) = self.switchboard.upgrade() else { return };
        if let Some(reason) = lost {
            tracing::warn!(instance = %self.instance, seq = %seq.id, reason, "taking on what a lost instance leaves");
            let mut board = switchboard.board();
            board.directory.lose(self.instance);
            if let Some(lease) = seq.kv.take() {
                switchboard.free(&mut board.directory, &lease);
            }
            drop(board);
            seq.progress.num_preemptions += 1;
        }
        switchboard.route(seq, lost);
    }

    fn release(&mut self, lease: &KvLease) {
        if let Some(switchboard) = self.switchboard.upgrade() {
            switchboard.free(&mut switchboard.board().directory, lease);
        }
    }

    fn ended(&mut self, seq: SeqId) {
        if let Some(switchboard) = self.switchboard.upgrade() {
            let mut board = switchboard.board();
            // What an instance has to spare for prompts beside its decodes it tells itself.
            if board.directory.ended(seq, switchboard.clock.now()) {
                switchboard.settle_waiting(&mut board);
            }
        }
    }

    fn report(&mut self, report: Report) {
        if let Some(switchboard) = self.switchboard.upgrade() {
            let mut board = switchboard.board();
            let has_prefilled = !report.first_tokens.is_empty();
            board.directory.hear(self.instance, report);
            match has_prefilled {
                true => switchboard.settle_waiting(&mut board),
                false => switchboard.settle_if_room(&mut board, self.instance),
            }
        }
    }

    fn offer(&mut self, offer: KvOffer) {
        if let Some(switchboard) = self.switchboard.upgrade() {
            switchboard.offer(offer);
        }
    }

    fn take_back(&mut self, seq: SeqId) {
        if let Some(switchboard) = self.switchboard.upgrade() {
            switchboard.take_back(seq);
        }
    }
}

#[cfg(test)]
mod tests;
