//! Online users of this server, ordered by id, so that they can be listed page by page.
//!
//! In memory only: after a crash a user is offline until a client reconnects. The store records when a user was last
//! seen, and for the events after a kill, who is connected ([`Store::set_connections`](crate::store::Store)).

use std::{collections::BTreeSet, ops::Bound};

use parking_lot::Mutex;

use crate::message::UserId;

/// Set of the users with a session on this server.
#[derive(Debug, Default)]
pub(super) struct Presence(Mutex<BTreeSet<UserId>>);

impl Presence {
    /// Records the number of sessions that a user has on this server.
    pub(super) fn set_session_count(&self, user: &UserId, sessions: usize) {
        match sessions {
            0 => _ = self.0.lock().remove(user.as_str()),
            1 => _ = self.0.lock().insert(user.clone()),
            _ => {}
        }
    }

    /// Returns the number of online users.
    pub(super) fn count(&self) -> usize {
        self.0.lock().len()
    }

    /// Returns at most `limit` users above `after`.
    pub(super) fn page(&self, after: Option<&UserId>, limit: usize) -> Vec<UserId> {
        let from = after.map_or(Bound::Unbounded, |after| Bound::Excluded(after.as_str()));
        self.0.lock().range::<str, _>((from, Bound::Unbounded)).take(limit).cloned().collect()
    }
}

#[cfg(test)]
mod tests;
