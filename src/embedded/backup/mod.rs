//! Backups.
//!
//! - [`format`]: the file format
//! - `build`: builds a store
//! - `write`: online backup
//! - [`restore`]: creates a store from a backup

pub(super) mod build;
pub mod format;
pub mod restore;
pub(super) mod write;
