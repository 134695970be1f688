//! Backup and restore.
//!
//! - [`format`]: the file format
//! - `build`: writes a new store, for a restore or a salvage · `payloads`: what its logs share
//! - `write`: online backup
//! - [`restore`]: creates a store from a backup

pub(super) mod build;
pub mod format;
mod payloads;
pub mod restore;
pub(super) mod write;
