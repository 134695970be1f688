//! Creates a store from a backup.
//!
//! The store is built in a directory `NAME.partial`, which is marked as unfinished, and renamed when it is complete. So no
//! server ever starts on a part of it.

use std::{
    fs::File,
    io::{BufReader, Seek},
    path::Path,
};

use bytes::Bytes;

use super::{
    build::{LOSSY_RESTARTS_ADDED, StoreBuilder},
    format::{BackupError, Block, Contents, Reader},
};
use crate::{
    embedded::{offline::inspect::InspectSink, tables::unfinished::Operation},
    store::StoreError,
};

/// Creates a store from a backup in `directory`, which must not exist or be empty.
///
/// The whole file is verified first.
///
/// # Errors
/// When the file is not a complete backup, the directory is not empty, or it cannot be written.
pub fn restore(file: &Path, directory: &Path) -> Result<Contents, BackupError> {
    let mut from = BufReader::new(File::open(file)?);
    super::format::verify(&mut from)?;
    from.rewind()?;
    let mut reader = Reader::begin(from)?;
    let Some(Block::Begin { namespace, lossy_restarts, at_ms }) = reader.next()? else {
        return Err(BackupError::Foreign);
    };
    let place = |error: StoreError| {
        let reason = match error {
            StoreError::Open { reason, .. } => reason,
            other => other.to_string(),
        };
        BackupError::Target { path: directory.to_owned(), reason }
    };
    let mut build = StoreBuilder::begin(directory, &namespace, Operation::Restore).map_err(place)?;
    while let Some(block) = reader.next()? {
        match block {
            Block::Entries { user, entries } => {
                let entries: Vec<_> =
                    entries.into_iter().map(|(seq, at, bytes)| (seq, at, Bytes::from(bytes))).collect();
                build.entries(&user, &entries)
            }
            Block::Log { user, log } => build.stored(&user, log),
            Block::Ids(ids) => build.ids(ids),
            Block::Begin { .. } | Block::End { .. } | Block::Failed(_) => Ok(()),
        }
        .map_err(place)?;
    }
    build.finish(lossy_restarts.saturating_add(LOSSY_RESTARTS_ADDED), at_ms).map_err(place)
}
