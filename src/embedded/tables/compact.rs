//! Compaction of the value log in steps, and the update of the block locations.

use std::io;

use super::{contract::EngineError, sled::Disk, sled_error};
use crate::embedded::value_log::{compaction::Step, file::Place};

/// Block locations that are updated in one step. Table space is checked before each step.
const STEP_PLACES: usize = 1024;

impl Disk {
    /// Runs one step. Returns the next step, if there is one.
    pub(in crate::embedded) fn compact(&self, step: Step) -> Result<Option<Step>, EngineError> {
        let location_of = |key: &[u8]| -> io::Result<Option<Place>> {
            let place = self.trees.places.get(key).map_err(sled_error::of)?;
            Ok(place.and_then(|place| Place::decode(&place)))
        };
        let (file, mut moved) = match step {
            Step::More(compaction) => {
                let step = compaction.step(&self.chunks, |key, place| Ok(location_of(key)? == Some(place)));
                return step.map(Some).map_err(|error| self.refused(error));
            }
            Step::Copied { file, moved } => (file, moved),
        };
        for (key, from, to) in moved.drain(moved.len().saturating_sub(STEP_PLACES)..) {
            if location_of(&key).map_err(|error| self.failed(error))? == Some(from) {
                self.set_place(&key, to)?;
            } else {
                self.chunks.release(to);
            }
        }
        if !moved.is_empty() {
            return Ok(Some(Step::Copied { file, moved }));
        }
        self.chunks.compacted(file);
        Ok(None)
    }
}
