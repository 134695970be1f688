//! Compaction: copies the live blocks of a mostly dead file, so that the file can be removed.
//!
//! The commit thread runs it in steps: it copies blocks, syncs the copies, and updates the table of locations. The old
//! file is removed at the next checkpoint, when the table is synced too. So after a crash every location refers to an
//! existing block.

use std::io;

use super::{
    file::{ValueLog, split_body},
    location::BlockLocation,
};
use crate::embedded::{
    file_io::{read_at, to_u32},
    framing::{self, HEADER_BYTES, Kind},
    tables::contract::CompactionMode,
};

/// Bytes of a file per step, which takes about 1 ms.
const STEP_BYTES: usize = 256 << 10;

/// Limit of blocks that one step checks, so that a file of small blocks takes no longer.
const STEP_BLOCKS_MAX: usize = 256;

/// Holds the progress of the compaction of one file.
#[derive(Debug)]
pub struct Compaction {
    file: u64,
    /// Offset up to which the file is copied.
    offset: u64,
    /// Copied blocks, in the order of the file: key, old location, new location.
    moved: Vec<(Vec<u8>, BlockLocation, BlockLocation)>,
}

/// The next step of a compaction.
#[derive(Debug)]
pub enum CompactionStep {
    /// Copies the next part of the file.
    Copy(Compaction),
    /// Updates the table where it still has an old location. All live blocks are copied and synced.
    Update { file: u64, moved: Vec<(Vec<u8>, BlockLocation, BlockLocation)> },
}

impl CompactionStep {
    /// Begins a compaction of the emptiest file, if one is due.
    pub fn begin(value_log: &ValueLog, mode: CompactionMode) -> Option<Self> {
        Some(Self::Copy(Compaction { file: value_log.emptiest(mode)?, offset: 0, moved: Vec::new() }))
    }

    /// Returns the location of the copy of a block, if it was copied.
    pub fn copy_of(&self, location: BlockLocation) -> Option<BlockLocation> {
        let (Self::Copy(Compaction { file, moved, .. }) | Self::Update { file, moved }) = self;
        if location.file != *file {
            return None;
        }
        // In the order of the file.
        let at = moved.binary_search_by_key(&location.offset, |(_, from, _)| from.offset).ok()?;
        Some(moved[at].2)
    }
}

impl Compaction {
    /// Copies the live blocks of the next part of the file. On an error the copies count as dead.
    pub fn step(
        mut self,
        value_log: &ValueLog,
        is_live: impl FnMut(&[u8], BlockLocation) -> io::Result<bool>,
    ) -> io::Result<CompactionStep> {
        match self.copy_part(value_log, is_live) {
            Ok(true) => Ok(CompactionStep::Copy(self)),
            Ok(false) => Ok(CompactionStep::Update { file: self.file, moved: self.moved }),
            Err(error) => {
                self.moved.iter().for_each(|(_, _, copy)| value_log.release(*copy));
                Err(error)
            }
        }
    }

    /// Copies the live blocks of the next part. Returns false after the last part.
    fn copy_part(
        &mut self,
        value_log: &ValueLog,
        mut is_live: impl FnMut(&[u8], BlockLocation) -> io::Result<bool>,
    ) -> io::Result<bool> {
        let Some(file) = value_log.file(self.file)? else {
            self.moved.drain(..).for_each(|(_, _, copy)| value_log.release(copy));
            return Ok(false);
        };
        let length = file.metadata()?.len();
        // Blocks that the disk cannot read are not copied.
        let bytes = read_at(&file, self.offset, STEP_BYTES).unwrap_or_default();
        let (mut at, mut blocks) = (0, 0);
        while at < bytes.len() && blocks < STEP_BLOCKS_MAX {
            let Some(body) = framing::body(Kind::Block, &bytes[at..]) else {
                match framing::find(Kind::Block, &bytes, at + 1) {
                    // An unreadable block is not copied. Its file stays while the table refers to the block.
                    Some(next) => at = next,
                    None => break,
                }
                continue;
            };
            let length = HEADER_BYTES + body.len();
            let offset = to_u32(self.offset + at as u64)?;
            let location = BlockLocation { file: self.file, offset, length: to_u32(length as u64)? };
            if let Some((key, value)) = split_body(body)
                && is_live(key, location)?
            {
                self.moved.push((key.to_vec(), location, value_log.append(key, value)?));
            }
            at += length;
            blocks += 1;
        }
        // A frame cut off by the end of this part is at the beginning of the next. No frame is larger than a part.
        self.offset += if at == 0 { STEP_BYTES as u64 } else { at as u64 };
        // Bytes after the last frame of the file are a torn write.
        let is_last_part = !bytes.is_empty() && bytes.len() < STEP_BYTES && blocks < STEP_BLOCKS_MAX;
        if self.offset < length && !is_last_part {
            return Ok(true);
        }
        value_log.sync().map_err(io::Error::other)?;
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn step_over_small_blocks_checks_few_and_all_steps_copy_each_once() {
        const BLOCKS: usize = 1_000;
        let home = tempfile::tempdir().unwrap();
        let files = ValueLog::open(home.path(), 0, None).unwrap();
        let keys: Vec<_> = (0..BLOCKS as u64).map(u64::to_be_bytes).collect();
        let file = keys.iter().map(|key| files.append(key, b"block").unwrap().file).max().unwrap();
        let mut compaction = Compaction { file, offset: 0, moved: Vec::new() };
        // The file of the copies is the same. So this stops before it reaches them.
        for step in 1..=BLOCKS.div_ceil(STEP_BLOCKS_MAX) {
            let mut checked = 0;
            let next = compaction.step(&files, |key, _| {
                checked += 1;
                Ok(keys.iter().any(|known| known == key))
            });
            assert!(checked <= STEP_BLOCKS_MAX, "{checked} blocks in one step");
            let CompactionStep::Copy(rest) = next.unwrap() else { panic!("the copies follow") };
            assert_eq!(rest.moved.len(), step * STEP_BLOCKS_MAX);
            compaction = rest;
        }
        let copied: Vec<_> = compaction.moved.iter().take(BLOCKS).map(|(key, ..)| key.clone()).collect();
        assert_eq!(copied, keys);
    }
}
