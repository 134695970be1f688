//! Compaction of the value log in steps, with updates of the block locations, and removal of dead files.

use std::io;

use super::{
    contract::EngineError,
    sled::{Disk, Reclaim, read_error},
    sled_error,
};
use crate::embedded::value_log::{
    compaction::CompactionStep,
    location::{BlockLocation, BlockRow},
};

/// Limit of block locations that are updated in one step, which takes about 1 ms. Table space is checked before each
/// step.
const STEP_LOCATIONS_MAX: usize = 256;

/// Limit of files that are removed in one step. The removal of a file of 8 MiB may take a millisecond.
const STEP_FILES_MAX: usize = 4;

impl Disk {
    /// Removes the block of an erased user, and marks its file for compaction.
    pub(super) fn remove_erased_block(&self, key: &[u8]) -> Result<(), EngineError> {
        let row = self.trees.log.get(key).map_err(read_error)?;
        if let Some(row) = row.and_then(|row| BlockRow::decode(&row)) {
            self.value_log.set_erased(row.location);
        }
        self.remove_block(key)
    }

    /// Removes a few of the dead files. Returns true if there are more.
    pub(super) fn remove_dead_files(&self, reclaim: &mut Reclaim) -> bool {
        let rest = reclaim.dead_files.len().saturating_sub(STEP_FILES_MAX);
        self.value_log.remove(&reclaim.dead_files.split_off(rest));
        rest > 0
    }

    /// Runs one step of a compaction. Returns the next step, if there is one.
    pub(in crate::embedded) fn compact(&self, step: CompactionStep) -> Result<Option<CompactionStep>, EngineError> {
        let row_at = |key: &[u8], location: BlockLocation| -> io::Result<Option<BlockRow>> {
            let row = self.trees.log.get(key).map_err(sled_error::to_io_error)?;
            Ok(row.and_then(|row| BlockRow::decode(&row)).filter(|row| row.location == location))
        };
        let (file, mut moved) = match step {
            CompactionStep::Copy(compaction) => {
                let step = compaction.step(&self.value_log, |key, location| Ok(row_at(key, location)?.is_some()));
                return step.map(Some).map_err(|error| self.retryable(error));
            }
            CompactionStep::Update { file, moved } => (file, moved),
        };
        for (key, from, to) in moved.drain(moved.len().saturating_sub(STEP_LOCATIONS_MAX)..) {
            match row_at(&key, from).map_err(|error| self.failed(error))? {
                Some(row) => self.set_block_row(&key, BlockRow { location: to, ..row })?,
                None => {
                    // The block may be that of an erased user, whose original is marked.
                    if self.value_log.is_erased(file) {
                        self.value_log.set_erased(to);
                    }
                    self.value_log.release(to);
                }
            }
        }
        if !moved.is_empty() {
            return Ok(Some(CompactionStep::Update { file, moved }));
        }
        self.value_log.set_compacted(file);
        Ok(None)
    }
}
