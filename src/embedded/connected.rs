//! Users with connections, as the table `connected` records them.
//!
//! After a kill or a power cut, the table states which users the server has disconnected without an event. It is a record
//! of best effort, about a second old: 20 ms until the commit thread writes a change, and 500 ms until sled's own thread
//! passes it to the system. Losing a change loses or repeats an event, and never a message.
//!
//! # Why the rows bypass the WAL
//!
//! - A row in the WAL would be written twice: with a record, and into sled by the flush. Each start would replay it.
//! - No message depends on a row, so a row needs no sync, and no order with any record.
//! - A put into sled is a change in memory: 10,000 of them took 0.11 s in a test build. The commit thread waits for the
//!   disk only when sled holds 256 KiB of changes, from some 2,700 rows, as with every other table. It leaves the rest to
//!   sled's thread, and requests no sync.
//!
//! Changes are merged by user, and written in steps with a bound. So a storm of connections delays a commit by one step
//! at most, and the rest waits in memory: one entry for each connected user, and for each disconnected one whose row is
//! still stored.

use std::collections::{HashMap, VecDeque};

use foldhash::fast::RandomState;
use parking_lot::Mutex;

use super::tables::{
    contract::{EngineError, Table, Tables},
    schema::Connections,
};
use crate::message::UserId;

/// Holds the users with connections, and the changes that the table lacks.
pub(super) struct ConnectedUsers(Mutex<State>);

#[derive(Default)]
struct State {
    /// Connected users, and disconnected ones whose last change is not written.
    users: HashMap<UserId, Entry, RandomState>,
    /// Users whose row must be written or removed, each once, oldest change first.
    changed: VecDeque<UserId>,
    /// Users in the table whom the previous start had connected, and whose events are not in the outbox.
    interrupted: VecDeque<UserId>,
    /// The first ones of them are being reported: their events are in the outbox, perhaps not written yet.
    reporting: usize,
    /// All those users, until the caller of the store takes them.
    untaken: Vec<UserId>,
}

struct Entry {
    since_ms: u64,
    connections: u32,
    /// The table has a row of this user.
    is_stored: bool,
    /// The user is in `changed`.
    is_changed: bool,
}

/// Describes the write that brings the row of one user up to date.
pub(super) enum RowChange {
    Put(UserId, Connections),
    Remove(UserId),
    /// The user has connected and disconnected again since the last write.
    Nothing,
}

impl ConnectedUsers {
    /// Reads the rows that the previous start has left. There are none after a clean stop.
    pub(super) fn open(tables: &dyn Tables) -> Result<Self, EngineError> {
        let mut interrupted = VecDeque::new();
        tables.keys(Table::Connected, &[], &mut |key| {
            // Only damage leaves other keys. They are ignored, as a best-effort record permits.
            interrupted.extend(std::str::from_utf8(key).ok().and_then(|id| UserId::new(id).ok()));
            true
        })?;
        let untaken = interrupted.iter().cloned().collect();
        Ok(Self(Mutex::new(State { interrupted, untaken, ..State::default() })))
    }

    /// Records a user's number of connections. Returns true if the commit thread must be woken.
    pub(super) fn set(&self, user: &UserId, connections: usize, now_ms: u64) -> bool {
        let connections = u32::try_from(connections).unwrap_or(u32::MAX);
        let mut state = self.0.lock();
        let State { users, changed, .. } = &mut *state;
        if !users.contains_key(user.as_str()) {
            if connections == 0 {
                return false;
            }
            let entry = Entry { since_ms: now_ms, connections: 0, is_stored: false, is_changed: false };
            users.insert(user.clone(), entry);
        }
        let Some(entry) = users.get_mut(user.as_str()) else { return false };
        if entry.connections == 0 {
            entry.since_ms = now_ms;
        }
        entry.connections = connections;
        if std::mem::replace(&mut entry.is_changed, true) {
            return false;
        }
        changed.push_back(user.clone());
        changed.len() == 1
    }

    /// Takes the oldest change, which the caller then writes.
    pub(super) fn take_change(&self) -> Option<RowChange> {
        let mut state = self.0.lock();
        let user = state.changed.pop_front()?;
        let Some(entry) = state.users.get_mut(user.as_str()) else { return Some(RowChange::Nothing) };
        entry.is_changed = false;
        if entry.connections > 0 {
            entry.is_stored = true;
            let row = Connections::V1 { since_ms: entry.since_ms, count: entry.connections };
            return Some(RowChange::Put(user, row));
        }
        let was_stored = entry.is_stored;
        state.users.remove(user.as_str());
        Some(if was_stored { RowChange::Remove(user) } else { RowChange::Nothing })
    }

    /// Returns the number of changes that are not written.
    pub(super) fn changes(&self) -> usize {
        self.0.lock().changed.len()
    }

    /// Returns the first users that are being reported, at most `limit`. If there are none, begins to report some.
    ///
    /// Also returns whether it has begun, so that the caller must put the events of these users.
    pub(super) fn report_next(&self, limit: usize) -> (Vec<UserId>, bool) {
        let mut state = self.0.lock();
        let is_new = state.reporting == 0;
        if is_new {
            state.reporting = limit.min(state.interrupted.len());
        }
        (state.interrupted.iter().take(limit.min(state.reporting)).cloned().collect(), is_new)
    }

    /// Returns the number of these users.
    pub(super) fn interrupted_count(&self) -> usize {
        self.0.lock().interrupted.len()
    }

    /// Forgets the first `count` users that are being reported. Their rows are removed.
    pub(super) fn forget_reported(&self, count: usize) {
        let mut state = self.0.lock();
        state.interrupted.drain(..count);
        state.reporting -= count;
    }

    /// Forgets an erased user whom the previous start had connected: no event may follow.
    ///
    /// Call this only on the commit thread, between two steps.
    pub(super) fn remove_interrupted(&self, user: &UserId) {
        let mut state = self.0.lock();
        state.untaken.retain(|untaken| untaken != user);
        // The table has one row of each user.
        if let Some(at) = state.interrupted.iter().position(|interrupted| interrupted == user) {
            state.interrupted.remove(at);
            state.reporting -= usize::from(at < state.reporting);
        }
    }

    /// Records that the erasure of a user has removed the row. If the user has connected meanwhile, the row is written
    /// again.
    ///
    /// Call this only on the commit thread, after the removal.
    pub(super) fn set_row_removed(&self, user: &UserId) {
        let mut state = self.0.lock();
        let State { users, changed, .. } = &mut *state;
        let Some(entry) = users.get_mut(user.as_str()) else { return };
        entry.is_stored = false;
        if entry.connections > 0 && !std::mem::replace(&mut entry.is_changed, true) {
            changed.push_back(user.clone());
        }
    }

    /// Returns all users whom the previous start had connected, at the first call.
    pub(super) fn take_untaken(&self) -> Vec<UserId> {
        std::mem::take(&mut self.0.lock().untaken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::embedded::tables::memory::Memory;

    fn user(id: &str) -> UserId {
        UserId::new(id).unwrap()
    }

    fn interrupted(ids: &[&str]) -> ConnectedUsers {
        let tables = Memory::default();
        for id in ids {
            let row = Connections::V1 { since_ms: 1, count: 1 };
            tables.put(Table::Connected, id.as_bytes(), &row.encode()).unwrap();
        }
        ConnectedUsers::open(&tables).unwrap()
    }

    #[test]
    fn removed_interrupted_user_is_not_reported() {
        let connected = interrupted(&["a", "b", "c", "d"]);
        connected.remove_interrupted(&user("b"));
        connected.remove_interrupted(&user("unknown"));
        assert_eq!(connected.report_next(2), (vec![user("a"), user("c")], true));
        // During a report: the events of `d` are not in the outbox, those of `c` are.
        connected.remove_interrupted(&user("c"));
        assert_eq!(connected.report_next(2), (vec![user("a")], false));
        connected.remove_interrupted(&user("a"));
        assert_eq!(connected.report_next(2), (vec![user("d")], true), "events of other users follow");
        connected.forget_reported(1);
        assert_eq!((connected.interrupted_count(), connected.report_next(2)), (0, (vec![], true)));
        assert_eq!(connected.take_untaken(), [user("d")]);
    }

    #[test]
    fn row_that_an_erasure_removed_is_written_again_for_a_connected_user() {
        let connected = ConnectedUsers::open(&Memory::default()).unwrap();
        let next = || match connected.take_change() {
            Some(RowChange::Put(user, _)) => format!("put {}", user.as_str()),
            Some(RowChange::Remove(user)) => format!("remove {}", user.as_str()),
            Some(RowChange::Nothing) => "nothing".to_owned(),
            None => "none".to_owned(),
        };
        connected.set(&user("a"), 1, 1);
        assert_eq!(next(), "put a");
        connected.set_row_removed(&user("a"));
        connected.set_row_removed(&user("unknown"));
        assert_eq!([next(), next()], ["put a", "none"]);
        // Before the last change is written.
        connected.set(&user("a"), 0, 2);
        connected.set_row_removed(&user("a"));
        assert_eq!([next(), next()], ["nothing", "none"]);
    }
}
