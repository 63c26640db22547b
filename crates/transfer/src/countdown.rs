//! What all ranks of an instance have a part in: whoever waits for it hears of it once, with the last part.

use std::fmt;
use std::sync::Mutex;

use stallfree_core::lock;

/// Hears of the end: must be quick.
type Tell<T, E> = Box<dyn FnOnce(Result<T, E>) + Send>;

/// What all ranks of an instance have a part in: whoever waits for it hears of it once, with the last part. A rank that is gone drops its
/// share; the last share to be dropped tells that.
pub struct Countdown<T, E> {
    state: Mutex<State<T, E>>,
}

struct State<T, E> {
    num_left: usize,
    /// What came of the parts so far: the first failure, if there was one.
    result: Result<T, E>,
    /// What is told if a part does not end.
    gone: Option<E>,
    tell: Option<Tell<T, E>>,
}

impl<T: Default, E> Countdown<T, E> {
    /// Waits for so many parts; `gone` is told if one of them does not end.
    pub fn new(
        num_parts: usize,
        gone: E,
        tell: impl FnOnce(Result<T, E>) + Send + 'static,
    ) -> Self {
        let (result, tell) = (Ok(T::default()), Some(Box::new(tell) as Tell<T, E>));
        Self { state: Mutex::new(State { num_left: num_parts, result, gone: Some(gone), tell }) }
    }

    /// Takes note of the end of a part, which `add`s what it has; the last one tells.
    pub fn end_part(&self, add: impl FnOnce(&mut T) -> Result<(), E>) {
        let mut state = lock(&self.state);
        state.num_left = state.num_left.saturating_sub(1);
        if let Ok(whole) = &mut state.result
            && let Err(error) = add(whole)
        {
            state.result = Err(error);
        }
        if state.num_left == 0
            && let Some(tell) = state.tell.take()
        {
            let result = std::mem::replace(&mut state.result, Ok(T::default()));
            drop(state);
            tell(result);
        }
    }
}

impl<T, E> Drop for Countdown<T, E> {
    fn drop(&mut self) {
        let mut state = lock(&self.state);
        if let (Some(tell), Some(gone)) = (state.tell.take(), state.gone.take()) {
            drop(state);
            tell(Err(gone));
        }
    }
}

impl<T, E> fmt::Debug for Countdown<T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Countdown").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::Countdown;

    /// Ends parts with these outcomes, of three in all.
    fn check(parts: &[Result<u32, &'static str>], expected: Result<Vec<u32>, &'static str>) {
        let (sender, told) = channel();
        let tell = move |result| drop(sender.send(result));
        let countdown = Countdown::<Vec<u32>, _>::new(3, "one is gone", tell);
        for &part in parts {
            assert!(told.try_recv().is_err(), "{parts:?}: it is told with the last");
            countdown.end_part(|whole| part.map(|part| whole.push(part)));
        }
        drop(countdown);
        assert_eq!(told.try_iter().collect::<Vec<_>>(), [expected], "{parts:?}");
    }

    #[test]
    fn the_last_part_tells_once() {
        check(&[Ok(1), Ok(2), Ok(3)], Ok(vec![1, 2, 3]));
        check(&[Ok(1), Err("no"), Ok(3)], Err("no"));
        check(&[Err("no"), Err("neither"), Ok(3)], Err("no"));
        check(&[Ok(1), Ok(2)], Err("one is gone"));
        check(&[], Err("one is gone"));
    }
}
