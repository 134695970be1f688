//! Opening: reads what the tables say about themselves, and replays the journal into the index.
//!
//! # Lapses
//!
//! Where appends are answered before they are durable, a crash may take back the last of them, and their sequences
//! with them, although somebody has seen those. So that none is ever given out twice, an unclean end of such a time
//! counts as a *lapse*, and every log goes on [`RESERVE`](super::log::RESERVE) further for each: no more messages than
//! that are ever at risk. With [`Durability::Always`] there are none.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Instant,
};

use super::{
    Durability, StoreError,
    commit::RecordInfo,
    engine::{Engine, EngineError, Table},
    index::Index,
    log::{Log, Slot},
    record::{Header, Item, RecordReader, Row, fingerprint, inbox_key, is_inbox_key_of, journal_number},
};
use crate::{
    message::{Seq, UserId},
    planted::{self, Bug},
};

const FORMAT_KEY: &[u8] = b"format";
const NAMESPACE_KEY: &[u8] = b"namespace";
const LAPSES_KEY: &[u8] = b"lapses";
/// Whether the store is open, and how durable its answers are.
pub(super) const OPEN_KEY: &[u8] = b"open";
pub(super) const CLOSED: &[u8] = b"closed";
/// The highest record that was settled and may be gone from the journal.
pub(super) const SETTLED_KEY: &[u8] = b"settled";
const OPEN_ALWAYS: &[u8] = b"always";
const OPEN_LOSSY: &[u8] = b"lossy";

/// The version of everything in the tables.
const FORMAT: &[u8] = b"mesa-1";

/// What opening has found.
pub(super) struct Recovered {
    pub index: Index,
    pub records: VecDeque<RecordInfo>,
    pub next_record: u64,
}

pub(super) fn recover(
    engine: Arc<dyn Engine>,
    namespace: &str,
    durability: Durability,
) -> Result<Recovered, StoreError> {
    let failed = |error: EngineError| StoreError::Failed(error.0);
    check_format(&*engine).map_err(failed)??;
    check_namespace(&*engine, namespace).map_err(failed)??;
    let lapses = begin(&*engine, durability).map_err(failed)?;
    let mut replay = Replay {
        engine: engine.clone(),
        namespace: fingerprint(namespace),
        lapses,
        logs: HashMap::default(),
        records: VecDeque::new(),
        now: Instant::now(),
    };
    let mut damage = None;
    engine
        .scan(Table::Journal, &[], &mut |key, value| match replay.record(key, &value) {
            Ok(()) => true,
            Err(error) => {
                damage = Some(error);
                false
            }
        })
        .map_err(failed)?;
    if let Some(damage) = damage {
        return Err(damage);
    }
    let settled = engine.get(Table::Meta, SETTLED_KEY).map_err(failed)?.and_then(|bytes| journal_number(&bytes));
    let last = replay.records.back().map_or(0, |last| last.number).max(settled.unwrap_or(0));
    if let Some(marked) = engine.marked().map_err(failed)?.filter(|marked| *marked > last) {
        let told = format!(
            "its journal ends with record {last}, but record {marked} was written and synced: the file `log/db` is damaged, \
             or is an older one. Restore a backup of the whole directory; or, to go on with what is left, delete the file \
             `mark` in it"
        );
        return Err(StoreError::Damaged(told.into()));
    }
    let index = Index::new(engine.clone(), lapses);
    for (user, (mut log, known)) in replay.logs {
        forget_unfinished(&*engine, user.as_str(), log.settled).map_err(failed)?;
        log.pass_lapses(lapses - known);
        log.release();
        if planted::is(Bug::SequenceReuse) && log.slots.is_empty() {
            log.head = log.head.saturating_sub(2);
            log.assigned = log.head;
        }
        index.insert(user, log);
    }
    Ok(Recovered { index, records: replay.records, next_record: last + 1 })
}

/// Removes chunks that were written for a settling that did not come to its end: no row counts on them, and all that is
/// in them is still in the journal. Left where they are, they would lie across those written next time.
fn forget_unfinished(engine: &dyn Engine, user: &str, settled: Seq) -> Result<(), EngineError> {
    let mut unfinished = Vec::new();
    engine.scan(Table::Inbox, &inbox_key(user, settled + 1), &mut |key, _| {
        let ours = is_inbox_key_of(key, user);
        if ours {
            unfinished.push(key.to_vec());
        }
        ours
    })?;
    unfinished.iter().try_for_each(|key| engine.remove(Table::Inbox, key))
}

fn check_format(engine: &dyn Engine) -> Result<Result<(), StoreError>, EngineError> {
    match engine.get(Table::Meta, FORMAT_KEY)? {
        Some(found) if found == FORMAT => Ok(Ok(())),
        Some(found) => {
            let (found, ours) = (String::from_utf8_lossy(&found), String::from_utf8_lossy(FORMAT));
            let told =
                format!("the store has format {found}, this version reads {ours}. Use the version that wrote it");
            Ok(Err(StoreError::Incompatible(told)))
        }
        None => {
            engine.put(Table::Meta, FORMAT_KEY, FORMAT)?;
            Ok(Ok(()))
        }
    }
}

fn check_namespace(engine: &dyn Engine, namespace: &str) -> Result<Result<(), StoreError>, EngineError> {
    match engine.get(Table::Meta, NAMESPACE_KEY)? {
        Some(found) if found == namespace.as_bytes() => Ok(Ok(())),
        Some(found) => {
            let found = String::from_utf8_lossy(&found);
            let told = format!(
                "the store belongs to namespace {found:?}, and the configuration says {namespace:?}. Set the namespace \
                 it belongs to, or give this one its own store.path"
            );
            Ok(Err(StoreError::Incompatible(told)))
        }
        None => {
            engine.put(Table::Meta, NAMESPACE_KEY, namespace.as_bytes())?;
            Ok(Ok(()))
        }
    }
}

/// Counts a lapse where the last time ended in one, and writes down that the store is open. Durable on return.
fn begin(engine: &dyn Engine, durability: Durability) -> Result<u32, EngineError> {
    let lapses = engine.get(Table::Meta, LAPSES_KEY)?;
    let mut lapses = lapses.and_then(|bytes| Some(u32::from_be_bytes(bytes[..].try_into().ok()?))).unwrap_or(0);
    if engine.get(Table::Meta, OPEN_KEY)?.is_some_and(|open| open == OPEN_LOSSY) {
        lapses += 1;
        engine.put(Table::Meta, LAPSES_KEY, &lapses.to_be_bytes())?;
        tracing::warn!("the store was not closed, and some of what was answered may be gone; sequences leave a gap");
    }
    let open = if durability == Durability::Always { OPEN_ALWAYS } else { OPEN_LOSSY };
    engine.put(Table::Meta, OPEN_KEY, open)?;
    engine.flush()?;
    engine.sync()?;
    Ok(lapses)
}

/// The journal being read.
struct Replay {
    engine: Arc<dyn Engine>,
    namespace: u32,
    lapses: u32,
    /// Logs, and how many lapses their rows know of.
    logs: HashMap<UserId, (Log, u32), foldhash::fast::RandomState>,
    records: VecDeque<RecordInfo>,
    now: Instant,
}

impl Replay {
    fn record(&mut self, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        let number = journal_number(key);
        let number =
            number.ok_or_else(|| StoreError::Damaged(format!("{key:?} is no key of a journal record").into()))?;
        let damaged =
            |error: &dyn std::fmt::Display| StoreError::Damaged(format!("journal record {number}: {error}").into());
        if self.records.back().is_some_and(|last| last.number + 1 != number) {
            return Err(damaged(&"the record before it is missing"));
        }
        let mut reader = RecordReader::new(value).map_err(|error| damaged(&error))?;
        let Header::V1 { namespace, .. } = reader.header;
        if namespace != self.namespace {
            return Err(damaged(&"it belongs to another namespace"));
        }
        let mut message = None;
        while let Some(item) = reader.next_item() {
            let (at, item) = item.map_err(|error| damaged(&error))?;
            match item {
                Item::Message(payload) => message = Some((at, payload.len())),
                Item::To { user, seq } => {
                    let (message_at, bytes) = message.ok_or_else(|| damaged(&"a stamp without a message"))?;
                    // A payload has at most 64 KiB.
                    let slot = Slot { seq, record: number, message_at, stamp_at: at, bytes: bytes as u32 };
                    self.log(user, number)?.replay(slot);
                }
                Item::Received { user, through, islands } => {
                    let log = self.log(user, number)?;
                    log.received.insert(1, through);
                    islands.into_iter().for_each(|(from, to)| _ = log.received.insert(from, to));
                }
                Item::Seen { user, at_ms } => self.log(user, number)?.seen_ms = at_ms,
            }
        }
        self.records.push_back(RecordInfo { number, bytes: value.len(), committed: self.now });
        Ok(())
    }

    fn log(&mut self, user: &str, record: u64) -> Result<&mut Log, StoreError> {
        if !self.logs.contains_key(user) {
            let damaged = |error: &dyn std::fmt::Display| {
                StoreError::Damaged(format!("journal record {record}, user {user:?}: {error}").into())
            };
            let id = UserId::new(user).map_err(|error| damaged(&error))?;
            let row = self.engine.get(Table::Users, user.as_bytes()).map_err(|error| StoreError::Failed(error.0))?;
            let row = row.map(|bytes| Row::decode(&bytes)).transpose().map_err(|error| damaged(&error))?;
            let known = match &row {
                Some(Row::V1 { lapses, .. }) => *lapses,
                // Not even its row was kept: everything this log ever had may be lost, from the first lapse on.
                None => 0,
            };
            self.logs.insert(id, (Log::from_row(row, known.min(self.lapses)), known.min(self.lapses)));
        }
        let (log, _) = self.logs.get_mut(user).ok_or_else(|| StoreError::Damaged("a log went missing".into()))?;
        log.last_record = record;
        Ok(log)
    }
}

impl Log {
    /// Takes in an entry the journal still has. The row may know of it already: rows are written before the records
    /// they replace are removed.
    fn replay(&mut self, slot: Slot) {
        self.head = self.head.max(slot.seq);
        self.assigned = self.head;
        let last = self.slots.back().map_or(self.settled, |last| last.seq);
        if slot.seq > last {
            self.slots.push_back(slot);
        }
    }
}
