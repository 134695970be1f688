//! Defines what the commit thread writes in one step, and the space for it.

use super::{
    BatchInfo,
    format::{Batch, StoredLost},
};
use crate::message::{Seq, UserId};

/// States the disk space for the outbox.
#[derive(Clone, Copy)]
pub(in crate::embedded) struct OutboxSpace {
    /// Bytes on the disk that the outbox may take.
    pub(super) spare: u64,
    /// Bytes that fit into sled's file before it grows; 0 if they are ignored.
    pub(super) slack: u64,
    /// Only removals are allowed.
    pub(super) little: bool,
}

impl OutboxSpace {
    /// No event may be written, only removed.
    pub(in crate::embedded) const REMOVALS: Self = Self { spare: 0, slack: 0, little: true };
}

/// Holds the writes of one step.
pub(in crate::embedded) struct StepWrites {
    pub(super) batches: Vec<(BatchInfo, Batch)>,
    /// Counts of dropped events to store.
    pub(super) lost: Option<StoredLost>,
    /// The stored counts must be removed, because an event reports them.
    pub(super) lost_reported: bool,
    pub(super) reported: Vec<(UserId, Option<Seq>)>,
    pub(super) remove: Vec<BatchInfo>,
    /// There are writes for another step.
    pub(in crate::embedded) more: bool,
}

impl StepWrites {
    /// Returns whether the step has events.
    pub(in crate::embedded) fn has_events(&self) -> bool {
        !self.batches.is_empty()
    }

    /// Returns whether the step only removes events. Then it depends on no other step.
    pub(in crate::embedded) fn has_only_removals(&self) -> bool {
        self.batches.is_empty() && self.lost.is_none() && !self.lost_reported && self.reported.is_empty()
    }

    /// Returns whether the step has counts of dropped events, which are not in the WAL.
    pub(in crate::embedded) fn has_counts(&self) -> bool {
        self.lost.is_some()
    }

    /// Iterates over the batches of events, encoded as pieces, each with the number of its first event.
    pub(in crate::embedded) fn batches(&self) -> impl Iterator<Item = (u64, Vec<Vec<u8>>)> {
        self.batches.iter().map(|(info, batch)| (info.first, batch.pieces()))
    }
}
