//! Write-ahead log.
//!
//! - `contract`: the trait
//! - `record`: encoding of records · `events`: their content · `layout`: positions of records in files
//! - `segment`, `prepared`: its files, and the next one prepared ahead
//! - `replay`: reads the files when a store opens
//! - `reader`, `cache`: reads from files, and from memory

pub(super) mod cache;
pub(super) mod contract;
pub(super) mod events;
pub(super) mod layout;
pub(super) mod prepared;
pub(super) mod reader;
pub(super) mod record;
pub(super) mod replay;
pub(super) mod segment;
