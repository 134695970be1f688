//! Value log: append-only files with entry bodies.
//!
//! - `block`: encoding of blocks
//! - `bodies`: payloads that several logs share, each stored once
//! - `file`: appends, reads and removes
//! - `location`, `summary`: where a block is, and which entries it has; the row of a block in the tables
//! - `reader`: reads a user's entries
//! - `live_count`: counts the live bytes of files that earlier processes wrote
//! - `compaction`: reclaims files
//! - `spare_descriptors`: file descriptors for reads when the process has none left

pub(super) mod block;
pub(super) mod bodies;
pub(super) mod compaction;
pub(super) mod file;
mod live_count;
pub(super) mod location;
pub(super) mod reader;
mod spare_descriptors;
pub(super) mod summary;
#[cfg(test)]
mod tests;
