//! Which KV block holds which tokens: pool, block tables, prefix index.
//!
//! The cache on the device is an array of blocks of a few tokens each. This crate decides which block belongs to whom; it
//! knows tokens and block numbers, but neither what a block's bytes are nor which sequence a table belongs to. The main path
//! goes through [`KvCacheManager`]; it comes from the scheduler's `policy/sarathi.rs` and goes on in the worker's
//! `runner.rs`.

mod manager;
mod pool;
mod prefix;
mod table;

pub use manager::KvCacheManager;
pub use table::BlockTable;
