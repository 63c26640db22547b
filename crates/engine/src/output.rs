//! The stream of one sequence's output, from the engine's thread to whoever asked.
//!
//! A slot, not a channel: what the reader has not taken yet is merged into one [`SeqOutput`], so a slow reader costs no
//! more memory than its sequence's `max_tokens` and never holds up the engine. It knows nothing of async runtimes: any
//! waker will do, a parked thread's too.

use std::fmt;
use std::future::poll_fn;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Duration;

use smallvec::SmallVec;
use stallfree_core::{SeqId, lock};

use crate::{OutputToken, SeqOutput};

/// One sequence's output; dropping it before the end cancels the sequence.
pub struct OutputStream {
    seq: SeqId,
    slot: Arc<Slot>,
    cancel: Option<Box<dyn FnOnce() + Send>>,
}

/// The writing end of an [`OutputStream`]; dropping it before the end tells the reader that the engine is lost.
#[derive(Debug)]
pub struct OutputSender {
    slot: Arc<Slot>,
}

/// Goes back and forth between two threads with every token, so it is small, and shares its cache lines with nothing else.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Slot {
    state: Mutex<SlotState>,
}

/// What the reader has not taken yet, if anything.
#[derive(Debug, Default)]
struct SlotState {
    /// Tokens, where there is nothing else.
    tokens: SmallVec<[OutputToken; 1]>,
    /// All of it, where there is more than tokens.
    output: Option<Box<SeqOutput>>,
    /// Whether the last output has been written.
    ended: bool,
    reader: Option<Waker>,
}

impl SlotState {
    /// Takes all that there is.
    fn take(&mut self) -> Option<SeqOutput> {
        if let Some(output) = self.output.take() {
            return Some(*output);
        }
        let tokens = std::mem::take(&mut self.tokens);
        (!tokens.is_empty()).then(|| SeqOutput { tokens, ..SeqOutput::default() })
    }
}

/// Returns the two ends of a sequence's output. `cancel` runs if the stream is dropped before the end.
pub fn output_stream(
    seq: SeqId,
    cancel: impl FnOnce() + Send + 'static,
) -> (OutputSender, OutputStream) {
    let slot = Arc::new(Slot::default());
    let sender = OutputSender { slot: Arc::clone(&slot) };
    (sender, OutputStream { seq, slot, cancel: Some(Box::new(cancel)) })
}

impl OutputSender {
    /// Adds to what the reader gets next, and wakes it. Nothing is added after an output with `finished` or `error` set.
    pub fn update(&self, add: impl FnOnce(&mut SeqOutput)) {
        if let Some(reader) = self.add(add) {
            reader.wake();
        }
    }

    /// Does the same, but leaves it to the caller to wake the reader.
    pub(crate) fn add(&self, add: impl FnOnce(&mut SeqOutput)) -> Option<Waker> {
        let mut state = lock(&self.slot.state);
        let SlotState { tokens, output, ended, reader } = &mut *state;
        if *ended {
            return None;
        }
        let output = output.get_or_insert_default();
        output.tokens.append(tokens);
        add(output);
        *ended = output.finished.is_some() || output.error.is_some();
        reader.take()
    }

    /// Adds a token and nothing else, and leaves it to the caller to wake the reader.
    pub(crate) fn push(&self, token: OutputToken) -> Option<Waker> {
        let mut state = lock(&self.slot.state);
        if state.ended {
            return None;
        }
        match &mut state.output {
            Some(output) => output.tokens.push(token),
            None => state.tokens.push(token),
        }
        state.reader.take()
    }

    /// Ends the stream because the engine was lost.
    pub fn fail(&self, reason: &str) {
        self.update(|output| output.error = Some(reason.to_owned()));
    }

    /// Ends the stream because nobody took the sequence; another try may do better after a while.
    pub fn refuse(&self, reason: &str, retry_after: Duration) {
        self.update(|output| {
            output.error = Some(reason.to_owned());
            output.retry_after = Some(retry_after);
        });
    }
}

impl Drop for OutputSender {
    fn drop(&mut self) {
        self.fail("the engine is gone");
    }
}

impl OutputStream {
    /// Returns the sequence's number.
    #[must_use]
    pub const fn seq(&self) -> SeqId {
        self.seq
    }

    /// Waits for output and returns all that there is; `None` once the last has been returned. Safe to cancel.
    pub async fn next(&mut self) -> Option<SeqOutput> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// As [`next`](Self::next), but blocks the calling thread.
    pub fn blocking_next(&mut self) -> Option<SeqOutput> {
        let waker = unpark_this_thread();
        let mut cx = Context::from_waker(&waker);
        loop {
            match self.poll_next(&mut cx) {
                Poll::Ready(output) => return output,
                Poll::Pending => thread::park(),
            }
        }
    }

    /// Returns all that there is, without waiting.
    pub fn take(&mut self) -> SeqOutput {
        match self.poll_next(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Some(output)) => output,
            Poll::Ready(None) | Poll::Pending => SeqOutput::default(),
        }
    }

    /// Returns what there is, or registers to be woken.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<SeqOutput>> {
        let mut state = lock(&self.slot.state);
        if let Some(output) = state.take() {
            return Poll::Ready(Some(output));
        }
        if state.ended {
            return Poll::Ready(None);
        }
        match &mut state.reader {
            Some(reader) => reader.clone_from(cx.waker()),
            None => state.reader = Some(cx.waker().clone()),
        }
        Poll::Pending
    }
}

impl Drop for OutputStream {
    fn drop(&mut self) {
        let ended = lock(&self.slot.state).ended;
        if let Some(cancel) = self.cancel.take().filter(|_| !ended) {
            cancel();
        }
    }
}

impl fmt::Debug for OutputStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OutputStream").field("seq", &self.seq).finish_non_exhaustive()
    }
}

/// Returns a waker that unparks the calling thread.
#[must_use]
pub fn unpark_this_thread() -> Waker {
    Waker::from(Arc::new(Unpark(thread::current())))
}

/// Wakes by unparking a thread.
#[derive(Debug)]
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.unpark();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use stallfree_core::{FinishReason, Time};

    use super::*;
    use crate::{Finished, SeqTimes};

    fn token(token: u32) -> OutputToken {
        OutputToken { token, logprobs: Vec::new(), at: Time::ZERO }
    }

    fn finished() -> Finished {
        Finished {
            reason: FinishReason::Stop,
            stop_token: None,
            times: SeqTimes::default(),
            num_cached_tokens: 0,
            num_preemptions: 0,
        }
    }

    fn counted() -> (Arc<AtomicUsize>, impl FnOnce() + Send) {
        let count = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&count);
        (count, move || {
            counter.fetch_add(1, Ordering::Relaxed);
        })
    }

    #[test]
    fn what_was_not_read_is_merged_and_the_end_comes_once() {
        let (cancels, cancel) = counted();
        let (sender, mut stream) = output_stream(SeqId(7), cancel);
        sender.update(|output| output.tokens.push(token(1)));
        sender.update(|output| output.tokens.push(token(2)));
        let first = stream.blocking_next().expect("two tokens");
        assert_eq!(first.tokens[..], [token(1), token(2)]);
        sender.update(|output| output.finished = Some(finished()));
        sender.update(|output| output.tokens.push(token(3)));
        let last = stream.blocking_next().expect("the end");
        assert_eq!((last.tokens.len(), last.finished), (0, Some(finished())));
        assert!(stream.blocking_next().is_none());
        drop(stream);
        assert_eq!(cancels.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn dropping_the_stream_cancels_and_dropping_the_sender_is_an_error() {
        let (cancels, cancel) = counted();
        let (sender, stream) = output_stream(SeqId(0), cancel);
        drop(stream);
        assert_eq!(cancels.load(Ordering::Relaxed), 1);
        drop(sender);

        let (sender, mut stream) = output_stream(SeqId(1), || ());
        drop(sender);
        assert!(stream.blocking_next().expect("an error").error.is_some());
        assert!(stream.blocking_next().is_none());
    }

    #[test]
    fn a_parked_reader_is_woken() {
        let (sender, mut stream) = output_stream(SeqId(0), || ());
        let reader = thread::Builder::new()
            .spawn(move || {
                let mut tokens = 0;
                while let Some(output) = stream.blocking_next() {
                    tokens += output.tokens.len();
                }
                tokens
            })
            .expect("a thread");
        for i in 0..100 {
            sender.update(|output| output.tokens.push(token(i)));
        }
        sender.update(|output| output.finished = Some(finished()));
        assert_eq!(reader.join().expect("no panic"), 100);
    }
}
