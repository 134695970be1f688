//! Online backup: writes the logs of all users, one after another, in the [backup format](super::format).
//!
//! For each user it holds all entries up to the head of the log at the time of reading, without a gap. So it has
//! everything that was answered before the backup began. Entries that are acknowledged during the backup count as
//! acknowledged, and no entry that readers no longer see returns ([`backup_pin`](super::super::user_log::backup_pin)).
//! A lock is held only while a page is read, and at most one page of one log is in memory.
//!
//! The webhook outbox follows the logs. So it has the events of all acknowledgements that the logs have.

use std::{
    io::Write,
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::format::{BackupError, BackupWriter, Contents};
use crate::{
    embedded::{
        outbox::snapshot::{self, Snapshot},
        store_state::StoreState,
        tables::{
            contract::Table,
            meta::NAMESPACE_KEY,
            schema::{Ids, StoredCursor, StoredId, StoredLog},
        },
        unreadable::damaged,
        user_log::{UserLog, WalSlot, backup_pin::BackupPin},
        wal::events::{Event, RecordDecoder, RecordError},
        writer::dedup,
    },
    message::{Seq, UserId},
    store::{AckSet, StoreError},
};

/// Users per page of the list.
const PAGE_USERS: usize = 256;

/// Entries per page of a log.
const PAGE_ENTRIES: usize = 1024;
/// Bytes of payload per page of a log. A single entry may exceed them.
const PAGE_BYTES: usize = 256 << 10;

/// Attempts to read a page that is flushed meanwhile, as in `read`.
const ATTEMPTS_MAX: usize = 100;

/// Timeout of a commit in progress, whose entries the backup includes.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(30);

/// Interval at which the backup checks whether that commit is complete.
const COMMIT_POLL_INTERVAL: Duration = Duration::from_millis(1);

/// Sequence, expiry in seconds of the Unix epoch (0 = never), and payload.
type Entries = Vec<(Seq, u32, Bytes)>;

impl StoreState {
    /// See [`Store::backup`](crate::store::Store::backup).
    pub(in crate::embedded) fn backup(&self, out: &mut dyn Write) -> Result<Contents, BackupError> {
        let namespace =
            self.engine.get(Table::Meta, NAMESPACE_KEY).map_err(|error| backup_error(&StoreError::from(error)))?;
        let namespace = String::from_utf8_lossy(&namespace.unwrap_or_default()).into_owned();
        let mut writer = BackupWriter::begin(out, namespace, self.logs.lossy_restarts().count)?;
        match self.back_up_all(&mut writer) {
            // The time at the end: the logs lack entries that have expired by now, so a restored clock must not be
            // behind it.
            Ok(()) => Ok(writer.end(self.clock.now_ms(), self.logs.floor())?),
            Err(BackupError::Failed(why)) => {
                writer.fail(why.clone())?;
                Err(BackupError::Failed(why))
            }
            // The receiver of the backup has closed the stream.
            Err(error) => Err(error),
        }
    }

    fn back_up_all(&self, writer: &mut BackupWriter<&mut dyn Write>) -> Result<(), BackupError> {
        self.back_up_ids(writer)?;
        let mut after: Option<UserId> = None;
        loop {
            let users = self.user_ids(after.as_ref(), PAGE_USERS).map_err(|error| backup_error(&error))?;
            for user in &users {
                self.back_up_user(user, writer)?;
            }
            match users.last() {
                Some(last) if users.len() == PAGE_USERS => after = Some(last.clone()),
                _ => break,
            }
        }
        self.back_up_outbox(writer)
    }

    fn back_up_user(&self, user: &UserId, writer: &mut BackupWriter<&mut dyn Write>) -> Result<(), BackupError> {
        let to_backup_error = |error: StoreError| backup_error(&error);
        let Some(mut log) = self.stored_log(user).map_err(to_backup_error)? else { return Ok(()) };
        if log.through() >= log.head {
            // Nothing is pending. The last commit may have changed parts above the head.
            let head = log.head;
            truncate(&mut log, head);
            return Ok(writer.log(user.as_str(), log)?);
        }
        let (pin, head) = self.logs.with(user, |log| (log.pins.add(), log.head)).map_err(to_backup_error)?;
        let after = self.back_up_entries(user, log.through(), head, writer)?;
        let head = self.stop_collapses(user, &pin)?;
        self.back_up_entries(user, after, head, writer)?;
        // Read again: entries removed meanwhile were acknowledged, or have a gap with a reason. This row states both.
        let log = self.stored_log(user).map_err(to_backup_error)?;
        match log.filter(|_| !pin.is_erased()) {
            Some(mut log) => {
                truncate(&mut log, head);
                Ok(writer.log(user.as_str(), log)?)
            }
            None => Ok(writer.erased(user.as_str())?),
        }
    }

    /// Writes entries above `after` up to `head`. Returns the sequence up to which it read.
    fn back_up_entries(
        &self,
        user: &UserId,
        mut after: Seq,
        head: Seq,
        writer: &mut BackupWriter<&mut dyn Write>,
    ) -> Result<Seq, BackupError> {
        while after < head {
            let (entries, through) = self.backup_page(user, after, head).map_err(|error| backup_error(&error))?;
            writer.entries(user.as_str(), &entries)?;
            after = through;
        }
        Ok(after)
    }

    /// Stops collapses of a log. Returns the head up to which entries may have replaced others.
    ///
    /// Waits for a commit in progress, whose entries may have replaced others already.
    fn stop_collapses(&self, user: &UserId, pin: &BackupPin) -> Result<Seq, BackupError> {
        let stopped = self.logs.with(user, |log| {
            pin.stop_collapses();
            log.assigned
        });
        let (assigned, since) = (stopped.map_err(|error| backup_error(&error))?, Instant::now());
        // A log that is not in memory has no commit in progress, nor has one of a user who was erased meanwhile.
        while !pin.is_erased() && self.logs.with_loaded(user, |log| log.head < assigned).unwrap_or(false) {
            if let Some(error) = &*self.failed.borrow() {
                return Err(backup_error(error));
            }
            if since.elapsed() > COMMIT_TIMEOUT {
                let why = format!(
                    "a commit takes longer than {} s. Look for the cause in the server's log, then start the backup again",
                    COMMIT_TIMEOUT.as_secs()
                );
                return Err(BackupError::Failed(why));
            }
            thread::sleep(COMMIT_POLL_INTERVAL);
        }
        Ok(assigned)
    }

    /// Reads a user's log without its entries. Does not load it into the cache. Returns `None` if there is no row.
    fn stored_log(&self, user: &UserId) -> Result<Option<StoredLog>, StoreError> {
        let lossy_restarts = self.logs.lossy_restarts();
        let row = |log: &UserLog| {
            let is_known = log.row_lossy_restarts.is_some() || log.dirty;
            is_known.then(|| log.row(lossy_restarts.count))
        };
        self.logs.peek(user, |log| row(log))
    }

    /// Writes the webhook outbox: reported sequences first, then all events, the last batch first.
    ///
    /// A sequence is reported together with its event. So the events that follow include those of all written reported
    /// sequences, unless a backend has accepted them.
    fn back_up_outbox(&self, writer: &mut BackupWriter<&mut dyn Write>) -> Result<(), BackupError> {
        let to_backup_error = |error: StoreError| backup_error(&error);
        let tables = &*self.engine;
        let mut result = Ok(());
        snapshot::visit_reported(tables, &mut |page| {
            result = writer.reported(page);
            result.is_ok()
        })
        .map_err(to_backup_error)?;
        result?;
        let outbox = self.outbox.as_deref();
        let snapshot = outbox.map_or_else(|| Snapshot::of_tables(tables), |outbox| Ok(outbox.snapshot()));
        let snapshot = snapshot.map_err(to_backup_error)?;
        writer.reported(&snapshot.reported)?;
        for (first, batch) in snapshot.waiting.iter().rev() {
            writer.events(*first, batch)?;
        }
        let mut result = Ok(());
        let visited = snapshot.visit_batches(tables, outbox, &mut |first, batch| {
            result = writer.events(first, batch);
            result.is_ok()
        });
        visited.map_err(to_backup_error)?;
        result?;
        snapshot.lost.map_or(Ok(()), |lost| Ok(writer.lost(lost)?))
    }

    /// Reads a page of entries above `after` up to `head`. Also returns the sequence up to which it read.
    fn backup_page(&self, user: &UserId, after: Seq, head: Seq) -> Result<(Entries, Seq), StoreError> {
        for _ in 0..ATTEMPTS_MAX {
            let (from, flushed, slots) = self.logs.with(user, |log| {
                let (from, flushed) = (after.max(log.released()), if log.has_blocks { log.flushed } else { 0 });
                let slots = log.slots_after(from.max(flushed)).take_while(|slot| slot.seq <= head);
                let mut bytes = 0;
                let fits = |slot: &&WalSlot| {
                    bytes += slot.bytes as usize;
                    bytes <= PAGE_BYTES || bytes == slot.bytes as usize
                };
                (from, flushed, slots.take(PAGE_ENTRIES).take_while(fits).copied().collect::<Vec<_>>())
            })?;
            if from < flushed.min(head) {
                return self.backup_blocks(user, from, flushed.min(head));
            }
            if let Some(entries) = self.backup_slots(user, &slots)? {
                let through = entries.last().map_or(head, |(seq, ..)| *seq);
                return Ok((entries, through));
            }
        }
        Err(damaged(format!("WAL records of user {user:?} above {after} are missing")))
    }

    /// Reads entries from the WAL. Returns `None` if some were flushed meanwhile.
    fn backup_slots(&self, user: &UserId, slots: &[WalSlot]) -> Result<Option<Entries>, StoreError> {
        let mut entries = Vec::with_capacity(slots.len());
        let is_complete = self.read_slots(user, slots, &mut |slot, entry| {
            entries.push((entry.seq, slot.expires_s, entry.payload.as_bytes().clone()));
        })?;
        Ok(is_complete.then_some(entries))
    }

    /// Reads a page of flushed entries above `from` up to `to`. Also returns the sequence up to which it read.
    fn backup_blocks(&self, user: &UserId, from: Seq, to: Seq) -> Result<(Entries, Seq), StoreError> {
        let (mut entries, mut bytes) = (Entries::new(), 0);
        let is_complete = self.read_value_log(user, from, to, &mut |found| {
            if bytes > PAGE_BYTES {
                return false;
            }
            if let Some(payload) = found.payload() {
                bytes += found.bytes;
                entries.push((found.seq, found.expires_s, payload));
            }
            true
        })?;
        let last = entries.last().map_or(from, |(seq, ..)| *seq);
        Ok((entries, if is_complete { to } else { last }))
    }

    /// Writes idempotency ids. Those in the WAL come first, so that ids flushed meanwhile are found in the table.
    fn back_up_ids(&self, writer: &mut BackupWriter<&mut dyn Write>) -> Result<(), BackupError> {
        let (mut decoder, mut result) = (RecordDecoder::default(), Ok(()));
        let scanned = self.engine.scan_records(&mut |_, value| {
            result = ids_in(&mut decoder, &value).and_then(|ids| self.write_ids(ids, writer));
            result.is_ok()
        });
        scanned.map_err(|error| backup_error(&StoreError::from(error)))?;
        result?;
        let mut result = Ok(());
        let scanned = self.engine.scan(Table::Ids, &[], &mut |_, value| {
            result = match Ids::decode(&value) {
                Ok(Ids::V1 { ids, .. }) => writer.ids(&ids).map_err(BackupError::from),
                Err(error) => Err(BackupError::Failed(format!("idempotency ids cannot be read: {error}"))),
            };
            result.is_ok()
        });
        scanned.map_err(|error| backup_error(&StoreError::from(error)))?;
        result
    }

    fn write_ids(&self, ids: Vec<StoredId>, writer: &mut BackupWriter<&mut dyn Write>) -> Result<(), BackupError> {
        for block in dedup::pack_blocks(self.namespace, ids) {
            let Ids::V1 { ids, .. } = block;
            writer.ids(&ids)?;
        }
        Ok(())
    }
}

/// Returns the idempotency ids of a WAL record.
fn ids_in(decoder: &mut RecordDecoder, record: &[u8]) -> Result<Vec<StoredId>, BackupError> {
    let unreadable = |error: RecordError| BackupError::Failed(format!("a WAL record: {error}"));
    let mut ids = Vec::new();
    for event in decoder.events(record).map_err(unreadable)? {
        if let Event::Summary(id) = event.map_err(unreadable)? {
            ids.push(id);
        }
    }
    Ok(ids)
}

fn backup_error(error: &StoreError) -> BackupError {
    BackupError::Failed(error.to_string())
}

/// Removes everything above `head` from a log.
fn truncate(log: &mut StoredLog, head: Seq) {
    let truncate_cursor = |cursor: &mut StoredCursor| {
        let ranges: Vec<_> = cursor.ranges.iter().map(|&(from, to)| (from, to.min(head))).collect();
        let acknowledged = AckSet::from_parts(cursor.through.min(head), &ranges);
        (cursor.through, cursor.ranges) = (acknowledged.through(), acknowledged.ranges().to_vec());
    };
    log.shared.iter_mut().chain(log.devices.iter_mut().map(|(_, cursor)| cursor)).for_each(truncate_cursor);
    // A log that skipped sequences states the head before.
    log.head = log.head.min(head);
    log.gaps.retain_mut(|(from, to, _)| {
        *to = (*to).min(head);
        *from <= *to
    });
    log.keys.retain(|(_, seq, ..)| *seq <= head);
}
