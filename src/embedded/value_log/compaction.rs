//! Compaction: copies the live blocks of a mostly dead file, so that the file can be removed.
//!
//! The commit thread does it in steps: copies, then a sync of these, then the table is updated. The old file is
//! removed at the next checkpoint, when the table is synced too. So after a crash every location leads to an existing
//! block.

use std::io;

use super::{
    file::{BlockLocation, ValueLog, parts},
    framing::{self, HEAD_BYTES, Kind, read_at},
};
use crate::embedded::tables::contract::Copying;

/// Bytes of a file per step: about 1 ms.
const STEP_BYTES: usize = 256 << 10;

/// Holds the progress of the compaction of one file.
#[derive(Debug)]
pub struct Compaction {
    file: u64,
    /// Offset up to which the file is done.
    at: u64,
    /// Keys, old locations, and new locations.
    moved: Vec<(Vec<u8>, BlockLocation, BlockLocation)>,
}

/// Result of a step.
#[derive(Debug)]
pub enum CompactionStep {
    /// More is to be copied.
    More(Compaction),
    /// All live blocks are copied and synced. The table is updated where it still has the old location.
    Copied { file: u64, moved: Vec<(Vec<u8>, BlockLocation, BlockLocation)> },
}

impl CompactionStep {
    /// Begins with the emptiest file, if compaction is due.
    pub fn begin(files: &ValueLog, copying: Copying) -> Option<Self> {
        Some(Self::More(Compaction { file: files.emptiest(copying)?, at: 0, moved: Vec::new() }))
    }
}

impl Compaction {
    /// Copies the live blocks of the next part of the file. On an error nothing refers to the copies.
    pub fn step(
        mut self,
        files: &ValueLog,
        is_live: impl FnMut(&[u8], BlockLocation) -> io::Result<bool>,
    ) -> io::Result<CompactionStep> {
        match self.copy(files, is_live) {
            Ok(true) => Ok(CompactionStep::More(self)),
            Ok(false) => Ok(CompactionStep::Copied { file: self.file, moved: self.moved }),
            Err(error) => {
                self.moved.iter().for_each(|(_, _, copy)| files.release(*copy));
                Err(error)
            }
        }
    }

    /// Returns false after the last part.
    fn copy(
        &mut self,
        files: &ValueLog,
        mut is_live: impl FnMut(&[u8], BlockLocation) -> io::Result<bool>,
    ) -> io::Result<bool> {
        let Some(file) = files.file(self.file)? else {
            self.moved.drain(..).for_each(|(_, _, copy)| files.release(copy));
            return Ok(false);
        };
        let length = file.metadata()?.len();
        // If the disk cannot read it, nothing can be copied.
        let bytes = read_at(&file, self.at, STEP_BYTES).unwrap_or_default();
        let mut at = 0;
        while at < bytes.len() {
            let Some(body) = framing::body(Kind::Block, &bytes[at..]) else {
                match framing::find(Kind::Block, &bytes, at + 1) {
                    // An unreadable block stays, and its file with it while the table refers to it.
                    Some(next) => at = next,
                    None => break,
                }
                continue;
            };
            let length = HEAD_BYTES + body.len();
            let location = BlockLocation { file: self.file, at: (self.at + at as u64) as u32, length: length as u32 };
            if let Some((key, value)) = parts(body)
                && is_live(key, location)?
            {
                self.moved.push((key.to_vec(), location, files.append(key, value)?));
            }
            at += length;
        }
        // A frame cut off by the end of this part begins the next. No frame is larger than a part.
        self.at += if at == 0 { STEP_BYTES as u64 } else { at as u64 };
        // A torn end is no frame, and ends the file too.
        let ends = !bytes.is_empty() && bytes.len() < STEP_BYTES;
        if self.at < length && !ends {
            return Ok(true);
        }
        files.sync().map_err(io::Error::other)?;
        Ok(false)
    }
}
