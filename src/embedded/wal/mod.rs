//! Implements the write-ahead log (WAL).
//!
//! - `contract`: the trait
//! - format: `embedded::framing` (frames), `layout` (header of a record, segments), `record` (its encoding), `events` (its
//!   content)
//! - `segment`: its segments · `reserve`, `prepared`: their space, and the next one prepared ahead
//! - `scan`: finds the records when a store opens
//! - `reader`, `cache`: reads from files, and from memory

pub(super) mod cache;
pub(super) mod contract;
pub(super) mod events;
pub(super) mod layout;
pub(super) mod prepared;
pub(super) mod reader;
pub(super) mod record;
mod reserve;
pub(super) mod scan;
pub(super) mod segment;
