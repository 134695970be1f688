//! Closed or damaged stores.
//!
//! - [`inspect`]: reads a store without opening it
//! - `reader`: read-only view of the files
//! - [`salvage`]: writes what can be read to a new store
//! - `sled_file`: reads the files of sled
//! - `rebuild`: rebuilds the files of sled

pub mod inspect;
pub(super) mod reader;
pub(super) mod rebuild;
pub mod salvage;
pub(super) mod sled_file;
