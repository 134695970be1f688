//! Prepares the file of the next segment.
//!
//! The file is opened before it is needed, because clients may hold all descriptors by then. Its disk space is
//! allocated when it becomes a segment. Without a descriptor or space for it, the current segment grows.

use std::{
    fs::File,
    path::Path,
    time::{Duration, Instant},
};

/// Name of the prepared file. Segments are named by numbers.
pub(super) const PREPARED_NAME: &str = ".next";

/// Delay after a failure before the file is opened again.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// Holds the prepared file, if it is open.
#[derive(Debug, Default)]
pub struct PreparedSegment {
    pub(super) file: Option<File>,
    /// Time of the last failure.
    pub(super) failed: Option<Instant>,
}

impl PreparedSegment {
    /// Prepares the file in a directory, if possible.
    pub fn new(directory: &Path) -> Self {
        let mut prepared = Self::default();
        prepared.prepare(directory);
        prepared
    }

    /// Opens the file, if it is not open and no attempt failed within [`RETRY_DELAY`].
    pub(super) fn prepare(&mut self, directory: &Path) {
        if self.file.is_some() || self.failed.is_some_and(|failed| failed.elapsed() < RETRY_DELAY) {
            return;
        }
        let open =
            File::options().read(true).write(true).create(true).truncate(true).open(directory.join(PREPARED_NAME));
        self.failed = open.is_err().then(Instant::now);
        self.file = open.ok();
    }
}
