//! Simulates a disk with power cuts. A power cut keeps what was synced, and a random part of the unsynced changes.
//!
//! - `file`: one file: its contents, and its unsynced changes
//! - `tree`: all files and directories, and unsynced changes of names
//! - `mount`: the tree as a FUSE file system, on which a server stores its data

mod file;
#[cfg(target_os = "linux")]
mod mount;
mod tree;

use serde::{Deserialize, Serialize};

#[cfg(target_os = "linux")]
pub use self::mount::MountedDisk;
pub use self::tree::{Ino, Tree, TreeError};

/// Kinds of power cuts: which unsynced changes the disk keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PowerCut {
    /// None.
    LoseAll,
    /// The first few changes of each file, the last of them torn at a sector boundary, and the first few changes of
    /// names.
    Torn,
    /// An arbitrary selection of sectors or pages, and of changes of names.
    Reordered,
}

/// Changes that a power cut removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Losses {
    /// Changes of files that were removed, in whole or in part.
    pub writes: u64,
    /// Bytes of these changes that were removed. A change of a file's length counts as 1 byte.
    pub bytes: u64,
    /// Changes of names that were removed: creations, renames, removals.
    pub names: u64,
}

impl Losses {
    /// Adds a change of `bytes`, of which the disk keeps `kept`.
    fn count(&mut self, bytes: usize, kept: usize) {
        if kept < bytes {
            self.writes += 1;
            self.bytes += (bytes - kept) as u64;
        }
    }

    /// Adds other losses.
    pub fn add(&mut self, other: Self) {
        self.writes += other.writes;
        self.bytes += other.bytes;
        self.names += other.names;
    }
}
