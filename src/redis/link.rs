//! State of one server's place at a Redis.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64},
    },
    time::Instant,
};

use parking_lot::{Mutex, RwLock};
use tokio::{
    runtime::Runtime,
    sync::{Notify, watch},
    task::AbortHandle,
};

use super::{connection::RedisClient, keys::Keys};
use crate::{health::Health, message::UserId};

/// Who is told what other servers say: on the line's own threads, so it must not block.
pub type Listener = Arc<dyn Fn(&Notification) + Send + Sync>;

/// A server's place at a Redis.
pub struct ServerLink {
    pub(super) client: RedisClient,
    pub(super) keys: Keys,
    pub(super) node: String,
    pub(super) membership: RwLock<Membership>,
    /// Milliseconds by which the clock is ahead: for tests.
    pub(super) ahead_ms: Arc<AtomicU64>,
    /// What an earlier opening with such a clock has left.
    pub(super) base_ms: u64,
    pub(super) opened: Instant,
    /// Conditions of the server that this link belongs to.
    pub(super) health: Arc<Health>,
    pub(super) listeners: RwLock<Vec<Listener>>,
    pub(super) tasks: Mutex<Vec<AbortHandle>>,
    /// Another server has taken this one for dead, or the Redis may have forgotten something: what was said of who is here
    /// has to be said again.
    pub(super) reaped: AtomicBool,
    /// Until then nobody is taken for dead whose lease has ended while nobody could renew his.
    pub(super) grace_until: Mutex<Option<Instant>>,
    /// Another server has begun a failover epoch.
    pub(super) renew_now: Arc<Notify>,
    /// The highest sequence that was given out or read here.
    pub(super) highest_sequence: AtomicU64,
    /// One renews the lease at a time, or the later answer might be of the earlier time.
    pub(super) renewing: tokio::sync::Mutex<()>,
    /// Whether this server hears what others say.
    pub(super) subscribed: watch::Sender<bool>,
    pub(super) unsubscribed_since: Mutex<Option<Instant>>,
    /// What waits to be told to others, or is on its way.
    pub(super) pending_publishes: Arc<watch::Sender<usize>>,
    /// Set once this server is not one of them any more.
    pub(super) deregistered: watch::Sender<bool>,
    pub(super) runtime: Option<Runtime>,
}

/// Which servers live, when that was asked, and what the Redis was then.
#[derive(Clone, Debug, Default)]
pub struct Membership {
    /// Their names, with commas between.
    pub nodes: Arc<str>,
    /// Milliseconds of the Redis's clock.
    pub as_of_ms: u64,
    /// What tells this Redis from one that was emptied since.
    pub birth: Arc<str>,
    /// The failover epoch.
    pub epoch: u64,
    /// Where logs begin that it does not have: 0, or above all that was given out before it was emptied.
    pub base: u64,
    /// In a Cluster, the histories of those that were its shards at its birth: what others do not have, they may have forgotten.
    pub shards: Arc<str>,
    /// How many steps have appended in this epoch, as far as this server has seen.
    pub appends: u64,
    /// The epochs before, with commas between.
    pub(super) past: Arc<str>,
    /// How often leases were renewed there.
    pub(super) renewed: u64,
}

/// Something another server has said.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Notification {
    /// The logs of these users have more.
    LogsAppended(Vec<UserId>),
    /// For a while nothing was heard: any log may have more.
    Resync,
    /// From now on these users of this server are connected in stock's eyes; what was left for them before may not be seen
    /// by anybody. Not said by others, but by whoever has written it down here.
    OriginalPresent(Vec<UserId>),
    /// This server was taken for dead, or the Redis may have forgotten something: who is here is to be said again.
    StateLost,
    /// Another failover epoch was adopted: every session reads its log again.
    EpochAdopted,
    /// Something on a channel that is not about logs.
    ChannelMessage {
        /// Which, as it is called in this namespace.
        channel: String,
        /// What.
        payload: Vec<u8>,
    },
}
