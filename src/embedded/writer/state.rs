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
    /// Records in the journal, oldest first, numbered without a gap.
    pub(in crate::embedded) records: VecDeque<RecordInfo>,
    pub(in crate::embedded) wal_bytes: usize,
    /// Records that are being settled, if any are.
    pub(in crate::embedded) flush: Option<Flush>,
    pub(in crate::embedded) next_record: u64,
    /// Appends that were answered and are not synced yet: only where that is allowed.
    pub(in crate::embedded) unsynced: u64,
    /// Something was written to the journal and is not synced yet.
    pub(super) wal_unsynced: bool,
    /// Chunks were put that no barrier stands behind yet.
    pub(super) blocks_unsynced: Cell<bool>,
    /// Something was put into the outbox that is not synced yet, as that is allowed.
    pub(in crate::embedded) outbox_unsynced: bool,
    /// There is more room to be given back.
    pub(in crate::embedded) has_garbage: bool,
    /// What waits for space.
    pub(in crate::embedded) suspended: Suspended,
    pub(super) synced: Instant,
    pub(super) evicted: Instant,
}

/// One commit being made.
pub(in crate::embedded) struct Commit {
    pub(super) records: Vec<(u64, Vec<u8>)>,
    pub(super) writer: Option<RecordWriter>,
    pub(in crate::embedded) number: u64,
    /// Entries to be shown once it is durable: whose, which, and in which record.
    pub(in crate::embedded) entries: Vec<(UserId, Seq, u64)>,
    /// Some log in it has no entry yet since the last lapse.
    pub(super) first_entries: bool,
    /// Users whose inboxes are to be scanned_s once it is written.
    pub(in crate::embedded) tidy: Vec<UserId>,
    pub(super) replies: Vec<Reply>,
    /// Bytes of the records that are finished.
    pub(super) bytes: u64,
    /// Its answers promise that it lasts.
    pub(super) has_replies: bool,
}

/// Ids that are put into their table as one value.
pub(super) struct StoredIds {
    pub(super) chunk: schema::Ids,
    /// When the youngest of all that are settled together was committed.
    pub(super) youngest_ms: u64,
}

/// Records that are being settled together.
#[derive(Default)]
pub(in crate::embedded) struct Flush {
    /// How many of the oldest records.
    pub(super) records: usize,
    /// How many of those have been read.
    pub(super) read: usize,
    /// How many have been removed.
    pub(super) removed: usize,
    /// Users who are mentioned, while records are read.
    pub(super) users: HashSet<UserId, foldhash::fast::RandomState>,
    /// Those whose entries are still to be moved, once all records have been read.
    pub(super) left: Vec<UserId>,
    /// Those whose rows are still to be written, once that has been made to last.
    pub(super) rows: Vec<UserId>,
    pub(super) moved: bool,
    /// Their entries that are still pending.
    pub(super) pending: HashMap<UserId, Vec<Pending>, foldhash::fast::RandomState>,
    /// Ids that are named in them, and what was rejected under the next one.
    pub(super) ids: Vec<StoredId>,
    /// What of the ids is still to be put into their table, the last first; `None` before all records have been read.
    pub(super) id_chunks: Option<Vec<(Vec<u8>, StoredIds)>>,
    pub(super) rejected: Vec<Rejected>,
}

/// An entry on its way into an inbox.
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
    /// The disk had too little room.
    pub(super) is_scarce: Cell<bool>,
    /// What was refused last, if it was no more than an ordinary message.
    pub(super) refused: Cost,
}

/// Bytes set aside in the journal that messages do not get: for receipts on a full disk.
pub(super) const NOTES_BYTES: u64 = 1 << 20;

/// What waits for space.
#[derive(Default)]
pub(in crate::embedded) struct Suspended {
    /// Why work in the background waits, if it does.
    pub(super) why: Option<EngineError>,
    /// When it is tried again.
    pub(super) retry: Option<Instant>,
    /// A commit that is written before any other.
    pub(super) stuck: Option<Commit>,
    /// Users whose receipts are not in the journal. Each once: their logs are marked.
    pub(super) dirty: Vec<UserId>,
    /// Users whose inboxes are to be trimmed behind that. Likewise.
    pub(super) trim: Vec<UserId>,
    pub(super) looked: Option<DiskState>,
}

/// What was found of the disk.
#[derive(Clone, Copy)]
pub(super) struct DiskState {
    pub(super) at: Instant,
    pub(super) tables: TableSpace,
    pub(super) free: Option<u64>,
}

/// Where the sweep stands.
pub(in crate::embedded) struct ExpiryScan {
    /// The first row to look at next.
    pub(super) next: Vec<u8>,
    pub(super) swept: Instant,
    /// Stored ids, oldest first: key, and the time of the youngest in it.
    pub(super) id_chunks: VecDeque<(Vec<u8>, u64)>,
}
