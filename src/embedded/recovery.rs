//! Opens a store: checks its format and namespace, and replays the write-ahead log into memory.
//!
//! With a durability other than [`Durability::Always`], an unclean end counts as a *lossy restart*: see
//! [`lossy_restarts`](super::user_log::lossy_restarts).

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    engine::Engine,
    options::Options,
    outbox::replay::ReplayedEvents,
    tables::{
        contract::{EngineError, Table, Tables},
        schema::{Ids as IdBlock, StoredId, StoredLog, is_log_key_of, log_key, wal_key, wal_number},
    },
    unreadable,
    user_log::{
        UserLog, WalSlot,
        cache::LogCache,
        lossy_restarts::{LossyRestarts, has_skipped},
    },
    value_log::bodies::SHARED_BYTES_MIN,
    wal::{
        cache::RecordCache,
        contract::Wal,
        events::{Event, Message, RecordDecoder, is_continued},
    },
    writer::{
        cost::Cost,
        dedup::{DedupTable, decode_summary},
        erase::{ReplayedErasure, repeat_erasures},
        state::RecordInfo,
    },
};
use crate::{
    embedded::tables::meta::{
        CLOCK_KEY, FLOOR_KEY, FLUSHED_KEY, FORMAT, FORMAT_KEY, FULL_LOSSY_RESTARTS_KEY, LOSSY_RESTART_RECORD_KEY,
        LOSSY_RESTARTS_KEY, NAMESPACE_KEY, OPEN_ALWAYS, OPEN_KEY, OPEN_LOSSY, check_format, check_namespace,
    },
    failpoints::{self, Failpoint},
    message::{CollapseKey, Seq, UserId},
    store::{Durability, GapReason, StoreError, clock::Clock, fingerprint},
    util::saturate::saturate,
};

/// Holds the result of opening a store.
pub(super) struct Recovered {
    pub logs: LogCache,
    pub clock: Clock,
    pub wal: RecoveredWal,
    /// The newest records, which reconnecting clients read soon after a restart.
    pub record_cache: RecordCache,
    /// Users whose blocks must be trimmed.
    pub trim: Vec<UserId>,
}

/// Holds the state of the WAL that the commit thread continues from.
pub(super) struct RecoveredWal {
    /// Records of the WAL, oldest first, numbered without a gap.
    pub records: VecDeque<RecordInfo>,
    pub next_record: u64,
    pub dedup: DedupTable,
    /// Keys of stored blocks of ids, oldest first, with the time of the youngest id.
    pub id_blocks: VecDeque<(Vec<u8>, u64)>,
}

/// Opens a store: checks it, completes an interrupted flush, and replays the WAL.
pub(super) fn recover(engine: Arc<dyn Engine>, namespace: &str, options: &Options) -> Result<Recovered, StoreError> {
    ensure_format(&*engine)?;
    ensure_namespace(&*engine, namespace)?;
    let flushed = engine.get(Table::Meta, FLUSHED_KEY)?.and_then(|bytes| wal_number(&bytes));
    let flushed = flushed.unwrap_or(0);
    remove_flushed_records(&*engine, flushed)?;
    // Before any sync: a synced record is never rolled back.
    remove_unfinished_commit(&*engine)?;
    let last_before = engine.record_numbers().map_or(0, |(_, last)| last).max(flushed);
    let (lossy_restarts, lossy_restart_record) = mark_open(&*engine, options.durability, last_before)?;
    let clock_ms = engine.get(Table::Meta, CLOCK_KEY)?;
    let stored_events = ReplayedEvents::after_stored(&*engine)?;
    let mut replay = Replay {
        tables: engine.clone(),
        namespace: fingerprint(namespace),
        logs: HashMap::default(),
        records: VecDeque::new(),
        written_ms: Vec::new(),
        now: Instant::now(),
        decoder: RecordDecoder::default(),
        results: Vec::new(),
        erased: Vec::new(),
        events: stored_events,
        floor: 0,
        last_ms: clock_ms.and_then(|bytes| Some(u64::from_be_bytes(bytes[..].try_into().ok()?))).unwrap_or(0),
    };
    let (mut damage, record_cache) = (None, RecordCache::new(options.record_cache_bytes));
    engine.scan_records(&mut |number, record| match replay.apply_record(number, &record) {
        Ok(()) => {
            record_cache.push(number, record);
            true
        }
        Err(error) => {
            damage = Some(error);
            false
        }
    })?;
    if let Some(damage) = damage {
        return Err(damage);
    }
    // Also if this start has no outbox: the next flush removes the records.
    replay.events.put(&*engine)?;
    // Before the ids are read and the outbox is opened. A crash may have interrupted an erasure after its item.
    repeat_erasures(&*engine, &replay.erased)?;
    let stored_floor = engine.get(Table::Meta, FLOOR_KEY)?.and_then(|bytes| wal_number(&bytes)).unwrap_or(0);
    let floor = stored_floor.max(replay.floor);
    if floor > stored_floor {
        engine.put(Table::Meta, FLOOR_KEY, &floor.to_be_bytes())?;
    }
    let last = replay.records.back().map_or(0, |last| last.number).max(flushed);
    let clock = Clock::new(replay.last_ms, options.ahead_ms.clone());
    // Records keep their age over a restart. Otherwise a server that restarts often would never flush, and would replay
    // a longer WAL at each start.
    for (record, written_ms) in replay.records.iter_mut().zip(&replay.written_ms) {
        let age = Duration::from_millis(clock.now_ms().saturating_sub(*written_ms));
        record.committed = replay.now.checked_sub(age).unwrap_or(replay.now);
    }
    let mut dedup = DedupTable::new(&options.limits);
    let id_blocks = read_ids(&*engine, replay.namespace, &mut dedup, clock.now_ms())?;
    for result in replay.results.into_iter().filter(|_| !failpoints::enabled(Failpoint::LostIds)) {
        // If the id is stored already, the WAL may lack a part of its rejected recipients.
        if dedup.contains(&result.id) {
            continue;
        }
        dedup.insert(&result.id, result.at_ms, decode_summary(&result), clock.now_ms());
    }
    let logs = LogCache::new(engine.clone(), lossy_restarts, floor);
    let mut trim = Vec::new();
    for (user, replayed) in replay.logs {
        let ReplayedLog { mut log, first, last_append, is_erased } = replayed;
        if is_erased {
            continue;
        }
        if log.row_lossy_restarts.is_none() && log.head < floor && last_append == 0 {
            // Nothing was appended to this new log.
            log.skip_to(floor);
        }
        let known = lossy_restarts.known(log.row_lossy_restarts, first);
        remove_unflushed_blocks(&*engine, user.as_str(), log.flushed)?;
        remove_merged_blocks(&*engine, user.as_str(), log.flushed)?;
        if last_append <= lossy_restart_record {
            log.skip_lossy_restarts(lossy_restarts, known);
        }
        if log.row_lossy_restarts.is_none() {
            // A crash came before the row was written. Without a row, no list of users would include this user.
            let row = log.row(lossy_restarts.count);
            log.row_lossy_restarts = Some(row.lossy_restarts);
            // The row is durable once the records of this log are removed.
            log.row_before_entry = Some(log.last_record);
            engine.put(Table::Users, user.as_str().as_bytes(), &row.encode())?;
        }
        log.trimming = log.release() && log.counted < log.released();
        log.released_in_wal = log.released();
        if failpoints::enabled(Failpoint::SequenceReuse) && log.last_slot().is_none() {
            log.head = log.head.saturating_sub(2);
            log.assigned = log.head;
        }
        trim.extend(log.trimming.then(|| user.clone()));
        logs.insert(user, log);
    }
    let wal = RecoveredWal { records: replay.records, next_record: last + 1, dedup, id_blocks };
    Ok(Recovered { logs, clock, wal, record_cache, trim })
}

/// Removes flushed records that remain because a crash came before their removal.
fn remove_flushed_records(wal: &dyn Wal, flushed: u64) -> Result<(), EngineError> {
    while let Some((first, _)) = wal.record_numbers().filter(|(first, _)| *first <= flushed) {
        wal.remove_record(first)?;
    }
    Ok(())
}

/// Removes the records of an incomplete last commit, which was never answered.
///
/// Removal starts at the highest record, so that the next start resumes it after another crash.
fn remove_unfinished_commit(wal: &dyn Wal) -> Result<(), EngineError> {
    while let Some((_, last)) = wal.record_numbers() {
        // The replay reports a record that cannot be read.
        if wal.record(last)?.as_deref().and_then(is_continued) != Some(true) {
            break;
        }
        wal.rollback_last(last)?;
    }
    Ok(())
}

/// Loads the stored idempotency ids. Returns the keys of their blocks, oldest first, with the time of the youngest id.
fn read_ids(
    tables: &dyn Tables,
    namespace: u32,
    dedup: &mut DedupTable,
    now_ms: u64,
) -> Result<VecDeque<(Vec<u8>, u64)>, StoreError> {
    let mut blocks = VecDeque::new();
    let mut damage = None;
    let read = tables.scan(Table::Ids, &[], &mut |key, value| match IdBlock::decode(&value) {
        Ok(IdBlock::V1 { namespace: stored, ids: found }) if stored == namespace => {
            dedup.load(&found, now_ms);
            blocks.push_back((key.to_vec(), found.iter().map(|id| id.at_ms).max().unwrap_or(0)));
            true
        }
        Ok(IdBlock::V1 { .. }) => {
            damage = Some("dispatch ids of another namespace".to_owned());
            false
        }
        Err(error) => {
            damage = Some(format!("dispatch ids: {error}"));
            false
        }
    });
    read?;
    damage.map_or(Ok(blocks), |damage| Err(unreadable::damaged(damage)))
}

/// Removes the blocks of an incomplete flush.
///
/// No row refers to them, and their entries are still in the WAL. Otherwise they would overlap the blocks of the next
/// flush.
///
/// Reads keys only: the next key is usually another user's, whose block would be read for nothing.
fn remove_unflushed_blocks(tables: &dyn Tables, user: &str, flushed: Seq) -> Result<(), EngineError> {
    let mut unfinished = Vec::new();
    tables.keys(Table::Log, &log_key(user, flushed + 1), &mut |key| {
        let is_own = is_log_key_of(key, user);
        if is_own {
            unfinished.push(key.to_vec());
        }
        is_own
    })?;
    unfinished.iter().try_for_each(|key| tables.remove(Table::Log, key))
}

/// Removes the blocks of an interrupted merge whose entries the last block has too.
///
/// A merge sets the last block first, so only that block can have entries of others. Its entries begin before its key.
fn remove_merged_blocks(tables: &dyn Tables, user: &str, flushed: Seq) -> Result<(), EngineError> {
    if flushed == 0 {
        return Ok(());
    }
    let mut last = None;
    tables.summaries_before(&log_key(user, flushed), &mut |key, summary| {
        last = summary.filter(|_| is_log_key_of(key, user)).map(|block| (log_key(user, block.first), key.to_vec()));
        false
    })?;
    let Some((first, last)) = last.filter(|(first, last)| first < last) else { return Ok(()) };
    let mut merged = Vec::new();
    tables.keys(Table::Log, &first, &mut |key| {
        let is_before = key < &last[..];
        merged.extend(is_before.then(|| key.to_vec()));
        is_before
    })?;
    merged.iter().try_for_each(|key| tables.remove(Table::Log, key))
}

/// Rejects a store of another format, and writes the format into a new store.
fn ensure_format(tables: &dyn Tables) -> Result<(), StoreError> {
    let found = tables.get(Table::Meta, FORMAT_KEY)?;
    if found.is_none() {
        tables.put(Table::Meta, FORMAT_KEY, FORMAT)?;
    }
    check_format(found.as_deref())
}

/// Rejects a store of another namespace, and writes the namespace into a new store.
fn ensure_namespace(tables: &dyn Tables, namespace: &str) -> Result<(), StoreError> {
    let found = tables.get(Table::Meta, NAMESPACE_KEY)?;
    if found.is_none() {
        tables.put(Table::Meta, NAMESPACE_KEY, namespace.as_bytes())?;
    }
    check_namespace(found.as_deref(), namespace)
}

/// Counts a lossy restart if the store was not closed, and marks the store as open. Durable on return.
///
/// Returns the lossy restarts, and the last record before the latest of them. `last` is the last record in the WAL.
fn mark_open(engine: &dyn Engine, durability: Durability, last: u64) -> Result<(LossyRestarts, u64), EngineError> {
    let read_number = |key: &[u8]| -> Result<Option<u32>, EngineError> {
        Ok(engine.get(Table::Meta, key)?.and_then(|bytes| Some(u32::from_be_bytes(bytes[..].try_into().ok()?))))
    };
    let mut count = read_number(LOSSY_RESTARTS_KEY)?.unwrap_or(0);
    let lossy = engine.get(Table::Meta, OPEN_KEY)?.is_some_and(|open| open == OPEN_LOSSY);
    if lossy {
        count += 1;
        engine.put(Table::Meta, LOSSY_RESTARTS_KEY, &count.to_be_bytes())?;
        tracing::warn!(
            "the store was not closed, and messages answered shortly before may be lost; logs skip sequences (a lossy restart)"
        );
    }
    // A new or restored store lacks this value.
    let at_restore = read_number(FULL_LOSSY_RESTARTS_KEY)?;
    if at_restore.is_none() {
        engine.put(Table::Meta, FULL_LOSSY_RESTARTS_KEY, &count.to_be_bytes())?;
    }
    let known = engine.get(Table::Meta, LOSSY_RESTART_RECORD_KEY)?.and_then(|bytes| wal_number(&bytes));
    let lossy_restart_record = known.filter(|_| !lossy).unwrap_or(last);
    if known != Some(lossy_restart_record) {
        engine.put(Table::Meta, LOSSY_RESTART_RECORD_KEY, &wal_key(lossy_restart_record))?;
    }
    let open = if durability == Durability::Always { OPEN_ALWAYS } else { OPEN_LOSSY };
    engine.put(Table::Meta, OPEN_KEY, open)?;
    engine.checkpoint()?;
    Ok((LossyRestarts { count, at_restore: at_restore.unwrap_or(count) }, lossy_restart_record))
}

/// Replays the WAL into memory.
struct Replay {
    tables: Arc<dyn Tables>,
    namespace: u32,
    logs: HashMap<UserId, ReplayedLog, foldhash::fast::RandomState>,
    records: VecDeque<RecordInfo>,
    /// Time of each record, in milliseconds of the Unix epoch.
    written_ms: Vec<u64>,
    now: Instant,
    decoder: RecordDecoder,
    /// Results of the idempotency ids in the WAL.
    results: Vec<StoredId>,
    /// Erasures in the WAL, in their order.
    erased: Vec<ReplayedErasure>,
    /// Webhook events that only the WAL has.
    events: ReplayedEvents,
    /// Highest floor of these erasures.
    floor: Seq,
    /// Latest time in the store, in milliseconds of the Unix epoch.
    last_ms: u64,
}

/// Holds a log that occurs in the WAL.
struct ReplayedLog {
    log: UserLog,
    /// Sequence of its first entry in the WAL.
    first: Option<Seq>,
    /// Last record with an entry of this log; 0 = none.
    last_append: u64,
    /// The user was erased, and no later item has the user.
    is_erased: bool,
}

impl Replay {
    fn apply_record(&mut self, number: u64, value: &[u8]) -> Result<(), StoreError> {
        let damaged = |error: &dyn std::fmt::Display| unreadable::damaged(format!("WAL record {number}: {error}"));
        if self.records.back().is_some_and(|last| last.number + 1 != number) {
            return Err(damaged(&"the record before it is missing"));
        }
        let mut decoder = std::mem::take(&mut self.decoder);
        let mut events = decoder.events(value).map_err(|error| damaged(&error))?;
        let at_ms = events.at_ms;
        if events.namespace != self.namespace {
            return Err(damaged(&"it belongs to another namespace"));
        }
        self.last_ms = self.last_ms.max(at_ms);
        // Recipients of messages that may be stored as shared bodies: message, bytes, user and sequence.
        let mut large = Vec::new();
        for event in events.by_ref() {
            let event = event.map_err(|error| damaged(&error))?;
            if let Event::Entry { user, seq, message, .. } = &event
                && message.payload.len() >= SHARED_BYTES_MIN
            {
                large.push((message.at, saturate(message.payload.len()), *user, *seq));
            }
            self.apply_event(number, at_ms, event)?;
        }
        // The recipients of a message follow each other.
        for recipients in large.chunk_by(|(one, ..), (other, ..)| one == other) {
            for (_, bytes, user, seq) in recipients {
                let share = Cost::payload_share_in_record(*bytes, recipients.len());
                self.logs.get_mut(*user).into_iter().for_each(|replayed| replayed.log.set_reserved(*seq, share));
            }
        }
        let is_continued = events.is_continued();
        self.decoder = decoder;
        self.records.push_back(RecordInfo { number, bytes: value.len(), committed: self.now, is_continued });
        self.written_ms.push(at_ms);
        Ok(())
    }

    fn apply_event(&mut self, record: u64, at_ms: u64, event: Event<'_>) -> Result<(), StoreError> {
        match event {
            Event::Entry { user, seq, recipient_at, message } => {
                let Message { at: message_at, payload, expires_s, collapse } = message;
                let bytes = saturate(payload.len());
                let replayed = self.replayed(user, record)?;
                replayed.first.get_or_insert(seq);
                replayed.last_append = record;
                // As if not shared, until all recipients of the record are known.
                let slot = WalSlot { seq, record, message_at, recipient_at, bytes, reserved: bytes, expires_s };
                replayed.log.replay(slot, collapse);
            }
            Event::Seen { user, at_ms } => self.log(user, record)?.seen_ms = at_ms,
            Event::Cursor { user, device, cursor } => self.log(user, record)?.cursors.replay(device, &cursor),
            Event::CursorRemoved { user, device } => self.log(user, record)?.cursors.remove(device.as_ref()),
            Event::Gap { user, from, to, reason } => {
                let log = self.log(user, record)?;
                match reason {
                    // The outbox has the event, and the expiry of each entry hides it.
                    GapReason::Expired => log.remove_slots(from, to),
                    reason => log.drop_range(from, to, reason),
                }
            }
            Event::Summary(id) => self.results.push(id),
            Event::Erased { user, floor, events } => {
                let mut log = UserLog::as_stored(None);
                log.last_record = record;
                let erased = ReplayedLog { log, first: None, last_append: 0, is_erased: true };
                *self.replayed(user, record)? = erased;
                self.results.iter_mut().for_each(|result| result.rejected.retain(|(rejected, _)| rejected != user));
                self.floor = self.floor.max(floor);
                self.erased.push(ReplayedErasure { user: user.to_owned(), at_ms, events });
            }
            Event::Events { first, piece, bytes } => self.events.push(first, piece, bytes),
            Event::EventsRemoved { through } => self.events.remove(through),
        }
        Ok(())
    }

    fn log(&mut self, user: &str, record: u64) -> Result<&mut UserLog, StoreError> {
        Ok(&mut self.replayed(user, record)?.log)
    }

    /// Returns a user's log, which is loaded from its row on first use.
    fn replayed(&mut self, user: &str, record: u64) -> Result<&mut ReplayedLog, StoreError> {
        if !self.logs.contains_key(user) {
            let damaged = |error: &dyn std::fmt::Display| {
                unreadable::damaged(format!("WAL record {record}, user {user:?}: {error}"))
            };
            let id = UserId::new(user).map_err(|error| damaged(&error))?;
            let row = self.tables.get(Table::Users, user.as_bytes())?;
            let row = row.map(|bytes| StoredLog::decode(&bytes)).transpose().map_err(|error| damaged(&error))?;
            let log = UserLog::as_stored(row);
            self.logs.insert(id, ReplayedLog { log, first: None, last_append: 0, is_erased: false });
        }
        let replayed = self.logs.get_mut(user).ok_or_else(|| unreadable::damaged("a replayed log is missing"))?;
        replayed.log.last_record = record;
        replayed.is_erased = false;
        Ok(replayed)
    }
}

impl UserLog {
    /// Replays an entry. The row may include it already, because a row is written before the records that it replaces
    /// are removed.
    fn replay(&mut self, slot: WalSlot, key: Option<CollapseKey>) {
        // A log without a row begins with this entry, perhaps above the floor or after lossy restarts.
        let is_first = self.row_lossy_restarts.is_none() && self.head == 0 && slot.seq > 1;
        if is_first || has_skipped(self.head, slot.seq) {
            self.skip_to(slot.seq - 1);
        }
        self.head = self.head.max(slot.seq);
        self.assigned = self.head;
        let last = self.last_slot().map_or(self.flushed, |last| last.seq);
        if slot.seq > last {
            self.push(slot, key);
        }
    }
}
