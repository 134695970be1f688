//! Erases a user: removes everything that the store has about this user.
//!
//! An item in the WAL erases the user. Once it is durable, a crash repeats the rest: recovery resets the log at the
//! item, and removes what the tables still have. So before the item everything is there, and after it nothing.
//!
//! The order is: the webhook events about the user; the item, durable; the floor; the row and the log in memory; in
//! steps the blocks, the webhook events, and the user's name in results of dispatches; a checkpoint; the reply. No flush
//! runs meanwhile, because it could remove the item before the tables are clean. One user at a time: further erasures
//! wait for their turn.
//!
//! Another thread may have read a message before, and report it as undelivered later. The outbox rejects that: at first
//! because the log is being erased, and then because the new log counts all sequences up to the floor as acknowledged.
//! Both are checked under the lock of the log. So every event with an erased message is written before the item.
//!
//! A later log of the same user starts at the *floor*, which is at least the head of every erased log. So a client with
//! an old position receives new messages, although the store no longer has the old head. The floor is put before the row
//! is removed, and a power cut keeps a prefix of both.
//!
//! The erased bytes are not needed any more, but stay in files for some time. So the record is flushed early, and
//! compaction rewrites the files of the value log that had blocks of this user, or copies of these for a merge or a
//! compaction under way. Files with older frames, of blocks that were merged, trimmed or moved before, are not known.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use super::{
    reply::ReplySender,
    state::{Commit, Committer, ErasureInProgress, ErasureStage},
    suspend::NO_TABLE_SPACE,
};
use crate::{
    embedded::{
        outbox,
        tables::{
            contract::{EngineError, Table, TableSpace, Tables},
            meta::FLOOR_KEY,
            schema::{Connections, Ids, is_log_key_of, log_key},
        },
        unreadable,
        wal::record::Item,
    },
    message::{Seq, USER_ID_BYTES_MAX, UserId},
    store::{Erasure, Outbox as _, StoreError},
};

/// Time limit of a step, and so the delay that an erasure adds to a commit.
const STEP_TIMEOUT: Duration = Duration::from_millis(2);

/// Limit of blocks that are removed between two checks of the time and of the table space.
const BLOCKS_MAX: usize = 32;

/// Attempts to write all webhook events about a user before the erasure.
const OUTBOX_ATTEMPTS_MAX: usize = 3;

/// Limit of erasures that wait for another one. Further ones are rejected with `busy`.
pub(in crate::embedded) const ERASURES_MAX: usize = 16;

/// Bytes that a record needs for the item.
const ITEM_BYTES_MAX: usize = USER_ID_BYTES_MAX + 32;

/// An erasure whose item is durable.
struct Committed {
    floor: Seq,
    /// Number of the last event of the outbox.
    events: u64,
    /// The user was known.
    found: bool,
}

impl Committer {
    /// Erases a user after those that wait already. Replies when the user is erased, or cannot be.
    ///
    /// Must not run during a commit.
    pub(in crate::embedded) fn queue_erasure(
        &mut self,
        user: UserId,
        done: ReplySender<Erasure>,
    ) -> Result<(), EngineError> {
        if self.erasure.is_none() && self.erasures.is_empty() {
            return self.begin_erasure(user, done);
        }
        if self.erasures.len() >= ERASURES_MAX {
            let busy = format!("{ERASURES_MAX} erasures of users wait for an earlier one");
            _ = done.send(Err(StoreError::Busy(busy.into())));
        } else {
            self.erasures.push_back((user, done));
        }
        Ok(())
    }

    /// Begins the next erasure if none is in progress.
    ///
    /// Not while dispatches wait for the flush, which waits for the erasure.
    pub(in crate::embedded) fn begin_next_erasure(&mut self) -> Result<(), EngineError> {
        if self.erasure.is_some() || self.is_congested() {
            return Ok(());
        }
        let Some((user, done)) = self.erasures.pop_front() else { return Ok(()) };
        self.begin_erasure(user, done)
    }

    fn begin_erasure(&mut self, user: UserId, done: ReplySender<Erasure>) -> Result<(), EngineError> {
        match self.commit_erasure(&user)? {
            Err(error) => _ = done.send(Err(error)),
            Ok(None) => _ = done.send(Ok(Erasure::Online)),
            Ok(Some(Committed { floor, events, found })) => {
                self.erasure =
                    Some(ErasureInProgress { user, floor, events, found, stage: ErasureStage::Blocks, done });
            }
        }
        Ok(())
    }

    /// Makes the erasure durable, and empties the log.
    ///
    /// Returns `None` if a session is attached. The outer error is final. After an inner error nothing has changed.
    fn commit_erasure(&mut self, user: &UserId) -> Result<Result<Option<Committed>, StoreError>, EngineError> {
        let full = |why: Option<String>| Ok(Err(StoreError::Full(why.unwrap_or_default().into())));
        if self.suspended.stuck.is_some() {
            return full(self.why_suspended());
        }
        let begun = self.try_with_log(user, |log| {
            log.is_erasing = !log.cursors.any_attached();
            log.is_erasing.then(|| (log.assigned, log.row_lossy_restarts.is_some() || log.dirty))
        });
        let (head, known) = match begun {
            Ok(Some(begun)) => begun,
            Ok(None) => return Ok(Ok(None)),
            Err(error @ StoreError::Failed(_)) => return Err(error.into()),
            Err(error) => return Ok(Err(error)),
        };
        let floor = self.shared.logs.floor().max(head);
        let (number, events) = match self.write_erasure(user, floor)? {
            Ok(written) => written,
            Err(error) => {
                self.with_log(user, |log| log.is_erasing = false)?;
                return Ok(Err(error));
            }
        };
        if let Some(outbox) = &self.shared.outbox {
            // Before the log is removed, so that a report about a later log is not forgotten.
            outbox.remove_reported(user);
        }
        // Before the row is removed: a log that is created from now on starts at the floor.
        self.shared.logs.raise_floor(floor);
        self.shared.engine.put(Table::Meta, FLOOR_KEY, &floor.to_be_bytes())?;
        self.shared.engine.remove(Table::Users, user.as_str().as_bytes())?;
        if let Some(log) = self.shared.logs.remove(user) {
            log.pins.set_erased();
        }
        if let Some(flush) = &mut self.flush {
            let (bodies, copies) = flush.forget(user);
            self.shared.engine.forget_bodies(&bodies);
            copies.into_iter().try_for_each(|copy| self.shared.engine.discard_copy(copy, true))?;
        }
        self.trims.jobs.retain(|job| job.user != *user);
        self.purges.retain(|purge| purge.user != *user);
        self.flush_through = self.flush_through.max(number);
        let rejected = self.dedup.erase(user.as_str());
        // No disconnection is reported after the erasure. A connection that begins meanwhile gets its row again.
        self.shared.connected.remove_interrupted(user);
        self.shared.engine.remove(Table::Connected, user.as_str().as_bytes())?;
        self.shared.connected.set_row_removed(user);
        Ok(Ok(Some(Committed { floor, events, found: known || rejected })))
    }

    /// Writes the webhook events about a user, and then the item of the erasure. Returns the number of its record, and
    /// that of the last event of the outbox.
    ///
    /// The outer error is final. After an inner error, the WAL has no item.
    fn write_erasure(&mut self, user: &UserId, floor: Seq) -> Result<Result<(u64, u64), StoreError>, EngineError> {
        if let Some(outbox) = self.shared.outbox.clone() {
            // Then all events about the user are in batches, up to the last one. A connection that was just closed may
            // put one more meanwhile.
            for _ in 0..OUTBOX_ATTEMPTS_MAX {
                self.write_outbox()?;
                if !outbox.has_waiting(user.as_str()) && self.unput_events.is_empty() {
                    break;
                }
            }
            if outbox.has_waiting(user.as_str()) || !self.unput_events.is_empty() {
                let why = "webhook events about this user wait for disk space. Free some space, then retry";
                return Ok(Err(StoreError::Full(why.into())));
            }
        }
        let events = match outbox::stored_through(&*self.shared.engine).map_err(EngineError::from) {
            Err(error) if error.is_transient() => return Ok(Err(error.into())),
            events => events?,
        };
        let mut commit = Commit::new(self.next_record);
        if !self.reserve_report(&commit)? {
            return Ok(Err(StoreError::Full(self.why_suspended().unwrap_or_default().into())));
        }
        commit.ensure_capacity(ITEM_BYTES_MAX);
        commit.push(&self.shared, &Item::Erased { user: user.as_str(), floor, events });
        commit.has_replies = true;
        let number = commit.number;
        // Without events, because the commit is given up if it cannot be written.
        if let Err(error) = self.write_records(&mut commit) {
            if !error.is_transient() {
                return Err(error);
            }
            return Ok(Err(error.into()));
        }
        self.sync_if_not_durable()?;
        self.finish(commit)?;
        Ok(Ok((number, events)))
    }

    /// Completes the erasure in progress, and those that wait.
    ///
    /// After an error, those that wait get it. Nothing of them has begun.
    pub(in crate::embedded) fn finish_erasures(&mut self) -> Result<(), EngineError> {
        loop {
            while self.erasure.is_some() {
                if let Err(error) = self.erase_step() {
                    self.erasures.drain(..).for_each(|(_, done)| _ = done.send(Err(error.clone().into())));
                    return Err(error);
                }
            }
            let Some((user, done)) = self.erasures.pop_front() else { return Ok(()) };
            self.begin_erasure(user, done)?;
        }
    }

    /// Runs one step of the erasure. After an error, a retry continues from there.
    pub(in crate::embedded) fn erase_step(&mut self) -> Result<(), EngineError> {
        let Some(mut erasure) = self.erasure.take() else { return Ok(()) };
        let until = Instant::now() + STEP_TIMEOUT;
        let mut done = Ok(false);
        while matches!(done, Ok(false)) && Instant::now() < until {
            done = self.erase_part(&mut erasure);
        }
        if let Ok(true) = done {
            let result = if erasure.found { Erasure::Erased } else { Erasure::Unknown };
            _ = erasure.done.send(Ok(result));
        } else {
            self.erasure = Some(erasure);
        }
        done.map(drop)
    }

    /// Runs a part of a step. Returns true when the erasure is complete.
    fn erase_part(&mut self, erasure: &mut ErasureInProgress) -> Result<bool, EngineError> {
        if self.table_space() < TableSpace::Enough {
            return Err(EngineError::no_space(NO_TABLE_SPACE));
        }
        let (engine, user) = (self.shared.engine.clone(), erasure.user.as_str());
        match &mut erasure.stage {
            ErasureStage::Blocks => {
                let blocks = blocks_of(&*engine, user, erasure.floor, BLOCKS_MAX)?;
                blocks.iter().try_for_each(|key| engine.remove_erased(key))?;
                erasure.found |= !blocks.is_empty();
                if blocks.is_empty() {
                    erasure.stage = ErasureStage::Outbox(0);
                }
            }
            ErasureStage::Outbox(after) => {
                let next = match self.shared.outbox.clone() {
                    Some(outbox) => outbox.erase_next(user, *after, erasure.events)?,
                    // Nothing else writes the table.
                    None => {
                        let events = erasure.events;
                        erasure.found |=
                            outbox::erase::erase_stored(&*engine, &|of, first| of == user && first <= events)?;
                        engine.remove(Table::Outbox, &outbox::format::reported_key(user))?;
                        None
                    }
                };
                match next {
                    Some((last, found)) => (*after, erasure.found) = (last, erasure.found || found),
                    None => erasure.stage = ErasureStage::Ids(Vec::new()),
                }
            }
            ErasureStage::Ids(from) => match erase_ids(&*engine, &|of, _| of == user, from)? {
                Some((next, found)) => (*from, erasure.found) = (next, erasure.found || found),
                None => erasure.stage = ErasureStage::Checkpoint,
            },
            ErasureStage::Checkpoint => {
                if let Some(outbox) = &self.shared.outbox {
                    outbox.erase_reported(&erasure.user)?;
                }
                self.write_outbox()?;
                self.shared.engine.checkpoint()?;
                return Ok(true);
            }
        }
        self.invalidate_disk_state();
        Ok(false)
    }
}

/// Lists the keys of a user's first blocks up to `floor`, at most `limit`.
fn blocks_of(tables: &dyn Tables, user: &str, floor: Seq, limit: usize) -> Result<Vec<Vec<u8>>, EngineError> {
    let end = log_key(user, floor);
    let mut blocks = Vec::new();
    tables.keys(Table::Log, &log_key(user, 0), &mut |key| {
        let is_erased = is_log_key_of(key, user) && key <= &end[..];
        blocks.extend(is_erased.then(|| key.to_vec()));
        is_erased && blocks.len() < limit
    })?;
    Ok(blocks)
}

/// Removes users from the rejected recipients in the block of ids at or after the key `from`.
///
/// `is_erased` gets the user, and the time of the result in milliseconds of the Unix epoch. Returns the key after that
/// block, and whether a user was removed. Returns `None` if there is no block.
fn erase_ids(
    tables: &dyn Tables,
    is_erased: &dyn Fn(&str, u64) -> bool,
    from: &[u8],
) -> Result<Option<(Vec<u8>, bool)>, EngineError> {
    let mut block = None;
    tables.scan(Table::Ids, from, &mut |key, value| {
        block = Some((key.to_vec(), value));
        false
    })?;
    let Some((mut key, value)) = block else { return Ok(None) };
    let Ids::V1 { namespace, mut ids } = Ids::decode(&value).map_err(EngineError::new)?;
    let mut found = false;
    for id in &mut ids {
        let before = id.rejected.len();
        id.rejected.retain(|(user, _)| !is_erased(user, id.at_ms));
        found |= id.rejected.len() < before;
    }
    if found {
        tables.put(Table::Ids, &key, &Ids::V1 { namespace, ids }.encode())?;
    }
    key.push(0);
    Ok(Some((key, found)))
}

/// Describes an erasure in the WAL, which recovery repeats.
pub(in crate::embedded) struct ReplayedErasure {
    pub user: String,
    /// Time of the erasure, in milliseconds of the Unix epoch.
    pub at_ms: u64,
    /// See [`Item::Erased`].
    pub events: u64,
}

/// Removes from the tables what they may still have about erased users.
///
/// Also removes the row and the blocks of a later log of such a user: the WAL has all its items. Later webhook events
/// and results of dispatches stay.
pub(in crate::embedded) fn repeat_erasures(
    tables: &dyn Tables,
    erasures: &[ReplayedErasure],
) -> Result<(), StoreError> {
    if erasures.is_empty() {
        return Ok(());
    }
    // The last erasure of a user counts.
    let erased: HashMap<&str, &ReplayedErasure> =
        erasures.iter().map(|erasure| (erasure.user.as_str(), erasure)).collect();
    for (user, erasure) in &erased {
        for key in blocks_of(tables, user, Seq::MAX, usize::MAX)? {
            tables.remove_erased(&key)?;
        }
        tables.remove(Table::Users, user.as_bytes())?;
        // The row of a connection before the erasure, whose disconnection would be reported after it. The crash has
        // closed a later one, which is reported.
        let row = tables.get(Table::Connected, user.as_bytes())?.and_then(|row| Connections::decode(&row).ok());
        if row.is_none_or(|Connections::V1 { since_ms, .. }| since_ms <= erasure.at_ms) {
            tables.remove(Table::Connected, user.as_bytes())?;
        }
        tables.remove(Table::Outbox, &outbox::format::reported_key(user))?;
    }
    outbox::erase::erase_stored(tables, &|user, first| {
        erased.get(user).is_some_and(|erasure| first <= erasure.events)
    })?;
    let is_erased = |user: &str, at_ms: u64| erased.get(user).is_some_and(|erasure| at_ms <= erasure.at_ms);
    let mut from = Vec::new();
    while let Some((next, _)) = erase_ids(tables, &is_erased, &from).map_err(unreadable_ids)? {
        from = next;
    }
    Ok(())
}

fn unreadable_ids(error: EngineError) -> StoreError {
    if error.is_transient() { error.into() } else { unreadable::damaged(format!("dispatch ids: {error}")) }
}
