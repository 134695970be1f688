//! Value log: append-only files with entry bodies.
//!
//! - `block`: encoding of blocks
//! - `file`: appends, reads and removes · `location`: where a block is
//! - `reader`: reads a user's entries
//! - `compaction`: reclaims files
//! - `spare_descriptors`: file descriptors for reads when the process has none left

pub(super) mod block;
pub(super) mod compaction;
pub(super) mod file;
pub(super) mod location;
pub(super) mod reader;
mod spare_descriptors;
