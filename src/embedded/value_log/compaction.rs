//! Writing anew what lives in a file of chunks of which most is dead, so that the file can go.
//!
//! A little at a time, as the commit thread finds it: copies first, then a sync of these, then the table is told. The old
//! file goes with the next checkpoint, when the table is synced too: whatever a crash leaves of the table leads to a copy
//! that is there.

use std::io;

use super::{
    file::{BlockLocation, ValueLog, parts},
    framing::{self, HEAD_BYTES, Kind, read_at},
};
use crate::embedded::tables::contract::Copying;

/// Bytes of a file looked at in one step: about a millisecond.
const STEP_BYTES: usize = 256 << 10;

/// A file being left.
#[derive(Debug)]
pub struct Compaction {
    file: u64,
    /// What was looked at.
    at: u64,
    /// Keys, where their chunks were, and where copies of them are.
    moved: Vec<(Vec<u8>, BlockLocation, BlockLocation)>,
}

/// What a step came to.
#[derive(Debug)]
pub enum CompactionStep {
    /// There is more to be copied.
    More(Compaction),
    /// All is copied and synced: for each of these the table is to be told, where it still leads to the first place.
    Copied { file: u64, moved: Vec<(Vec<u8>, BlockLocation, BlockLocation)> },
}

impl CompactionStep {
    /// Begins with the emptiest file, if there is need to.
    pub fn begin(files: &ValueLog, copying: Copying) -> Option<Self> {
        Some(Self::More(Compaction { file: files.emptiest(copying)?, at: 0, moved: Vec::new() }))
    }
}

impl Compaction {
    /// Copies what `is_alive` of the next part of the file. Where that fails nothing is led to the copies that were made.
    pub fn step(
        mut self,
        files: &ValueLog,
        is_alive: impl FnMut(&[u8], BlockLocation) -> io::Result<bool>,
    ) -> io::Result<CompactionStep> {
        match self.copy(files, is_alive) {
            Ok(true) => Ok(CompactionStep::More(self)),
            Ok(false) => Ok(CompactionStep::Copied { file: self.file, moved: self.moved }),
            Err(error) => {
                self.moved.iter().for_each(|(_, _, copy)| files.release(*copy));
                Err(error)
            }
        }
    }

    /// False if that was the last part.
    fn copy(
        &mut self,
        files: &ValueLog,
        mut is_alive: impl FnMut(&[u8], BlockLocation) -> io::Result<bool>,
    ) -> io::Result<bool> {
        let Some(file) = files.file(self.file)? else {
            self.moved.drain(..).for_each(|(_, _, copy)| files.release(copy));
            return Ok(false);
        };
        let length = file.metadata()?.len();
        // Where the disk does not give it back, nothing can be copied.
        let bytes = read_at(&file, self.at, STEP_BYTES).unwrap_or_default();
        let mut at = 0;
        while at < bytes.len() {
            let Some(body) = framing::body(Kind::Block, &bytes[at..]) else {
                match framing::find(Kind::Block, &bytes, at + 1) {
                    // What cannot be read stays where it is, and the file with it if the table leads there.
                    Some(next) => at = next,
                    None => break,
                }
                continue;
            };
            let length = HEAD_BYTES + body.len();
            let place = BlockLocation { file: self.file, at: (self.at + at as u64) as u32, length: length as u32 };
            if let Some((key, value)) = parts(body)
                && is_alive(key, place)?
            {
                self.moved.push((key.to_vec(), place, files.append(key, value)?));
            }
            at += length;
        }
        // A frame that the end of this part cuts through begins the next one; one that is larger than a part is none.
        self.at += if at == 0 { STEP_BYTES as u64 } else { at as u64 };
        // What a crash has torn at its end is no frame, and ends it too.
        let ends = !bytes.is_empty() && bytes.len() < STEP_BYTES;
        if self.at < length && !ends {
            return Ok(true);
        }
        files.sync().map_err(io::Error::other)?;
        Ok(false)
    }
}
