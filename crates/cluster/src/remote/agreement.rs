//! What the instances of a deployment must have in common.

use super::message::Agreed;

/// What the instances of a deployment must have in common, so that any of them goes on where another one left off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agreement {
    /// The model, with the type of its weights.
    pub model: String,
    /// How many tokens it knows.
    pub vocab_size: usize,
    /// Tokens in a block of the KV cache.
    pub block_size: usize,
    /// How a device keeps a block.
    pub kv_type: String,
}

impl Agreement {
    pub(crate) fn to_message(&self) -> Agreed {
        Agreed {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            model: self.model.clone(),
            vocab_size: self.vocab_size as u64,
            block_size: self.block_size as u64,
            kv_type: self.kv_type.clone(),
        }
    }

    /// Returns why an instance that says `theirs` can't take part, if it can't.
    pub(crate) fn refusal(&self, theirs: &Agreed) -> Option<String> {
        let ours = self.to_message();
        let differs = |what: &str, theirs: &dyn ToString, ours: &dyn ToString| {
            let (theirs, ours) = (theirs.to_string(), ours.to_string());
            (theirs != ours).then(|| format!("{what}: {theirs} there, {ours} at the server"))
        };
        let differences = [
            differs("version of stallfree", &theirs.version, &ours.version),
            differs("model", &theirs.model, &ours.model),
            differs("vocabulary", &theirs.vocab_size, &ours.vocab_size),
            differs("--block-size", &theirs.block_size, &ours.block_size),
            differs("KV cache", &theirs.kv_type, &ours.kv_type),
        ];
        let found: Vec<String> = differences.into_iter().flatten().collect();
        (!found.is_empty()).then(|| {
            format!("the instance and the server must be alike, but differ in {}", found.join("; "))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Agreement;

    #[test]
    fn whatever_differs_is_named() {
        let ours = Agreement {
            model: "A".to_owned(),
            vocab_size: 10,
            block_size: 16,
            kv_type: "f16".to_owned(),
        };
        let check = |theirs: Agreement, words: &[&str]| {
            let refusal = ours.refusal(&theirs.to_message()).unwrap_or_default();
            assert_eq!(refusal.is_empty(), words.is_empty(), "{refusal}");
            assert!(words.iter().all(|word| refusal.contains(word)), "{refusal}");
        };
        check(ours.clone(), &[]);
        check(Agreement { block_size: 32, ..ours.clone() }, &["--block-size: 32 there, 16 at"]);
        let other = Agreement { model: "B".to_owned(), vocab_size: 11, ..ours.clone() };
        check(other, &["model: B there, A", "vocabulary: 11 there, 10"]);
        check(Agreement { kv_type: "f32".to_owned(), ..ours.clone() }, &["KV cache: f32"]);
        let mut older = ours.to_message();
        older.version = "0.0.1".to_owned();
        assert!(ours.refusal(&older).is_some_and(|refusal| refusal.contains("0.0.1 there")));
    }
}
