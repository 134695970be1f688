//! The journal's file that is written to: beginning the next one, and setting space aside in it.
//!
//! The next file is open before it is needed, because clients may have all descriptors then. It gets its blocks when it is
//! begun. Where there is no descriptor or no space for another file, the file that is open is gone on with.

use std::{
    fs::File,
    path::Path,
    time::{Duration, Instant},
};

/// The name of the file that is begun next, before those of files with records, which are numbers.
pub(super) const NAME: &str = ".next";

/// How long after a failure the next file is not made.
const PAUSE: Duration = Duration::from_secs(1);

/// The file that is begun next.
#[derive(Debug, Default)]
pub struct Spare {
    pub(super) file: Option<File>,
    pub(super) failed: Option<Instant>,
}

impl Spare {
    /// Opens it in a directory, if that can be done.
    pub fn new(directory: &Path) -> Self {
        let mut spare = Self::default();
        spare.prepare(directory);
        spare
    }

    pub(super) fn prepare(&mut self, directory: &Path) {
        if self.file.is_some() || self.failed.is_some_and(|failed| failed.elapsed() < PAUSE) {
            return;
        }
        let open = File::options().read(true).write(true).create(true).truncate(true).open(directory.join(NAME));
        self.failed = open.is_err().then(Instant::now);
        self.file = open.ok();
    }
}
