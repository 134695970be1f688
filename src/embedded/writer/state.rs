//! Defines the state that the commit thread owns.

use std::{
    cell::Cell,
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Instant,
};

use bytes::Bytes;

use super::{
    cost::Cost,
    dedup::DedupTable,
    jobs::{CountBudget, Merge, Purge, TrimQueue},
    reply::{Reply, ReplySender},
};
use crate::{
    embedded::{
        options::Tuning,
        outbox::StepWrites,
        store_state::StoreState,
        tables::{
            contract::{BlockCopy, EngineError, TableSpace},
            schema::{self, StoredId},
        },
        value_log::{
            block::{Body, ENTRY_OVERHEAD_BYTES},
            bodies::BodyId,
        },
        wal::{events::RecordDecoder, record::RecordWriter},
    },
    message::{Seq, UserId},
    store::{Durability, Erasure, Limits},
    util::saturate::saturate,
};

/// Holds the state of the commit thread, and runs it.
pub(in crate::embedded) struct Committer {
    pub(in crate::embedded) shared: Arc<StoreState>,
    pub(in crate::embedded) durability: Durability,
    pub(in crate::embedded) tuning: Tuning,
    pub(in crate::embedded) limits: Limits,
    pub(in crate::embedded) dedup: DedupTable,
    pub(in crate::embedded) capacity: Capacity,
    pub(in crate::embedded) expiry: ExpiryScan,
    /// Records of the WAL, oldest first, numbered without a gap.
    pub(in crate::embedded) records: VecDeque<RecordInfo>,
    /// Bytes of these records.
    pub(in crate::embedded) wal_bytes: usize,
    /// The flush in progress, if any.
    pub(in crate::embedded) flush: Option<Flush>,
    /// Records up to this one are flushed without a delay.
    pub(in crate::embedded) flush_through: u64,
    /// The erasure in progress, if any.
    pub(in crate::embedded) erasure: Option<ErasureInProgress>,
    /// Erasures that wait for it, at most [`ERASURES_MAX`](super::erase::ERASURES_MAX).
    pub(super) erasures: VecDeque<(UserId, ReplySender<Erasure>)>,
    pub(in crate::embedded) next_record: u64,
    /// Number of answered appends that are not synced. Always 0 with `Durability::Always`.
    pub(in crate::embedded) not_durable: u64,
    /// The WAL has records that are not durable.
    pub(super) wal_not_durable: bool,
    /// Blocks were written after the last barrier.
    pub(super) blocks_not_durable: Cell<bool>,
    /// Steps of the outbox whose events are in the WAL, and not in the table yet, because that has no space. At most
    /// as many as the outbox has waiting events.
    pub(in crate::embedded) unput_events: VecDeque<StepWrites>,
    /// The table `connected` lacks rows, which the bound of one step has left over.
    pub(super) has_connected_rows: bool,
    /// Number of the last event of the users whose disconnection is being reported.
    pub(super) interrupted_event: u64,
    /// The engine has more space to reclaim at once.
    pub(in crate::embedded) has_garbage: bool,
    /// Work that is suspended for lack of disk space or descriptors.
    pub(in crate::embedded) suspended: Suspended,
    /// Time of the last sync of the WAL.
    pub(super) last_sync: Instant,
    /// Removal of released entries from the value log.
    pub(super) trims: TrimQueue,
    /// Removal of other unneeded entries from the value log, each user at most once for each kind.
    pub(super) purges: VecDeque<Purge>,
    /// Time of the last removal of unreferenced shared bodies.
    pub(super) last_body_removal: Instant,
    /// Removal of idle logs from memory.
    pub(super) eviction: Eviction,
}

/// Describes a record of the WAL.
#[derive(Clone, Copy, Debug)]
pub(in crate::embedded) struct RecordInfo {
    pub(in crate::embedded) number: u64,
    pub(in crate::embedded) bytes: usize,
    /// Time of the commit.
    pub(in crate::embedded) committed: Instant,
    /// The commit continues in the next record.
    pub(in crate::embedded) is_continued: bool,
}

/// Holds a commit that is being made.
pub(in crate::embedded) struct Commit {
    /// Finished records, each with its number.
    pub(super) records: Vec<(u64, Vec<u8>)>,
    /// The open record, if there is one.
    pub(super) writer: Option<RecordWriter>,
    /// Number of the open record, or of the next.
    pub(in crate::embedded) number: u64,
    /// Entries that become visible once the commit is durable: user, sequence, record.
    pub(in crate::embedded) entries: Vec<(UserId, Seq, u64)>,
    /// The commit has a log's first entry since the last lossy restart.
    pub(super) first_entries: bool,
    /// Users of whose blocks hidden entries are removed after the commit is written.
    pub(in crate::embedded) purge_hidden: Vec<UserId>,
    /// Users of whose blocks all unneeded entries are removed after the commit is written.
    pub(in crate::embedded) purge_all: Vec<UserId>,
    /// What the commit may still do to count logs again.
    pub(super) count_budget: CountBudget,
    pub(super) replies: Vec<Reply>,
    /// Steps of the outbox whose events are in the records.
    pub(in crate::embedded) events: Vec<StepWrites>,
    /// Bytes of the finished records, with their overhead in a segment.
    pub(super) bytes: u64,
    /// The commit has replies or events, so it must be as durable as configured.
    pub(in crate::embedded) has_replies: bool,
    /// When the commit began.
    pub(super) began: Instant,
}

/// Holds idempotency ids that are stored as one value.
pub(super) struct StoredIds {
    pub(super) block: schema::Ids,
    /// Time of the youngest id of the flush, in milliseconds of the Unix epoch.
    pub(super) youngest_ms: u64,
}

/// Holds a flush in progress, whose records are flushed together.
#[derive(Default)]
pub(in crate::embedded) struct Flush {
    /// Number of records, from the oldest on.
    pub(super) records: usize,
    /// Number of records read so far.
    pub(super) read: usize,
    /// Number of records removed so far.
    pub(super) removed: usize,
    /// Users that occur in the records read so far, with their pending entries that are not moved yet.
    ///
    /// In the order of the tables, so that consecutive writes are in the same pages of sled.
    pub(super) users: BTreeMap<UserId, VecDeque<FlushEntry>>,
    /// The user of whom a part is moved, and the rest is in `users`.
    pub(super) continued: Option<UserId>,
    /// Users whose small blocks may be merged, among those up to a sequence. They are copied before the barrier.
    pub(super) merges_left: VecDeque<(UserId, Seq)>,
    /// Copies of small blocks without a row.
    pub(super) merges: Vec<Merge>,
    /// The copies are durable, and are being set. No copy is made meanwhile.
    pub(super) merges_durable: bool,
    /// Users whose rows are not written yet, in the same order. They are written after the barrier.
    pub(super) rows_left: VecDeque<UserId>,
    /// Users whose rows are written, and whose logs may leave memory once the records are removed.
    pub(super) logs_left: Vec<UserId>,
    /// Shared bodies of the records that are not stored yet. They are stored before the blocks.
    pub(super) bodies: VecDeque<(BodyId, Bytes)>,
    pub(super) barrier_done: bool,
    /// Idempotency ids of the records.
    pub(super) ids: Vec<StoredId>,
    /// Blocks of ids that are not stored yet, the last first. `None` until all rows are written.
    pub(super) id_blocks: Option<Vec<(Vec<u8>, StoredIds)>>,
    pub(super) decoder: RecordDecoder,
}

/// Holds the erasure of a user, whose WAL item is durable.
pub(in crate::embedded) struct ErasureInProgress {
    pub(super) user: UserId,
    /// Blocks above this sequence are of a later log of the same user.
    pub(super) floor: Seq,
    /// Batches of events above this number are of a later log of the same user.
    pub(super) events: u64,
    /// The store had something about the user.
    pub(super) found: bool,
    pub(super) stage: ErasureStage,
    pub(super) done: ReplySender<Erasure>,
}

/// The next part of an erasure.
pub(super) enum ErasureStage {
    Blocks,
    /// Events above this number are not checked yet.
    Outbox(u64),
    /// Idempotency ids from this key on are not checked yet.
    Ids(Vec<u8>),
    Checkpoint,
}

impl Flush {
    /// Forgets a user who is erased: nothing of this user is written.
    ///
    /// Returns the shared bodies of the entries that are not moved yet, and the copies of blocks.
    #[must_use]
    pub(super) fn forget(&mut self, user: &UserId) -> (Vec<BodyId>, Vec<BlockCopy>) {
        let copies = self.merges.extract_if(.., |merge| merge.user == *user).map(|merge| merge.copy).collect();
        // Without copies that wait, the next ones may be made.
        self.merges_durable &= !self.merges.is_empty();
        let bodies = self.users.remove(user).into_iter().flatten().filter_map(|entry| entry.body).collect();
        self.merges_left.retain(|(left, _)| left != user);
        self.rows_left.retain(|left| left != user);
        let stored = self
            .id_blocks
            .iter_mut()
            .flatten()
            .flat_map(|(_, StoredIds { block: schema::Ids::V1 { ids, .. }, .. })| ids);
        for id in self.ids.iter_mut().chain(stored) {
            id.rejected.retain(|(rejected, _)| rejected != user.as_str());
        }
        (bodies, copies)
    }
}

/// Holds an entry that is being moved to the value log.
pub(super) struct FlushEntry {
    pub(super) seq: Seq,
    pub(super) expires_s: u32,
    pub(super) payload: Bytes,
    /// The shared body with this payload, if it is shared.
    pub(super) body: Option<BodyId>,
}

impl FlushEntry {
    /// Returns the payload as a block stores it.
    pub(super) fn body(&self) -> Body<'_> {
        self.body.map_or(Body::Inline(&self.payload), |id| Body::Shared(id, saturate(self.payload.len())))
    }

    /// Returns the bytes that the block has for the entry.
    pub(super) fn stored_bytes(&self) -> usize {
        ENTRY_OVERHEAD_BYTES + if self.body.is_some() { 0 } else { self.payload.len() }
    }
}

/// Holds the capacity of the store, as last measured.
pub(in crate::embedded) struct Capacity {
    pub(super) last_check: Instant,
    /// The disk had too little space at the last check.
    pub(super) was_scarce: Cell<bool>,
    /// Cost of the last rejected append that marked the store as full.
    pub(super) last_rejected: Cost,
}

/// Holds work that is suspended until there is space.
#[derive(Default)]
pub(in crate::embedded) struct Suspended {
    /// Why background work is suspended, if it is.
    pub(super) why: Option<EngineError>,
    /// Time of the next attempt.
    pub(super) retry: Option<Instant>,
    /// A commit that must be written before any other.
    pub(super) stuck: Option<Commit>,
    /// Users whose reports are not in the WAL, each once. Their logs are marked as dirty.
    pub(super) dirty: Vec<UserId>,
    pub(super) disk_state: Option<DiskState>,
}

/// Holds a measurement of the disk.
#[derive(Clone, Copy)]
pub(super) struct DiskState {
    pub(super) at: Instant,
    pub(super) tables: TableSpace,
    pub(super) free: Option<u64>,
}

/// Holds the progress of the removal of idle logs from memory.
pub(in crate::embedded) struct Eviction {
    /// The next part of the log cache.
    pub(super) next: usize,
    /// Time of the last part.
    pub(super) last: Instant,
}

/// Holds the progress of the background expiry.
pub(in crate::embedded) struct ExpiryScan {
    /// Key of the first row of the next step.
    pub(super) next: Vec<u8>,
    pub(super) last_run: Instant,
    /// Users of this step that are not expired yet.
    pub(super) due: Vec<UserId>,
    /// Stored blocks of ids are left that can be removed.
    pub(super) has_old_ids: bool,
    /// Ids in memory are left that are too old.
    pub(super) has_expired_ids: bool,
    /// Keys of stored blocks of ids, oldest first, with the time of the youngest id.
    pub(super) id_blocks: VecDeque<(Vec<u8>, u64)>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::embedded::tables::contract::NewBlock;

    #[test]
    fn removed_user_has_no_copies_left_and_those_of_others_stay() {
        let [alice, bob] = ["alice", "bob"].map(|id| UserId::new(id).unwrap());
        let merge = |user: &UserId| {
            let key = user.as_str().as_bytes().to_vec();
            let block = NewBlock { key, value: Vec::new(), summary: None, bodies: Vec::new() };
            Merge { user: user.clone(), sources: Vec::new(), copy: BlockCopy { block, location: None } }
        };
        let merges = [&alice, &bob, &alice].map(merge).into();
        let mut flush = Flush { merges, merges_durable: true, ..Flush::default() };
        let id = BodyId { record: 1, at: 70 };
        let entry = |body| FlushEntry { seq: 1, expires_s: 0, payload: Bytes::new(), body };
        flush.users.insert(alice.clone(), [entry(None), entry(Some(id))].into());
        let (bodies, copies) = flush.forget(&alice);
        assert_eq!(bodies, [id]);
        assert_eq!(copies.iter().map(|copy| &copy.block.key[..]).collect::<Vec<_>>(), [b"alice", b"alice"]);
        assert!(flush.merges_durable && flush.merges.iter().all(|merge| merge.user == bob));
        assert_eq!(flush.forget(&bob).1.len(), 1);
        assert!(!flush.merges_durable && flush.merges.is_empty(), "the next copies may be made");
    }
}
