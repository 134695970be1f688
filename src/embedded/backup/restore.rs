//! Creates a store from a backup.
//!
//! The store is built in a directory `NAME.partial`, which is marked as unfinished, and renamed when it is complete. So
//! no server starts on an incomplete store.

use std::{
    fs::File,
    io::{self, BufReader, Read},
    path::Path,
};

use bytes::Bytes;

use super::{
    build::{LOSSY_RESTARTS_ADDED, StoreBuilder},
    format::{BackupError, BackupReader, Block, Contents},
};
use crate::{
    embedded::{offline::inspect::InspectSink, tables::unfinished::Operation},
    store::StoreError,
};

/// Bytes per read.
const READ_BYTES: usize = 64 << 10;

/// A file that reports what is read from it.
struct Counted<'a, F> {
    file: File,
    on_read: &'a F,
}

impl<F: Fn(u64)> Read for Counted<'_, F> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(bytes)?;
        (self.on_read)(read as u64);
        Ok(read)
    }
}

/// Creates a store from a backup in `directory`, which must not exist or be empty.
///
/// Verifies the file before it writes anything.
///
/// # Errors
/// When the file is not a complete backup, the directory is not empty, or the store cannot be written.
pub fn restore(file: &Path, directory: &Path) -> Result<Contents, BackupError> {
    restore_with(file, directory, |_| {})
}

/// As [`restore`]. Passes each number of bytes that it has read to `on_read`: all of the file, twice.
///
/// # Errors
/// As [`restore`].
pub fn restore_with(file: &Path, directory: &Path, on_read: impl Fn(u64)) -> Result<Contents, BackupError> {
    let open = || {
        Ok::<_, io::Error>(BufReader::with_capacity(READ_BYTES, Counted { file: File::open(file)?, on_read: &on_read }))
    };
    super::format::verify(open()?)?;
    let mut reader = BackupReader::begin(open()?)?;
    let Some(Block::Begin { namespace, lossy_restarts }) = reader.next()? else {
        return Err(BackupError::Foreign);
    };
    let target_error = |error: StoreError| {
        let reason = match error {
            StoreError::Open { reason, .. } => reason,
            other => other.to_string(),
        };
        BackupError::Target { path: directory.to_owned(), reason }
    };
    let (mut end, lossy_restarts) = ((0, 0), lossy_restarts.saturating_add(LOSSY_RESTARTS_ADDED));
    let mut build = StoreBuilder::begin(directory, &namespace, Operation::Restore).map_err(target_error)?;
    while let Some(block) = reader.next()? {
        match block {
            Block::Entries { user, entries } => {
                let entries: Vec<_> = entries
                    .into_iter()
                    .map(|(seq, expires_s, payload)| (seq, expires_s, Bytes::from(payload)))
                    .collect();
                build.entries(&user, &entries)
            }
            Block::Log { user, log } => build.write_row(&user, log),
            Block::Erased { .. } => build.discard_entries(),
            Block::Ids(ids) => build.write_ids(ids),
            Block::Reported(reported) => build.write_reported(&reported),
            Block::Events { first, piece } => build.write_events(first, &piece),
            Block::Lost(lost) => build.write_lost(&lost),
            Block::End { clock_ms, floor, .. } => {
                end = (clock_ms, floor);
                Ok(())
            }
            Block::Begin { .. } | Block::Failed(_) => Ok(()),
        }
        .map_err(target_error)?;
    }
    let (clock_ms, floor) = end;
    let mut contents = build.finish(lossy_restarts, clock_ms, floor).map_err(target_error)?;
    contents.events = reader.contents().events;
    Ok(contents)
}
