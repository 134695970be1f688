//! State of the commit thread.

use std::{
    cell::Cell,
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Instant,
};

use bytes::Bytes;

use super::{cost::Cost, dedup::DedupTable, reply::Reply};
use crate::{
    embedded::{
        recovery::RecordInfo,
        shared::{Shared, Tuning},
        tables::{
            contract::{EngineError, TableSpace},
            schema::{self, StoredId},
        },
        wal::record::RecordWriter,
    },
    message::{Seq, UserId},
    store::{Durability, Limits, Rejected},
};

/// Everything the commit thread owns.
pub(in crate::embedded) struct Committer {
    pub(in crate::embedded) shared: Arc<Shared>,
    pub(in crate::embedded) durability: Durability,
    pub(in crate::embedded) tuning: Tuning,
    pub(in crate::embedded) limits: Limits,
    pub(in crate::embedded) dedup: DedupTable,
    pub(in crate::embedded) capacity: Capacity,
    pub(in crate::embedded) expiry: ExpiryScan,
    /// Records of the WAL, oldest first, numbered without a gap.
    pub(in crate::embedded) records: VecDeque<RecordInfo>,
    pub(in crate::embedded) wal_bytes: usize,
    /// The flush under way, if any.
    pub(in crate::embedded) flush: Option<Flush>,
    pub(in crate::embedded) next_record: u64,
    /// Appends that were answered and are not synced. Always 0 with `Durability::Always`.
    pub(in crate::embedded) unsynced: u64,
    /// The WAL has unsynced records.
    pub(super) wal_unsynced: bool,
    /// Blocks were written that no barrier covers yet.
    pub(super) blocks_unsynced: Cell<bool>,
    /// The outbox has unsynced events, as the durability allows.
    pub(in crate::embedded) outbox_unsynced: bool,
    /// The engine has more space to reclaim.
    pub(in crate::embedded) has_garbage: bool,
    /// Work that waits for disk space or descriptors.
    pub(in crate::embedded) suspended: Suspended,
    pub(super) synced: Instant,
    pub(super) evicted: Instant,
}

/// One commit being made.
pub(in crate::embedded) struct Commit {
    pub(super) records: Vec<(u64, Vec<u8>)>,
    pub(super) writer: Option<RecordWriter>,
    pub(in crate::embedded) number: u64,
    /// Entries that become visible once the commit is durable: user, sequence, record.
    pub(in crate::embedded) entries: Vec<(UserId, Seq, u64)>,
    /// The commit has a log's first entry since the last lossy restart.
    pub(super) first_entries: bool,
    /// Users whose inboxes are to be scanned_s once it is written.
    pub(in crate::embedded) tidy: Vec<UserId>,
    pub(super) replies: Vec<Reply>,
    /// Bytes of the finished records.
    pub(super) bytes: u64,
    /// The commit has replies, so it must be as durable as configured.
    pub(super) has_replies: bool,
}

/// Ids that are stored as one value.
pub(super) struct StoredIds {
    pub(super) chunk: schema::Ids,
    /// Time of the youngest id of the whole flush, in milliseconds of the Unix epoch.
    pub(super) youngest_ms: u64,
}

/// Records that are flushed together.
#[derive(Default)]
pub(in crate::embedded) struct Flush {
    /// How many of the oldest records.
    pub(super) records: usize,
    /// How many of those have been read.
    pub(super) read: usize,
    /// How many have been removed.
    pub(super) removed: usize,
    /// Users that occur in the records read so far.
    pub(super) users: HashSet<UserId, foldhash::fast::RandomState>,
    /// Users whose entries are still to be moved.
    pub(super) left: Vec<UserId>,
    /// Users whose rows are still to be written, after the barrier.
    pub(super) rows: Vec<UserId>,
    pub(super) moved: bool,
    /// Pending entries of these users.
    pub(super) pending: HashMap<UserId, Vec<Pending>, foldhash::fast::RandomState>,
    /// Idempotency ids of the records.
    pub(super) ids: Vec<StoredId>,
    /// Blocks of ids still to be stored, the last first; `None` before all records are read.
    pub(super) id_chunks: Option<Vec<(Vec<u8>, StoredIds)>>,
    pub(super) rejected: Vec<Rejected>,
}

/// An entry on its way into the value log.
pub(super) struct Pending {
    pub(super) seq: Seq,
    pub(super) expires_s: u32,
    pub(super) payload: Bytes,
}

/// What the commit thread knows of the store's room.
pub(in crate::embedded) struct Capacity {
    /// Bytes of payload in all inboxes.
    pub(super) inbox_bytes: Cell<u64>,
    pub(super) looked: Instant,
    /// The disk had too little space at the last check.
    pub(super) is_scarce: Cell<bool>,
    /// Cost of the last rejected append, if it was of ordinary size.
    pub(super) refused: Cost,
}

/// Bytes reserved in the WAL for acknowledgements on a full disk. Messages do not get them.
pub(super) const NOTES_BYTES: u64 = 1 << 20;

/// What waits for space.
#[derive(Default)]
pub(in crate::embedded) struct Suspended {
    /// Why background work is suspended, if it is.
    pub(super) why: Option<EngineError>,
    /// Time of the next attempt.
    pub(super) retry: Option<Instant>,
    /// A commit that must be written before any other.
    pub(super) stuck: Option<Commit>,
    /// Users whose acknowledgements are not in the WAL, each once: their logs are marked.
    pub(super) dirty: Vec<UserId>,
    /// Users whose blocks are to be trimmed after that, each once.
    pub(super) trim: Vec<UserId>,
    pub(super) looked: Option<DiskState>,
}

/// Measured state of the disk.
#[derive(Clone, Copy)]
pub(super) struct DiskState {
    pub(super) at: Instant,
    pub(super) tables: TableSpace,
    pub(super) free: Option<u64>,
}

/// Position of the background expiry.
pub(in crate::embedded) struct ExpiryScan {
    /// Key of the next row to check.
    pub(super) next: Vec<u8>,
    pub(super) swept: Instant,
    /// Keys of stored blocks of ids, oldest first, with the time of the youngest id.
    pub(super) id_chunks: VecDeque<(Vec<u8>, u64)>,
}
