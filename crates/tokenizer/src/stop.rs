//! Stop strings in a stream of text.

/// Looks for stop strings in a text that comes in pieces, and holds back what might be the start of one.
#[derive(Clone, Debug)]
pub struct StopStrings {
    stops: Vec<String>,
    include_in_output: bool,
    /// Text not emitted yet: always shorter than the longest stop string, and a prefix of one.
    held: String,
    stopped: bool,
}

/// What came of a piece of text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StopFeed {
    /// Text that may be emitted now.
    pub text: String,
    /// The stop string that ended the text, as an index into those given.
    pub matched: Option<usize>,
}

impl StopStrings {
    /// Looks for any of `stops`; empty ones are ignored. `include_in_output` emits the stop string that ends the text, too.
    #[must_use]
    pub const fn new(stops: Vec<String>, include_in_output: bool) -> Self {
        Self { stops, include_in_output, held: String::new(), stopped: false }
    }

    /// Takes the next piece of text. After a match everything further is dropped.
    ///
    /// The match that ends first wins; of several that end together the one that starts first, so that whichever way the
    /// text is cut into pieces, the result is the same.
    pub fn feed(&mut self, piece: &str) -> StopFeed {
        if self.stopped {
            return StopFeed::default();
        }
        self.held.push_str(piece);
        if let Some((matched, start, end)) = self.first_match() {
            self.stopped = true;
            self.held.truncate(if self.include_in_output { end } else { start });
            return StopFeed { text: std::mem::take(&mut self.held), matched: Some(matched) };
        }
        let kept = self.held.split_off(self.held.len() - self.suffix_to_hold());
        StopFeed { text: std::mem::replace(&mut self.held, kept), matched: None }
    }

    /// Ends the text and returns what was held back.
    pub fn flush(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Returns the stop string matched first with its start and end in `held`.
    fn first_match(&self) -> Option<(usize, usize, usize)> {
        self.stops
            .iter()
            .enumerate()
            .filter(|(_, stop)| !stop.is_empty())
            .filter_map(|(i, stop)| {
                self.held.find(stop.as_str()).map(|at| (i, at, at + stop.len()))
            })
            .min_by_key(|&(i, start, end)| (end, start, i))
    }

    /// Returns the length of the longest suffix of `held` that begins a stop string.
    fn suffix_to_hold(&self) -> usize {
        self.stops.iter().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0)
    }
}

/// Returns the length of the longest proper prefix of `stop` that `text` ends with.
fn overlap(text: &str, stop: &str) -> usize {
    (1..stop.len().min(text.len() + 1))
        .rev()
        .find(|&n| stop.is_char_boundary(n) && text.ends_with(&stop[..n]))
        .unwrap_or(0)
}
