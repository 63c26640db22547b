//! What an instance has for its server: outputs and hand-overs, in the order in which its engine told them, a message a step.

use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::task::{Context, Poll, Waker};

use stallfree_core::{KvLease, KvOffer, SeqId, SeqMap, lock};
use stallfree_engine::{
    EngineHandle as _, HandedOver, Health, OutputSender, OutputStream, Peers, SeqOutput,
    ThreadedEngine, output_stream,
};
use tokio::sync::{Notify, mpsc};

use super::BEAT;
use super::convert::{self, Load};
use super::message::{FromInstance, HandOver, News, NewsKind, Report};

/// What an instance has for its server.
#[derive(Debug, Default)]
pub(crate) struct Uplink {
    state: Mutex<State>,
    /// Set off when there is something to send.
    told: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// The readers' ends of what runs here. All of them are looked at after a step, so that nobody has to be woken.
    streams: SeqMap<OutputStream>,
    news: Vec<News>,
    /// How many sequences came.
    num_taken: u64,
    engine: Option<Weak<ThreadedEngine>>,
    /// Whether the engine was told to leave everything to others.
    has_left: bool,
    /// Why there will be nothing more.
    ended: Option<String>,
}

impl Uplink {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Makes a sequence's output go up from here.
    pub(crate) fn open(&self, id: SeqId) -> OutputSender {
        let (output, stream) = output_stream(id, || ());
        let mut state = self.lock();
        state.num_taken += 1;
        state.streams.insert(id, stream);
        output
    }

    /// Tells the server something.
    pub(crate) fn tell(&self, news: NewsKind) {
        self.lock().news.push(News { kind: Some(news) });
        self.told.notify_one();
    }

    /// Reports on this engine from now on.
    pub(crate) fn report_on(&self, engine: &Arc<ThreadedEngine>) {
        self.lock().engine = Some(Arc::downgrade(engine));
    }

    /// Takes note that the engine was told to leave everything to others.
    pub(crate) fn leave_all(&self) {
        self.lock().has_left = true;
    }

    /// Returns whether others have all that was here.
    pub(crate) fn is_empty(&self) -> bool {
        let state = self.lock();
        let engine = state.engine.as_ref().and_then(Weak::upgrade);
        let is_empty = state.has_left && state.streams.is_empty();
        drop(state);
        // Blocks that are kept until they are fetched count among the used ones.
        let stats = engine.map(|engine| engine.stats()).unwrap_or_default();
        let rest = (stats.num_running, stats.num_waiting, stats.num_used_blocks);
        is_empty && rest == (0, 0, 0)
    }

    /// Ends: the server is told why, after everything else.
    pub(crate) fn end(&self, reason: &str) {
        self.lock().ended.get_or_insert_with(|| reason.to_owned());
        self.told.notify_one();
    }

    /// Takes all that there is to send; and why it is the last, if it is.
    fn drain(&self) -> (Vec<News>, Option<Report>, Option<String>) {
        let (engine, num_taken) = {
            let state = self.lock();
            (state.engine.as_ref().and_then(Weak::upgrade), state.num_taken)
        };
        let report = engine.as_ref().map(|engine| report(engine, num_taken));
        let health = engine.as_ref().map(|engine| engine.health());
        let mut state = self.lock();
        state.take_outputs();
        if let Some(Health::Dead(reason)) = health {
            state.ended.get_or_insert(reason);
        }
        let ended = state.ended.clone();
        let mut news = std::mem::take(&mut state.news);
        if let Some(reason) = &ended {
            news.push(News { kind: Some(NewsKind::Lost(reason.clone())) });
        }
        (news, report, ended)
    }

    /// Sends what there is, and something each second, until the instance ends or the server is gone. Returns why it ended.
    ///
    /// While a message is on its way, what comes is merged into one: a slow connection holds no engine up.
    pub(crate) async fn send_all(
        self: Arc<Self>,
        out: mpsc::Sender<FromInstance>,
    ) -> Option<String> {
        for number in 2.. {
            let _beat = tokio::time::timeout(BEAT, self.told.notified()).await;
            let room = out.reserve().await.ok()?;
            let (news, report, ended) = self.drain();
            room.send(FromInstance { number, news, report });
            if ended.is_some() {
                return ended;
            }
        }
        None
    }
}

impl State {
    /// Moves all that readers are to get to the news.
    fn take_outputs(&mut self) {
        let Self { streams, news, .. } = self;
        streams.retain(|&id, stream| {
            let Some(output) = output_of(stream) else { return true };
            let ends = output.finished.is_some() || output.error.is_some();
            news.push(output_news(id, output));
            !ends
        });
    }
}

/// Returns what a reader is to get, if there is anything.
fn output_of(stream: &mut OutputStream) -> Option<SeqOutput> {
    match stream.poll_next(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => None,
    }
}

fn output_news(id: SeqId, output: SeqOutput) -> News {
    News { kind: Some(NewsKind::Output(Box::new(convert::output_out(id, output)))) }
}

fn report(engine: &ThreadedEngine, num_taken: u64) -> Report {
    let late = match engine.health() {
        Health::Late { since } => Some(since),
        Health::Healthy | Health::Dead(_) => None,
    };
    let load = Load { num_taken, late, retry_after: engine.retry_after() };
    convert::report_out(&engine.stats(), load)
}

/// The other instances, as the engine of this process sees them: all of them are beyond the server.
#[derive(Debug)]
pub(crate) struct Beyond(pub(crate) Arc<Uplink>);

impl Peers for Beyond {
    fn take(&mut self, seq: HandedOver, lost: Option<&str>) {
        let uplink = &self.0;
        let mut state = uplink.lock();
        // First what its reader is to get before others go on.
        let mut stream = state.streams.remove(&seq.id);
        if let Some(output) = stream.as_mut().and_then(output_of) {
            state.news.push(output_news(seq.id, output));
        }
        match lost {
            // The server knows the sequence; that this instance is lost says all.
            Some(reason) => {
                state.ended.get_or_insert_with(|| reason.to_owned());
                uplink.told.notify_one();
            }
            None => {
                let hand_over = HandOver {
                    seq: seq.id.0,
                    kv: seq.kv.as_deref().map(convert::lease_out),
                    progress: convert::progress_out(&seq.progress),
                };
                state.news.push(News { kind: Some(NewsKind::HandOver(hand_over)) });
            }
        }
        drop(state);
    }

    fn release(&mut self, lease: &KvLease) {
        let news = NewsKind::Release(convert::lease_out(lease));
        self.0.lock().news.push(News { kind: Some(news) });
    }

    /// The server sees it by the last output.
    fn ended(&mut self, _seq: SeqId) {}

    fn offer(&mut self, offer: KvOffer) {
        let news = NewsKind::Offer(convert::offer_out(&offer));
        self.0.lock().news.push(News { kind: Some(news) });
    }

    fn take_back(&mut self, seq: SeqId) {
        self.0.lock().news.push(News { kind: Some(NewsKind::TakeBack(seq.0)) });
    }

    fn report(&mut self, report: stallfree_engine::Report) {
        let news = NewsKind::Account(convert::account_out(&report));
        self.0.lock().news.push(News { kind: Some(news) });
    }

    /// Even a step without news may have changed how many blocks are in use.
    fn told_all(&mut self) {
        self.0.told.notify_one();
    }
}
