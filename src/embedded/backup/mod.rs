//! Backup and restore.
//!
//! - [`format`]: the file format
//! - `build`: writes a new store, for a restore or a salvage
//! - `write`: online backup
//! - [`restore`]: creates a store from a backup

pub(super) mod build;
pub mod format;
pub mod restore;
pub(super) mod write;
