//! Who is here: every connection, and the sessions of every user.

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

use super::mailbox::{Leave, Mailbox, MailboxBounds};
use crate::message::{Payload, Seq, UserId};

/// Shards of each map: enough that two threads seldom meet, few enough to walk.
const SHARDS: usize = 64;

/// Names a connection for as long as the process lives.
pub type ConnectionId = u64;

type Shard<K, V> = Mutex<HashMap<K, V, RandomState>>;

/// Locks are taken one at a time and held only for a look-up and a push. What is called from under them (mailboxes,
/// presence, a note to the store) takes locks of its own, and never one of these.
#[derive(Debug)]
pub struct Registry {
    hasher: RandomState,
    connections: Vec<Shard<ConnectionId, Arc<Mailbox>>>,
    users: Vec<Shard<UserId, Vec<Arc<Seat>>>>,
    next: AtomicU64,
    count: AtomicUsize,
}

/// What others may see of a session: its mailbox and how far it has read.
#[derive(Debug)]
pub struct Seat {
    pub(super) connection: ConnectionId,
    pub(super) mailbox: Arc<Mailbox>,
    /// The session needs nothing up to and including this any more; the store may trim that far.
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

    fn connections_of(&self, id: ConnectionId) -> &Shard<ConnectionId, Arc<Mailbox>> {
        &self.connections[id as usize % SHARDS]
    }

    fn users_of(&self, user: &UserId) -> &Shard<UserId, Vec<Arc<Seat>>> {
        &self.users[self.hasher.hash_one(user) as usize % SHARDS]
    }

    /// Connections in all, authenticated or not.
    pub(super) fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    pub(super) fn enter(&self, bounds: MailboxBounds) -> (ConnectionId, Arc<Mailbox>) {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let mailbox = Arc::new(Mailbox::new(bounds));
        self.connections_of(id).lock().insert(id, mailbox.clone());
        self.count.fetch_add(1, Ordering::Relaxed);
        (id, mailbox)
    }

    pub(super) fn exit(&self, id: ConnectionId) {
        if self.connections_of(id).lock().remove(&id).is_some() {
            self.count.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// What is left for a connection, if it is here.
    pub(super) fn mailbox(&self, id: ConnectionId) -> Option<Arc<Mailbox>> {
        self.connections_of(id).lock().get(&id).cloned()
    }

    /// Seats a session, and tells how many the user has now. Until its position is set it holds the whole log.
    pub(super) fn sit(
        &self,
        user: &UserId,
        connection: ConnectionId,
        mailbox: Arc<Mailbox>,
        count: impl FnOnce(usize),
    ) -> Arc<Seat> {
        let seat = Arc::new(Seat { connection, mailbox, position: AtomicU64::new(0) });
        let mut shard = self.users_of(user).lock();
        let seats = shard.entry(user.clone()).or_default();
        seats.push(seat.clone());
        count(seats.len());
        seat
    }

    /// Frees a seat, and tells how many the user has now.
    pub(super) fn rise(&self, user: &UserId, connection: ConnectionId, count: impl FnOnce(usize)) {
        let mut shard = self.users_of(user).lock();
        let Some(seats) = shard.get_mut(user) else { return };
        seats.retain(|seat| seat.connection != connection);
        let left = seats.len();
        if left == 0 {
            shard.remove(user);
        }
        count(left);
    }

    /// Calls `tell` with the lowest position among a user's sessions; `None` if there are none. Under the lock, so
    /// that of two who tell at once the later one tells what is true later.
    pub(super) fn with_hold(&self, user: &UserId, tell: impl FnOnce(Option<Seq>)) {
        let shard = self.users_of(user).lock();
        let seats = shard.get(user).map_or(&[][..], Vec::as_slice);
        tell(seats.iter().map(|seat| seat.position.load(Ordering::Acquire)).min());
    }

    /// Connections of a user now.
    pub(super) fn connections(&self, user: &UserId) -> usize {
        self.users_of(user).lock().get(user).map_or(0, Vec::len)
    }

    /// Tells a user's sessions that the log has more.
    pub(super) fn wake(&self, user: &UserId) {
        if let Some(seats) = self.users_of(user).lock().get(user) {
            seats.iter().for_each(|seat| seat.mailbox.log_has_more());
        }
    }

    /// Puts an unsynced message into the mailboxes of a user's connections; returns how many connections got it and
    /// how many older messages were dropped for it.
    pub(super) fn put(&self, user: &UserId, payload: &Payload) -> (usize, u64) {
        let shard = self.users_of(user).lock();
        let Some(seats) = shard.get(user) else { return (0, 0) };
        (seats.len(), seats.iter().map(|seat| seat.mailbox.put(payload)).sum())
    }

    /// Tells a user's connections to go; returns how many there are.
    pub(super) fn leave(&self, user: &UserId, why: Leave) -> usize {
        let shard = self.users_of(user).lock();
        let Some(seats) = shard.get(user) else { return 0 };
        seats.iter().for_each(|seat| seat.mailbox.leave(why));
        seats.len()
    }

    /// Calls `visit` for every connection; no lock is held for longer than a shard of them.
    pub(super) fn everyone(&self, mut visit: impl FnMut(ConnectionId, &Mailbox)) {
        for shard in &self.connections {
            for (id, mailbox) in shard.lock().iter() {
                visit(*id, mailbox);
            }
        }
    }

    /// Connections that belong to one of these users.
    pub(super) fn connections_of_users(&self, users: &[UserId]) -> Vec<ConnectionId> {
        let of = |user| {
            let shard = self.users_of(user).lock();
            shard.get(user).map(|seats| seats.iter().map(|seat| seat.connection).collect()).unwrap_or_default()
        };
        users.iter().flat_map(|user| -> Vec<ConnectionId> { of(user) }).collect()
    }
}
