//! What is wanted of rows of logits, and the numbers from which tokens are drawn.
//!
//! All devices draw the same tokens, bit for bit: probabilities are integers, made from logits by operations that every device
//! rounds alike, and sums of integers do not depend on their order. Next: `cpu/sampling.rs`.

use bytemuck::{Pod, Zeroable};
use stallfree_core::{PENDING_TOKEN, SampleSpec, TokenId, TokenLogprob};

/// Steps of a depth in which a probability halves.
const OCTAVE: u32 = 1 << 20;
/// The depth from which on a weight is nothing.
pub(crate) const MAX_DEPTH: u32 = 44 * OCTAVE;
/// Steps of a depth for each unit of a logit, at a temperature of 1.
pub(crate) const NATURAL_SCALE: f32 = std::f32::consts::LOG2_E * OCTAVE as f32;
/// The most tokens of a vocabulary: the sum of as many weights still fits.
pub const MAX_VOCAB: usize = 1 << 20;
/// Stands for no token where there may be one.
pub(crate) const NONE: u32 = u32::MAX;

/// Returns how far below the most likely token's a token's probability is, in 2^20ths of an octave. Tokens of one depth are
/// equally likely, as far as drawing goes: their probabilities agree to one part in 1.5 million.
#[inline(always)]
pub(crate) fn depth(top: f32, logit: f32, scale: f32) -> u32 {
    ((top - logit) * scale + 0.5).min(MAX_DEPTH as f32) as u32
}

/// Returns what a token of this depth weighs: 2^43 at depth 0, and never more than at a smaller depth.
#[inline(always)]
pub(crate) const fn weight(depth: u32) -> u64 {
    // A polynomial for 1 + 2^-x, whose mantissa is then the weight's; minimax on [0, 1), relative error 8e-8.
    let x = f32::from_bits(0x3f80_0000 | (depth % OCTAVE) << 3) - 1.0;
    let mut sum = -9.449_037e-4;
    sum = sum * x + 9.205_799e-3;
    sum = sum * x - 5.529_736e-2;
    sum = sum * x + 0.240_180_15;
    sum = sum * x - 0.693_143_7;
    sum = sum * x + 2.0;
    (((sum.to_bits() - 0x3f80_0000) as u64) << 20) >> (depth / OCTAVE)
}

/// Returns the product of a fraction in 2^64ths and a number, rounded down.
pub(crate) const fn fraction(part: u64, of: u64) -> u64 {
    ((part as u128 * of as u128) >> 64) as u64
}

/// Returns how much weight a nucleus has at least, of a total.
pub(crate) const fn nucleus_weight(nucleus: u64, total: u64) -> u64 {
    let exact = nucleus as u128 * total as u128;
    let rounded_up = (exact + u64::MAX as u128) >> 64;
    if rounded_up == 0 { 1 } else { rounded_up as u64 }
}

/// What is wanted of one row of logits; kernels read it as it lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct SampleRow {
    /// The draw, in 2^64ths of the kept tokens' weight.
    pub(crate) uniform: u64,
    /// The least share of the nucleus in 2^64ths; 0 keeps all.
    pub(crate) nucleus: u64,
    /// Steps of a depth for each unit of a logit; 0 takes the largest logit.
    pub(crate) scale: f32,
    /// The largest depth to keep.
    pub(crate) max_depth: u32,
    /// Keeps so many of the most likely; 0 keeps all.
    pub(crate) top_k: u32,
    /// Instead of a draw, the token whose logprobs are wanted; or [`NONE`].
    pub(crate) target: u32,
    /// How many most likely tokens' logprobs are wanted beside the token's own; [`NONE`] wants none at all.
    pub(crate) num_top: u32,
    /// Where the row's edits begin.
    pub(crate) first_edit: u32,
    pub(crate) num_edits: u32,
    /// How many of them, the last ones, are of tokens that the step before chose.
    pub(crate) num_pending: u32,
    pub(crate) repetition_penalty: f32,
    pub(crate) presence_penalty: f32,
    pub(crate) frequency_penalty: f32,
    /// 1 if only tokens with edits may be drawn, else 0.
    pub(crate) only_edits: u32,
    /// Which row of scratch memory a kernel then has.
    pub(crate) scratch: u32,
    pub(crate) padding: u32,
}

/// What is done to one token's logit before the draw; kernels read it as it lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct LogitEdit {
    /// The token, or [`chosen_at`](crate::chosen_at) a place among what the step before chose.
    pub(crate) token: u32,
    /// Added first; minus infinity bans the token.
    pub(crate) bias: f32,
    /// 0 if the token has not come yet, else 1 and how often it was produced: then penalties apply.
    pub(crate) seen: u32,
    /// Where a kernel keeps the logit as it was.
    pub(crate) saved: f32,
}

/// What is wanted of each row of a matrix of logits, in the rows' order.
#[derive(Clone, Debug)]
pub struct SampleRows {
    pub(crate) rows: Vec<SampleRow>,
    pub(crate) edits: Vec<LogitEdit>,
    /// For each token, one more than the place of its edit among the current row's.
    places: Vec<u32>,
}

impl SampleRows {
    /// Makes an empty list, for logits of `vocab_size` tokens.
    #[must_use]
    pub fn new(vocab_size: usize) -> Self {
        Self { rows: Vec::new(), edits: Vec::new(), places: vec![0; vocab_size] }
    }

    /// Forgets all rows.
    pub fn clear(&mut self) {
        self.rows.clear();
        self.edits.clear();
    }

    /// Returns how many rows there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.rows.len()
    }

    /// Returns whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Adds a row from which a token is to be drawn, in the order that [`SamplingParams`](stallfree_core::SamplingParams) names.
    ///
    /// `newest` is what [`PENDING_TOKEN`] stands for in the history: a token, or [`chosen_at`](crate::chosen_at) a place among what
    /// the step before chose. If everything is banned, the token is drawn from the row as it is: a client's bans must not stop an
    /// engine.
    ///
    /// # Source
    /// The draw is SplitMix64's finalizer (Steele, Lea, Flood 2014, §3), over seed and number.
    pub fn push_draw(&mut self, spec: &SampleSpec, newest: TokenId) {
        let params = &*spec.params;
        let first_edit = self.edits.len();
        let num_pending = self.push_edits(spec, newest);
        let is_greedy = params.temperature <= 0.0 || params.top_k == 1;
        let scale = f64::from(NATURAL_SCALE) / f64::from(params.temperature);
        let min_p = -f64::from(params.min_p).log2() * f64::from(OCTAVE);
        let row = SampleRow {
            uniform: uniform(params.seed, spec.num_output_tokens),
            nucleus: if params.top_p < 1.0 { share(params.top_p) } else { 0 },
            scale: if is_greedy { 0.0 } else { (scale as f32).clamp(f32::MIN_POSITIVE, f32::MAX) },
            max_depth: (min_p as u32).min(MAX_DEPTH - 1),
            top_k: params.top_k,
            num_top: self.num_top(params.logprobs),
            first_edit: first_edit as u32,
            num_edits: (self.edits.len() - first_edit) as u32,
            num_pending,
            repetition_penalty: params.repetition_penalty,
            presence_penalty: params.presence_penalty,
            frequency_penalty: params.frequency_penalty,
            only_edits: u32::from(!params.allowed_token_ids.is_empty()),
            ..SampleRow::NOTHING
        };
        self.rows.push(row);
    }

    /// Adds a row of which `token`'s logprob is wanted, and those of the `num_top` most likely.
    pub fn push_target(&mut self, token: TokenId, num_top: u32) {
        let num_top = self.num_top(Some(num_top));
        let first_edit = self.edits.len() as u32;
        self.rows.push(SampleRow { target: token, num_top, first_edit, ..SampleRow::NOTHING });
    }

    fn num_top(&self, wanted: Option<u32>) -> u32 {
        wanted.map_or(NONE, |n| n.min(self.places.len() as u32))
    }

    /// Adds a row's edits and returns how many of them are pending.
    fn push_edits(&mut self, spec: &SampleSpec, newest: TokenId) -> u32 {
        let params = &*spec.params;
        let first = self.edits.len();
        let mut edits =
            RowEdits { places: &mut self.places, all: &mut self.edits, first, open: true };
        for &token in params.allowed_token_ids.iter() {
            edits.change(token, |_| {});
        }
        edits.open = params.allowed_token_ids.is_empty();
        for &(token, bias) in params.logit_bias.iter() {
            edits.change(token, |edit| edit.bias += bias);
        }
        let history = spec.history.as_ref();
        let output = history.and_then(|history| history.tokens.get(history.prompt_len..));
        let bad = ends_of_bad_words(&params.bad_words, output.unwrap_or_default());
        for token in spec.banned.iter().copied().chain(bad) {
            edits.change(token, |edit| edit.bias = f32::NEG_INFINITY);
        }
        let mut num_pending = 0;
        if let Some(history) = history {
            for (index, &token) in history.tokens.iter().enumerate() {
                let produced = u32::from(index >= history.prompt_len);
                let token = if token == PENDING_TOKEN { newest } else { token };
                edits.change(token, |edit| edit.seen = edit.seen.max(1) + produced);
                num_pending += u32::from(is_pending(token));
            }
            let pending = LogitEdit { token: newest, bias: 0.0, seen: 2, saved: 0.0 };
            self.edits.extend(std::iter::repeat_n(pending, num_pending as usize));
        }
        for edit in self.edits[first..].iter().filter(|edit| !is_pending(edit.token)) {
            self.places[edit.token as usize] = 0;
        }
        num_pending
    }

    /// Returns whether a row has to know what the step before chose.
    pub(crate) fn has_pending(&self) -> bool {
        self.rows.iter().any(|row| row.num_pending > 0)
    }

    /// Returns the edits of a row.
    pub(crate) fn edits_of(&self, row: &SampleRow) -> &[LogitEdit] {
        &self.edits[row.first_edit as usize..][..row.num_edits as usize]
    }
}

/// Returns whether a token stands for one that the step before chose.
const fn is_pending(token: TokenId) -> bool {
    token >> 31 == 1 && token != PENDING_TOKEN
}

/// The edits of the row that is being added.
struct RowEdits<'a> {
    places: &'a mut [u32],
    all: &'a mut Vec<LogitEdit>,
    first: usize,
    /// Whether tokens that have no edit yet get one.
    open: bool,
}

impl RowEdits<'_> {
    /// Changes a token's edit. Tokens outside the vocabulary are ignored.
    fn change(&mut self, token: TokenId, change: impl Fn(&mut LogitEdit)) {
        let Some(place) = self.places.get_mut(token as usize) else { return };
        if *place == 0 {
            if !self.open {
                return;
            }
            self.all.push(LogitEdit { token, bias: 0.0, seen: 0, saved: 0.0 });
            *place = (self.all.len() - self.first) as u32;
        }
        change(&mut self.all[self.first + *place as usize - 1]);
    }
}

/// Returns the tokens that would complete a bad word after `output`.
fn ends_of_bad_words<'a>(
    words: &'a [Vec<TokenId>],
    output: &'a [TokenId],
) -> impl Iterator<Item = TokenId> + 'a {
    words.iter().filter_map(|word| {
        let (&last, head) = word.split_last()?;
        output.ends_with(head).then_some(last)
    })
}

impl SampleRow {
    const NOTHING: Self = Self {
        uniform: 0,
        nucleus: 0,
        scale: 0.0,
        max_depth: MAX_DEPTH - 1,
        top_k: 0,
        target: NONE,
        num_top: NONE,
        first_edit: 0,
        num_edits: 0,
        num_pending: 0,
        repetition_penalty: 1.0,
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
        only_edits: 0,
        scratch: 0,
        padding: 0,
    };

    /// Puts the tokens that the step before chose into the edits of this row. A token that has an edit already makes it count one
    /// more, and the pending edit goes.
    pub(crate) fn resolve(&self, edits: &mut [LogitEdit], chosen: &[TokenId]) {
        for at in edits.len() - self.num_pending as usize..edits.len() {
            let (before, edit) = edits.split_at_mut(at);
            let place = (edit[0].token & !(1 << 31)) as usize;
            let token = chosen.get(place).copied().unwrap_or(NONE);
            edit[0].token = if self.only_edits == 1 { NONE } else { token };
            if let Some(known) = before.iter_mut().find(|known| known.token == token) {
                known.seen = known.seen.max(1) + 1;
                edit[0].token = NONE;
            }
        }
    }

    /// Returns a logit after an edit. It stays below infinity and a number: extreme settings are a client's to choose, and must
    /// not look like a damaged model.
    pub(crate) fn edited(&self, logit: f32, edit: &LogitEdit) -> f32 {
        let sound =
            |logit: f32| if logit.is_nan() { f32::NEG_INFINITY } else { logit.min(f32::MAX) };
        let logit = sound(logit + edit.bias);
        if edit.seen == 0 {
            return logit;
        }
        let (factor, count) = (self.repetition_penalty, (edit.seen - 1) as f32);
        let logit = if logit > 0.0 { logit / factor } else { logit * factor };
        let presence = if count > 0.0 { self.presence_penalty } else { 0.0 };
        sound(logit - self.frequency_penalty * count - presence)
    }
}

/// What was found in a row of logits.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampled {
    /// The token; `u32::MAX` where a logit is NaN or plus infinity.
    pub token: TokenId,
    /// Empty unless logprobs were wanted; else the token's, then those of the most likely ones in order, of the softmax of the
    /// logits as the model gave them.
    pub logprobs: Vec<TokenLogprob>,
}

/// A row's softmax, as far as logprobs need it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Softmax {
    pub(crate) top: f32,
    /// The sum of all weights.
    pub(crate) total: u64,
}

impl Softmax {
    /// Returns a token's logprob.
    pub(crate) fn logprob(&self, token: TokenId, logit: f32, rank: u32) -> TokenLogprob {
        let total = self.total as f64 / weight(0) as f64;
        let logprob = match f64::from(logit) - f64::from(self.top) - total.ln() {
            finite if logit > f32::NEG_INFINITY => finite as f32,
            _ => f32::NEG_INFINITY,
        };
        TokenLogprob { token, logprob, rank }
    }
}

/// Returns a share below 1 in 2^64ths, at least one of them.
fn share(part: f32) -> u64 {
    ((f64::from(part) * 2f64.powi(64)) as u64).max(1)
}

/// Returns draw `index` of the stream `seed`.
fn uniform(seed: u64, index: usize) -> u64 {
    let bits = mix(seed ^ mix((index as u64).wrapping_add(0x9e37_79b9_7f4a_7c15)));
    mix(bits.wrapping_add(0x9e37_79b9_7f4a_7c15))
}

const fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use super::{MAX_DEPTH, OCTAVE, depth, nucleus_weight, weight};

    #[test]
    fn weights_fall_with_depth_and_follow_the_power_of_two() {
        assert_eq!((weight(0), weight(MAX_DEPTH)), (1 << 43, 0));
        for depth in 0..OCTAVE {
            assert!(weight(depth) >= weight(depth + 1), "depth {depth}");
            let exact = (-f64::from(depth) / f64::from(OCTAVE)).exp2();
            let error = weight(depth) as f64 / weight(0) as f64 / exact - 1.0;
            assert!(error.abs() < 4e-7, "depth {depth}: {error:e}");
            for octave in [7, 20, 43] {
                assert_eq!(weight(depth) >> octave, weight(depth + octave * OCTAVE));
            }
        }
    }

    #[test]
    fn depths_of_extreme_logits_are_depths() {
        for (top, logit, scale, expected) in [
            (0.0, 0.0, f32::MAX, 0),
            (f32::MAX, f32::MIN, 1.0, MAX_DEPTH),
            (1.0, f32::NEG_INFINITY, f32::MIN_POSITIVE, MAX_DEPTH),
            (f32::NEG_INFINITY, f32::NEG_INFINITY, 1.0, MAX_DEPTH),
            (3.0, 2.0, OCTAVE as f32, OCTAVE),
        ] {
            assert_eq!(depth(top, logit, scale), expected, "{top} {logit} {scale}");
        }
    }

    #[test]
    fn a_nucleus_is_rounded_up_and_never_empty() {
        for (nucleus, total, expected) in
            [(1, 1, 1), (1 << 63, 4 << 43, 2 << 43), (1 << 63, 5, 3), (u64::MAX, 7, 7)]
        {
            assert_eq!(nucleus_weight(nucleus, total), expected, "{nucleus} of {total}");
        }
    }
}
