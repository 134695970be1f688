//! Online backup: writes the logs of all users, one after another, in the [backup format](super::format).
//!
//! For each user it holds all entries up to the head of the log at the time of reading, without a gap. So it has
//! everything that was answered before the backup began. Entries that are acknowledged during the backup count as
//! acknowledged. A lock is held only while a page is read, and at most one page of one log is in memory.

use std::io::Write;

use bytes::Bytes;

use super::format::{BackupError, BackupWriter, Contents};
use crate::{
    embedded::{
        store_state::StoreState,
        tables::{
            contract::Table,
            meta::NAMESPACE_KEY,
            schema::{Ids, StoredCursor, StoredId, StoredLog},
        },
        unreadable::damaged,
        user_log::{UserLog, WalSlot},
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

/// Sequence, expiry in seconds of the Unix epoch (0 = never), and payload.
type Entries = Vec<(Seq, u32, Bytes)>;

impl StoreState {
    /// See [`Store::backup`](crate::store::Store::backup).
    pub(in crate::embedded) fn backup(&self, out: &mut dyn Write) -> Result<Contents, BackupError> {
        let namespace =
            self.engine.get(Table::Meta, NAMESPACE_KEY).map_err(|error| backup_error(&StoreError::from(error)))?;
        let namespace = String::from_utf8_lossy(&namespace.unwrap_or_default()).into_owned();
        let mut writer = BackupWriter::begin(out, namespace, self.logs.lossy_restarts().count, self.clock.now_ms())?;
        match self.back_up_all(&mut writer) {
            Ok(()) => Ok(writer.end()?),
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
                _ => return Ok(()),
            }
        }
    }

    fn back_up_user(&self, user: &UserId, writer: &mut BackupWriter<&mut dyn Write>) -> Result<(), BackupError> {
        let to_backup_error = |error: StoreError| backup_error(&error);
        let first = self.stored_log(user).map_err(to_backup_error)?;
        let (head, mut after) = (first.head, first.through());
        while after < head {
            let (entries, through) = self.backup_page(user, after, head).map_err(to_backup_error)?;
            writer.entries(user.as_str(), &entries)?;
            after = through;
        }
        // Read again: entries removed meanwhile were acknowledged, or have a gap with a reason. This row states both.
        let mut log = self.stored_log(user).map_err(to_backup_error)?;
        truncate(&mut log, head);
        Ok(writer.log(user.as_str(), log)?)
    }

    /// Reads a user's log without its entries. Does not load it into the cache.
    fn stored_log(&self, user: &UserId) -> Result<StoredLog, StoreError> {
        let lossy_restarts = self.logs.lossy_restarts();
        if let Some(row) = self.logs.with_loaded(user, |log| log.row(lossy_restarts.count)) {
            return Ok(row);
        }
        let row = self.engine.get(Table::Users, user.as_str().as_bytes());
        let row = row?.map(|bytes| StoredLog::decode(&bytes)).transpose();
        let row = row.map_err(|error| damaged(format!("the row of user {user:?}: {error}")))?;
        Ok(UserLog::from_row(row, lossy_restarts).row(lossy_restarts.count))
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
            bytes += found.bytes;
            entries.push((found.seq, found.expires_s, found.payload()));
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
    log.head = head;
    log.gaps.retain_mut(|(from, to, _)| {
        *to = (*to).min(head);
        *from <= *to
    });
    log.keys.retain(|(_, seq, ..)| *seq <= head);
}
