//! What can be wrong with a configuration or a sequence.

/// Why a planner cannot be made, or a sequence not be taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No policy has that name.
    #[error("there is no scheduler `{name}`{}; there are: {}", did_you_mean(name, known), known.join(", "))]
    UnknownPolicy {
        /// The name.
        name: String,
        /// All names.
        known: Vec<&'static str>,
    },
    /// The policy has no such setting.
    #[error(
        "scheduler `{policy}` has no setting `{key}`{}; it has: {}",
        did_you_mean(key, known),
        list(known)
    )]
    UnknownSetting {
        /// The policy.
        policy: &'static str,
        /// The setting.
        key: String,
        /// All of the policy's settings.
        known: Vec<&'static str>,
    },
    /// A setting's value is not what it takes.
    #[error("scheduler setting `{key}` is `{value}`, but must be {expected}")]
    BadSetting {
        /// The setting.
        key: String,
        /// Its value.
        value: String,
        /// What it takes.
        expected: &'static str,
    },
    /// A limit must be larger.
    #[error("`{name}` is {value}, but must be at least {least}")]
    TooSmall {
        /// The limit.
        name: &'static str,
        /// Its value.
        value: usize,
        /// The least that works.
        least: usize,
    },
    /// One sequence of the maximum length would not fit the cache.
    #[error(
        "a sequence of max_model_len = {max_model_len} tokens needs {needed} KV blocks, but there are {num_blocks}: lower \
         max_model_len to {fits} or give the cache more memory"
    )]
    CacheTooSmall {
        /// The most tokens that a sequence may have.
        max_model_len: usize,
        /// Blocks that it needs.
        needed: usize,
        /// Blocks that there are.
        num_blocks: usize,
        /// The largest `max_model_len` that fits.
        fits: usize,
    },
    /// A sequence has no prompt, or one that leaves no room for a token.
    #[error(
        "the sequence has {len} tokens; it must have at least 1 and fewer than max_model_len = {max_model_len}"
    )]
    BadLength {
        /// How many tokens it has.
        len: usize,
        /// The most tokens that a sequence may have.
        max_model_len: usize,
    },
}

fn list(names: &[&str]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

/// Returns "; did you mean `x`?" where a name is close.
fn did_you_mean(name: &str, known: &[&str]) -> String {
    let nearest = known.iter().map(|known| (distance(name, known), known)).min();
    match nearest {
        Some((distance, nearest)) if distance <= 1 + name.len() / 4 => {
            format!(" (did you mean `{nearest}`?)")
        }
        _ => String::new(),
    }
}

/// Returns how many bytes must be inserted, deleted or changed to make `b` of `a`; `_` and `-` count as the same.
fn distance(a: &str, b: &str) -> usize {
    let plain = |byte: u8| if byte == b'_' { b'-' } else { byte.to_ascii_lowercase() };
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.bytes().enumerate() {
            let change = diagonal + usize::from(plain(x) != plain(y));
            diagonal = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
