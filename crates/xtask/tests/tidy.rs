//! The tree is tidy.

use std::path::Path;

#[test]
fn the_tree_is_tidy() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("two levels down");
    let found = xtask::tidy(root).expect("the tree can be read");
    assert!(found.is_empty(), "{}", found.join("\n"));
}
