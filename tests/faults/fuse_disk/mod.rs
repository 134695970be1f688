//! A disk that forgets. It keeps what was written and what was synced apart, and a power cut leaves of the former what
//! chance will have.
//!
//! - `file`: one file: its bytes, and the changes that no fsync has covered
//! - `tree`: all files and directories, and the names that no fsync of a directory has covered
//! - `mount`: that tree as a file system, by FUSE, so that a server can live on it

mod file;
#[cfg(target_os = "linux")]
mod mount;
mod tree;

use serde::{Deserialize, Serialize};

#[cfg(target_os = "linux")]
pub use self::mount::Mounted;
pub use self::tree::{Ino, Tree, Trouble};

/// What a power cut leaves of what was not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cut {
    /// Nothing.
    Clear,
    /// Of each file's changes the first few, the last of them torn at the end of a sector; of the names the first few.
    Torn,
    /// Any of the pages, and any of the names.
    Reordered,
}

/// What a power cut took back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lost {
    /// Changes of files that were not there whole afterwards.
    pub writes: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Creations, renamings and removals.
    pub names: u64,
}

impl Lost {
    /// Of a change of this many bytes this many are left.
    fn count(&mut self, bytes: usize, left: usize) {
        if left < bytes {
            self.writes += 1;
            self.bytes += (bytes - left) as u64;
        }
    }

    /// Both together.
    pub fn add(&mut self, other: Self) {
        self.writes += other.writes;
        self.bytes += other.bytes;
        self.names += other.names;
    }
}
