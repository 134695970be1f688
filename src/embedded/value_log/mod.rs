//! Value log: append-only files with entry bodies.
//!
//! - `block`: encoding of blocks
//! - `framing`: checksummed frames
//! - `file`: the files
//! - `reader`: reads entries from them
//! - `compaction`: reclaims files

pub(super) mod block;
pub(super) mod compaction;
pub(super) mod file;
pub(super) mod framing;
pub(super) mod reader;
