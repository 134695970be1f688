//! The next segment, prepared ahead.
//!
//! The next file is opened before it is needed, because clients may hold all descriptors by then. Its disk space is
//! allocated when it becomes a segment. Without a descriptor or space for another file, the current segment grows.

use std::{
    fs::File,
    path::Path,
    time::{Duration, Instant},
};

/// Name of the prepared file. Segments are named by numbers.
pub(super) const NAME: &str = ".next";

/// Delay after a failure before the file is opened again.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// The prepared file.
#[derive(Debug, Default)]
pub struct PreparedSegment {
    pub(super) file: Option<File>,
    pub(super) failed: Option<Instant>,
}

impl PreparedSegment {
    /// Opens the file in a directory, if possible.
    pub fn new(directory: &Path) -> Self {
        let mut prepared = Self::default();
        prepared.prepare(directory);
        prepared
    }

    pub(super) fn prepare(&mut self, directory: &Path) {
        if self.file.is_some() || self.failed.is_some_and(|failed| failed.elapsed() < RETRY_DELAY) {
            return;
        }
        let open = File::options().read(true).write(true).create(true).truncate(true).open(directory.join(NAME));
        self.failed = open.is_err().then(Instant::now);
        self.file = open.ok();
    }
}
