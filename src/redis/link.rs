//! One server's link to a cluster on Redis, and what it notifies.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64},
    },
    time::{Duration, Instant},
};

use parking_lot::{Mutex, RwLock};
use tokio::{
    runtime::Runtime,
    sync::{Notify, watch},
    task::AbortHandle,
};

use super::{cluster_connection::REPLY_TIMEOUT, connection::RedisClient, keys::Keys};
use crate::{health::Health, message::UserId};

/// Handles notifications. Called on threads of the Redis runtime, so it must not block.
pub type Listener = Arc<dyn Fn(&Notification) + Send + Sync>;

/// Options of a [`ServerLink`] that a server leaves at their defaults.
#[derive(Clone, Debug)]
pub struct LinkOptions {
    /// Milliseconds by which the clock is ahead, for tests. The caller may raise it at any time.
    pub ahead_ms: Arc<AtomicU64>,
    /// Time limit for a reply of Redis. Then the connection is replaced, and the request fails.
    pub reply_timeout: Duration,
}

impl Default for LinkOptions {
    fn default() -> Self {
        Self { ahead_ms: Arc::default(), reply_timeout: REPLY_TIMEOUT }
    }
}

/// One server's link to a cluster on Redis: its client, its lease, and its tasks.
pub struct ServerLink {
    pub(super) client: RedisClient,
    pub(super) keys: Keys,
    pub(super) server_name: String,
    pub(super) membership: RwLock<Membership>,
    /// Milliseconds by which the clock is ahead. For tests.
    pub(super) ahead_ms: Arc<AtomicU64>,
    /// Milliseconds by which the clock of an earlier test run was ahead.
    pub(super) base_ms: u64,
    pub(super) opened: Instant,
    /// Health conditions of this server.
    pub(super) health: Arc<Health>,
    pub(super) listeners: RwLock<Vec<Listener>>,
    pub(super) tasks: Mutex<Vec<AbortHandle>>,
    /// Another server has removed this server's state, or Redis may have lost it: presence must be written again.
    pub(super) reaped: AtomicBool,
    /// Until then no server is taken for dead: leases may have ended while Redis was unreachable.
    pub(super) grace_until: Mutex<Option<Instant>>,
    /// Notified when another server has begun a failover epoch.
    pub(super) renew_now: Arc<Notify>,
    /// Highest sequence that was assigned or read on this server.
    pub(super) highest_sequence: AtomicU64,
    /// Serializes renewals. Otherwise the later reply might be the older one.
    pub(super) renewing: tokio::sync::Mutex<()>,
    /// This server is subscribed to the channels.
    pub(super) subscribed: watch::Sender<bool>,
    pub(super) unsubscribed_since: Mutex<Option<Instant>>,
    /// Publishes that are queued or in flight.
    pub(super) pending_publishes: Arc<watch::Sender<usize>>,
    /// Set when this server has left the cluster.
    pub(super) deregistered: watch::Sender<bool>,
    pub(super) runtime: Option<Runtime>,
}

/// The live servers and the failover epoch, as of one renewal.
#[derive(Clone, Debug, Default)]
pub struct Membership {
    /// Names of the live servers, separated by commas.
    pub servers: Arc<str>,
    /// When they were listed, in milliseconds of the Redis clock.
    pub as_of_ms: u64,
    /// Identifies the dataset of this Redis: the server that wrote first, and when. A Redis that was emptied gets
    /// another.
    pub dataset: Arc<str>,
    /// The failover epoch.
    pub epoch: u64,
    /// Base sequence of the epoch: logs that this Redis does not have begin behind it. 0, or above every sequence
    /// assigned before the epoch.
    pub base_seq: u64,
    /// In a Redis Cluster, replication ids of the shards that it had when the dataset began. Any other shard may have
    /// lost data.
    pub shards: Arc<str>,
    /// Append steps in this epoch that this server knows of.
    pub appends: u64,
    /// Earlier epochs, separated by commas.
    pub(super) past: Arc<str>,
    /// Number of lease renewals on this Redis, by all servers.
    pub(super) renewals: u64,
}

/// A change that other servers, or this server's own tasks, report.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Notification {
    /// The logs of these users have new entries.
    LogsAppended(Vec<UserId>),
    /// Notifications may have been missed: any log may have new entries.
    Resync,
    /// The original now lists these users of this server as online. Its servers may have stored messages for them just
    /// before.
    OriginalPresent(Vec<UserId>),
    /// Another server has removed this server's state, or Redis may have lost it. Holds and devices must be reported
    /// again.
    StateLost,
    /// Another failover epoch was adopted: every session reads its log again.
    EpochAdopted,
    /// A message on any other channel.
    ChannelMessage {
        /// The channel, with the suffix of the namespace.
        channel: String,
        /// The payload.
        payload: Vec<u8>,
    },
}
