//! Which instance is for what.

use stallfree_engine::Role;

/// Returns the roles of `count` instances of which the first `partition` prefill; if that is all of them, all are mixed.
#[must_use]
pub fn roles(count: usize, partition: usize) -> Vec<Role> {
    let role = |index| match () {
        () if partition >= count => Role::Mixed,
        () if index < partition => Role::Prefill,
        () => Role::Decode,
    };
    (0..count).map(role).collect()
}
