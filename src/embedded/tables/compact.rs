//! Compaction of the value log in steps, with updates of the block locations.

use std::io;

use super::{contract::EngineError, sled::Disk, sled_error};
use crate::embedded::value_log::{compaction::CompactionStep, location::BlockLocation};

/// Block locations that are updated in one step. Table space is checked before each step.
const STEP_LOCATIONS_MAX: usize = 1024;

impl Disk {
    /// Runs one step of a compaction. Returns the next step, if there is one.
    pub(in crate::embedded) fn compact(&self, step: CompactionStep) -> Result<Option<CompactionStep>, EngineError> {
        let location_of = |key: &[u8]| -> io::Result<Option<BlockLocation>> {
            let location = self.trees.locations.get(key).map_err(sled_error::to_io_error)?;
            Ok(location.and_then(|location| BlockLocation::decode(&location)))
        };
        let (file, mut moved) = match step {
            CompactionStep::Copy(compaction) => {
                let step = compaction.step(&self.value_log, |key, location| Ok(location_of(key)? == Some(location)));
                return step.map(Some).map_err(|error| self.retryable(error));
            }
            CompactionStep::Update { file, moved } => (file, moved),
        };
        for (key, from, to) in moved.drain(moved.len().saturating_sub(STEP_LOCATIONS_MAX)..) {
            if location_of(&key).map_err(|error| self.failed(error))? == Some(from) {
                self.set_location(&key, to)?;
            } else {
                self.value_log.release(to);
            }
        }
        if !moved.is_empty() {
            return Ok(Some(CompactionStep::Update { file, moved }));
        }
        self.value_log.set_compacted(file);
        Ok(None)
    }
}
