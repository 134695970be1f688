//! Registry of every connection and the sessions of every user.

use std::{
    collections::HashMap,
    hash::BuildHasher,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use foldhash::fast::RandomState;
use parking_lot::Mutex;

use super::mailbox::{CloseReason, Mailbox, MailboxBounds};
use crate::message::{Payload, Seq, UserId};

/// Shards of each map: enough that two threads seldom contend, few enough to iterate over.
const SHARDS: usize = 64;

/// Id of a connection, unique in this process.
pub type ConnectionId = u64;

type Shard<K, V> = Mutex<HashMap<K, V, RandomState>>;

/// All connections and sessions, in sharded maps.
///
/// One lock is held at a time, and only briefly. Code called under it (mailboxes, presence, reports to the store) locks
/// other mutexes, and never one of these.
#[derive(Debug)]
pub struct Registry {
    hasher: RandomState,
    connections: Vec<Shard<ConnectionId, Arc<Mailbox>>>,
    users: Vec<Shard<UserId, Vec<Arc<SessionEntry>>>>,
    next: AtomicU64,
    count: AtomicUsize,
}

/// State of a session that other tasks use: its mailbox and position.
#[derive(Debug)]
pub struct SessionEntry {
    pub(super) connection: ConnectionId,
    pub(super) mailbox: Arc<Mailbox>,
    /// The session needs no entry up to and including this sequence, so the store may trim that far.
    pub(super) position: AtomicU64,
}

impl Registry {
    pub(super) fn new() -> Self {
        Self {
            hasher: RandomState::default(),
            connections: (0..SHARDS).map(|_| Mutex::default()).collect(),
            users: (0..SHARDS).map(|_| Mutex::default()).collect(),
            next: AtomicU64::new(1),
            count: AtomicUsize::new(0),
        }
    }

    fn connection_shard(&self, id: ConnectionId) -> &Shard<ConnectionId, Arc<Mailbox>> {
        &self.connections[id as usize % SHARDS]
    }

    fn session_shard(&self, user: &UserId) -> &Shard<UserId, Vec<Arc<SessionEntry>>> {
        &self.users[self.hasher.hash_one(user) as usize % SHARDS]
    }

    /// Returns the number of connections, authenticated or not.
    pub(super) fn connection_count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    pub(super) fn register_connection(&self, bounds: MailboxBounds) -> (ConnectionId, Arc<Mailbox>) {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let mailbox = Arc::new(Mailbox::new(bounds));
        self.connection_shard(id).lock().insert(id, mailbox.clone());
        self.count.fetch_add(1, Ordering::Relaxed);
        (id, mailbox)
    }

    pub(super) fn unregister_connection(&self, id: ConnectionId) {
        if self.connection_shard(id).lock().remove(&id).is_some() {
            self.count.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Returns the mailbox of a connection, if it is registered.
    pub(super) fn mailbox(&self, id: ConnectionId) -> Option<Arc<Mailbox>> {
        self.connection_shard(id).lock().get(&id).cloned()
    }

    /// Registers a session, and passes the user's number of sessions to `count`.
    ///
    /// Until the session's position is set, the store may trim no entry of the log.
    pub(super) fn register_session(
        &self,
        user: &UserId,
        connection: ConnectionId,
        mailbox: Arc<Mailbox>,
        count: impl FnOnce(usize),
    ) -> Arc<SessionEntry> {
        let session = Arc::new(SessionEntry { connection, mailbox, position: AtomicU64::new(0) });
        let mut shard = self.session_shard(user).lock();
        let sessions = shard.entry(user.clone()).or_default();
        sessions.push(session.clone());
        count(sessions.len());
        session
    }

    /// Unregisters a session. Passes the user's number of sessions, and the lowest position among them, to `report`.
    pub(super) fn unregister_session(
        &self,
        user: &UserId,
        connection: ConnectionId,
        report: impl FnOnce(usize, Option<Seq>),
    ) {
        let mut shard = self.session_shard(user).lock();
        let Some(sessions) = shard.get_mut(user) else { return };
        sessions.retain(|session| session.connection != connection);
        let remaining = sessions.len();
        let lowest = sessions.iter().map(|session| session.position.load(Ordering::Acquire)).min();
        if remaining == 0 {
            shard.remove(user);
        }
        report(remaining, lowest);
    }

    /// Calls `report` with the lowest position among a user's sessions; `None` if there are none.
    ///
    /// Called under the lock, so that of two concurrent reports the later one is the more recent.
    pub(super) fn with_lowest_position(&self, user: &UserId, report: impl FnOnce(Option<Seq>)) {
        let shard = self.session_shard(user).lock();
        let sessions = shard.get(user).map_or(&[][..], Vec::as_slice);
        report(sessions.iter().map(|session| session.position.load(Ordering::Acquire)).min());
    }

    /// Returns a user's number of local sessions.
    pub(super) fn session_count(&self, user: &UserId) -> usize {
        self.session_shard(user).lock().get(user).map_or(0, Vec::len)
    }

    /// Signals a user's sessions that the log has more entries.
    pub(super) fn wake(&self, user: &UserId) {
        if let Some(sessions) = self.session_shard(user).lock().get(user) {
            sessions.iter().for_each(|session| session.mailbox.signal_log());
        }
    }

    /// Puts an unsynced message into the mailboxes of a user's sessions; returns the number of dropped messages.
    pub(super) fn put(&self, user: &UserId, payload: &Payload) -> u64 {
        let shard = self.session_shard(user).lock();
        shard.get(user).map_or(0, |sessions| sessions.iter().map(|session| session.mailbox.put(payload)).sum())
    }

    /// Requests a user's connections to close; returns their number.
    pub(super) fn close_user(&self, user: &UserId, reason: CloseReason) -> usize {
        let shard = self.session_shard(user).lock();
        let Some(sessions) = shard.get(user) else { return 0 };
        sessions.iter().for_each(|session| _ = session.mailbox.close(reason.clone()));
        sessions.len()
    }

    /// Calls `visit` for every connection. A lock is held for one shard at a time.
    pub(super) fn for_each_connection(&self, mut visit: impl FnMut(ConnectionId, &Mailbox)) {
        for shard in &self.connections {
            for (id, mailbox) in shard.lock().iter() {
                visit(*id, mailbox);
            }
        }
    }

    /// Calls `visit` for every connection except those of `excluding`.
    pub(super) fn for_each_connection_except(
        &self,
        excluding: &[UserId],
        mut visit: impl FnMut(ConnectionId, &Mailbox),
    ) {
        let mut excluded = self.connections_of_users(excluding);
        excluded.sort_unstable();
        self.for_each_connection(|id, mailbox| {
            if excluded.binary_search(&id).is_err() {
                visit(id, mailbox);
            }
        });
    }

    /// Returns the connections of these users.
    fn connections_of_users(&self, users: &[UserId]) -> Vec<ConnectionId> {
        let of = |user| {
            let shard = self.session_shard(user).lock();
            shard
                .get(user)
                .map(|sessions| sessions.iter().map(|session| session.connection).collect())
                .unwrap_or_default()
        };
        users.iter().flat_map(|user| -> Vec<ConnectionId> { of(user) }).collect()
    }
}
