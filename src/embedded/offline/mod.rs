//! Inspection and repair of closed or damaged stores.
//!
//! - [`inspect`]: reports the content and damage of a store
//! - `reader`: read-only view of the files
//! - [`salvage`]: writes what can be read to a new store
//! - `sled_file`: reads the files of sled
//! - `rebuild`: rebuilds the files of sled after a power cut

pub mod inspect;
pub(super) mod reader;
pub(super) mod rebuild;
pub mod salvage;
pub(super) mod sled_file;
