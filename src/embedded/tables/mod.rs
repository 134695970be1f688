//! Ordered tables of the embedded store.
//!
//! - `contract`: the trait
//! - [`sled`]: an engine on disk
//! - [`memory`]: an engine for tests
//! - `schema`: keys and rows · `meta`: keys of the table `meta` · `files`: names of files
//! - `blocks`: puts and removes blocks · `parts`: rows in several values · `compact`: compaction of the value log
//! - `open`, `directory`, `foreign`, `missing`, `unfinished`: opens a store directory
//! - `watermark`: how far each file was synced
//! - `space`: reserved disk space
//! - `open_error`, `sled_error`: error messages

mod blocks;
mod compact;
pub(super) mod contract;
pub(super) mod directory;
pub(super) mod files;
pub(super) mod foreign;
pub mod memory;
pub(super) mod meta;
pub(super) mod missing;
pub(super) mod open;
pub(super) mod open_error;
pub(super) mod parts;
pub(super) mod schema;
pub mod sled;
pub(super) mod sled_error;
pub(super) mod space;
pub mod unfinished;
pub(super) mod watermark;

pub use open::{DiskOptions, open};
