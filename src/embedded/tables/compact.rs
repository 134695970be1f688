//! Compaction of the value log: one step at a time, and the rows that follow.

use std::io;

use super::{contract::EngineError, sled::Disk, sled_error};
use crate::embedded::value_log::{compaction::Step, file::Place};

/// Chunks of which the table is told in one step. Before each step its space is looked at.
const STEP_PLACES: usize = 1024;

impl Disk {
    /// Takes one step; what is to be done next, if anything is.
    pub(in crate::embedded) fn compact(&self, step: Step) -> Result<Option<Step>, EngineError> {
        let leads = |key: &[u8]| -> io::Result<Option<Place>> {
            let place = self.trees.places.get(key).map_err(sled_error::of)?;
            Ok(place.and_then(|place| Place::decode(&place)))
        };
        let (file, mut moved) = match step {
            Step::More(compaction) => {
                let step = compaction.step(&self.chunks, |key, place| Ok(leads(key)? == Some(place)));
                return step.map(Some).map_err(|error| self.refused(error));
            }
            Step::Copied { file, moved } => (file, moved),
        };
        for (key, from, to) in moved.drain(moved.len().saturating_sub(STEP_PLACES)..) {
            if leads(&key).map_err(|error| self.failed(error))? == Some(from) {
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
