//! Moves shared bodies to the value log, and removes those that no block references any more.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::{
    flush::PART_BYTES,
    state::{Committer, Flush},
};
use crate::embedded::{
    tables::contract::{EngineError, Table, TableSpace},
    value_log::{
        block::ENTRY_OVERHEAD_BYTES,
        bodies::{BodyId, SharedBody},
    },
};

/// Interval of removals.
const REMOVAL_INTERVAL: Duration = Duration::from_millis(100);

/// Limit of bodies that one step removes, which takes less than 1 ms.
const STEP_BODIES_MAX: usize = 64;

impl Committer {
    /// Moves some shared bodies to the value log. After an error, a retry repeats it.
    ///
    /// The records are durable by now. Otherwise a power cut could lose a record and keep its body, whose id would be
    /// used again.
    pub(super) fn flush_bodies(&mut self, flush: &mut Flush) -> Result<(), EngineError> {
        self.check_margin()?;
        let (namespace, mut bytes) = (self.shared.namespace, 0);
        let fits = |(_, payload): &&(BodyId, Bytes)| {
            let fits = bytes < PART_BYTES;
            bytes += payload.len() + ENTRY_OVERHEAD_BYTES;
            fits
        };
        let encoded = flush.bodies.iter().take_while(fits);
        let encoded: Vec<_> =
            encoded.map(|(id, payload)| (*id, SharedBody::V1 { namespace, payload }.encode())).collect();
        self.blocks_not_durable.set(true);
        self.shared.engine.put_bodies(&encoded)?;
        flush.bodies.drain(..encoded.len());
        Ok(())
    }

    /// Removes some unreferenced bodies. Returns true if there are more.
    ///
    /// Not those of records in the WAL: a flush may be about to write the first block that references them. No later
    /// flush references the others, so a body without references never gets one again.
    pub(super) fn remove_bodies(&mut self) -> Result<bool, EngineError> {
        if self.last_body_removal.elapsed() < REMOVAL_INTERVAL || self.table_space() < TableSpace::Little {
            return Ok(false);
        }
        let removed = self.remove_bodies_step();
        if !matches!(removed, Ok(true)) {
            // A failed step is retried then, too.
            self.last_body_removal = Instant::now();
        }
        removed
    }

    fn remove_bodies_step(&self) -> Result<bool, EngineError> {
        let first = self.records.front().map_or(self.next_record, |record| record.number);
        let bodies = self.shared.engine.unreferenced_bodies(first, STEP_BODIES_MAX)?;
        bodies.iter().try_for_each(|id| self.shared.engine.remove(Table::Bodies, &id.key()))?;
        self.shared.bodies.remove(&bodies);
        Ok(bodies.len() == STEP_BODIES_MAX)
    }
}
