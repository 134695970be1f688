//! Backups.
//!
//! - [`format`]: the file format
//! - `write`: online backup
//! - [`restore`]: restore, and salvage of a damaged store

pub mod format;
pub mod restore;
pub(super) mod write;
