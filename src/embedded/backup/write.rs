//! Online backup: writes every user's log, one after the other, as a [backup file](super::format).
//!
//! For each user it holds all entries up to the head of the log at the time it was read, without a gap. So it has
//! everything that was answered before the backup began. Entries that are acknowledged meanwhile count as acknowledged. Locks
//! are held only while one log is read, and at most one page of one log is in memory.

use std::io::Write;

use bytes::Bytes;

use super::format::{BackupError, Contents, Writer};
use crate::{
    embedded::{
        shared::StoreState,
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

/// Users that are listed at once.
const PAGE_USERS: usize = 256;

/// Entries and bytes of payload that are read at once. One block may exceed them.
const PAGE_ENTRIES: usize = 1024;
const PAGE_BYTES: usize = 256 << 10;

/// Retries of a page that was flushed meanwhile, as in `read`.
const RETRIES_MAX: usize = 100;

type Entries = Vec<(Seq, u32, Bytes)>;

impl StoreState {
    /// See [`Store::backup`](crate::store::Store::backup).
    pub(in crate::embedded) fn backup(&self, out: &mut dyn Write) -> Result<Contents, BackupError> {
        let namespace =
            self.engine.get(Table::Meta, NAMESPACE_KEY).map_err(|error| failed(&StoreError::from(error)))?;
        let namespace = String::from_utf8_lossy(&namespace.unwrap_or_default()).into_owned();
        let mut writer = Writer::begin(out, namespace, self.logs.lossy_restarts().count, self.clock.now_ms())?;
        match self.back_up_all(&mut writer) {
            Ok(()) => Ok(writer.end()?),
            Err(BackupError::Failed(why)) => {
                writer.fail(why.clone())?;
                Err(BackupError::Failed(why))
            }
            // The reader of the backup has closed it.
            Err(error) => Err(error),
        }
    }

    fn back_up_all(&self, writer: &mut Writer<&mut dyn Write>) -> Result<(), BackupError> {
        self.back_up_ids(writer)?;
        let mut after: Option<UserId> = None;
        loop {
            let users = self.user_ids(after.as_ref(), PAGE_USERS).map_err(|error| failed(&error))?;
            for user in &users {
                self.back_up_user(user, writer)?;
            }
            match users.last() {
                Some(last) if users.len() == PAGE_USERS => after = Some(last.clone()),
                _ => return Ok(()),
            }
        }
    }

    fn back_up_user(&self, user: &UserId, writer: &mut Writer<&mut dyn Write>) -> Result<(), BackupError> {
        let to_backup_error = |error: StoreError| failed(&error);
        let first = self.stored_log(user).map_err(to_backup_error)?;
        let (head, mut after) = (first.head, first.through());
        while after < head {
            let (entries, through) = self.backup_page(user, after, head).map_err(to_backup_error)?;
            writer.entries(user.as_str(), &entries)?;
            after = through;
        }
        // Read again: entries that were removed meanwhile were acknowledged or have a gap with a reason, which this row holds.
        let mut log = self.stored_log(user).map_err(to_backup_error)?;
        cut(&mut log, head);
        Ok(writer.log(user.as_str(), log)?)
    }

    /// Reads a user's log without its entries. Does not load it into the cache, because a backup reads every user.
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

    /// Reads a page of entries above `after` up to `head`. Returns also the sequence up to which it read.
    fn backup_page(&self, user: &UserId, after: Seq, head: Seq) -> Result<(Entries, Seq), StoreError> {
        for _ in 0..RETRIES_MAX {
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
        let there = self.read_slots(user, slots, &mut |slot, entry| {
            entries.push((entry.seq, slot.expires_s, entry.payload.as_bytes().clone()));
        })?;
        Ok(there.then_some(entries))
    }

    /// Reads flushed entries above `from` up to `to`. Returns also the sequence up to which it read.
    fn backup_blocks(&self, user: &UserId, from: Seq, to: Seq) -> Result<(Entries, Seq), StoreError> {
        let (mut entries, mut bytes) = (Entries::new(), 0);
        let all = self.read_value_log(user, from, to, &mut |found| {
            if bytes > PAGE_BYTES {
                return false;
            }
            bytes += found.bytes;
            entries.push((found.seq, found.expires_s, found.payload()));
            true
        })?;
        let last = entries.last().map_or(from, |(seq, ..)| *seq);
        Ok((entries, if all { to } else { last }))
    }

    /// Writes idempotency ids. Those in the WAL come first, so that ids flushed meanwhile are found in the table.
    fn back_up_ids(&self, writer: &mut Writer<&mut dyn Write>) -> Result<(), BackupError> {
        let (mut decoder, mut ended) = (RecordDecoder::default(), Ok(()));
        let scanned = self.engine.scan_records(&mut |_, value| {
            ended = ids_in(&mut decoder, &value).and_then(|ids| self.write_ids(ids, writer));
            ended.is_ok()
        });
        scanned.map_err(|error| failed(&StoreError::from(error)))?;
        ended?;
        let mut ended = Ok(());
        let scanned = self.engine.scan(Table::Ids, &[], &mut |_, value| {
            ended = match Ids::decode(&value) {
                Ok(Ids::V1 { ids, .. }) => writer.ids(&ids).map_err(BackupError::from),
                Err(error) => Err(BackupError::Failed(format!("dispatch ids cannot be read: {error}"))),
            };
            ended.is_ok()
        });
        scanned.map_err(|error| failed(&StoreError::from(error)))?;
        ended
    }

    fn write_ids(&self, found: Vec<StoredId>, writer: &mut Writer<&mut dyn Write>) -> Result<(), BackupError> {
        for block in dedup::blocks(self.namespace, found) {
            let Ids::V1 { ids, .. } = block;
            writer.ids(&ids)?;
        }
        Ok(())
    }
}

/// Returns the idempotency ids of a WAL record.
fn ids_in(decoder: &mut RecordDecoder, record: &[u8]) -> Result<Vec<StoredId>, BackupError> {
    let unreadable = |error: RecordError| BackupError::Failed(format!("a WAL record: {error}"));
    let mut found = Vec::new();
    for event in decoder.events(record).map_err(unreadable)? {
        if let Event::Summary(id) = event.map_err(unreadable)? {
            found.push(id);
        }
    }
    Ok(found)
}

fn failed(error: &StoreError) -> BackupError {
    BackupError::Failed(error.to_string())
}

/// Removes everything above `head`.
fn cut(log: &mut StoredLog, head: Seq) {
    let cut_cursor = |cursor: &mut StoredCursor| {
        let ranges: Vec<_> = cursor.ranges.iter().map(|&(from, to)| (from, to.min(head))).collect();
        let acknowledged = AckSet::from_parts(cursor.through.min(head), &ranges);
        (cursor.through, cursor.ranges) = (acknowledged.through(), acknowledged.ranges().to_vec());
    };
    log.shared.iter_mut().chain(log.devices.iter_mut().map(|(_, cursor)| cursor)).for_each(cut_cursor);
    log.head = head;
    log.gaps.retain_mut(|(from, to, _)| {
        *to = (*to).min(head);
        *from <= *to
    });
    log.keys.retain(|(_, seq, ..)| *seq <= head);
}
