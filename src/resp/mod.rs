//! Serves the part of the Redis protocol (RESP2) that Dispatchers and Portals of the original Mesa (`@cryb/mesa`) use.
//!
//! They run inside Node services and cannot be changed. To use this server, only their `redis://` address changes.
//!
//! - [`parser`]: bytes to commands · [`encode`]: replies to bytes
//! - [`connection`]: executes the commands of one connection in order
//! - [`command`]: the table of commands · [`execute`]: executes them
//! - [`payload`]: parses the JSON that a Dispatcher sends
//! - [`pipeline`]: pipelined commands that share a group commit
//! - [`channels`], [`subscriber_queue`]: subscriptions, and a bounded output queue for each
//! - [`original_portals`], [`portal_registry`]: portals of the original, and their connections
//! - [`queries`], [`info`]: read-only commands
//!
//! # No loss, no duplicates
//!
//! The original's Dispatcher queries for each recipient whether the user is online (`SISMEMBER`). For an offline user
//! it appends the message to the list of pending messages: `HGET`, then `HSET` of that list and the message. For online
//! users it publishes the message. In between, a user may connect or disconnect.
//!
//! That is harmless here. Both `HSET` and `PUBLISH` append to the user's log, which delivers to online users and stores
//! for offline ones. A recipient is in one of the two commands, so there are no duplicates. Only the last message of an
//! `HSET` list is new, and only that message is appended. So two Dispatchers may read the same list before either
//! writes, and messages may be delivered between read and write.

mod channels;
mod command;
mod connection;
mod encode;
mod execute;
mod info;
mod original_portals;
mod parser;
mod payload;
mod pipeline;
mod portal_registry;
mod queries;
mod subscriber_queue;
#[cfg(test)]
mod tests;

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::{Duration, Instant},
};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::{
    auth::GuessLimiter,
    compat::keyspace::{Keyspace, Name},
    config::Config,
    hub::{Hub, Outcome, portals::ClientEvent},
    live::Live,
    logging::excerpt,
    metrics::Metrics,
};
use channels::Channels;
use original_portals::OriginalPortals;
pub use portal_registry::AnnouncedPortal;
use subscriber_queue::Subscriber;

/// Limits of a connection that a reload does not change. The others are in [`Live`].
#[derive(Clone, Copy, Debug)]
struct Bounds {
    /// Size of a command in bytes. A larger command closes the connection.
    command_bytes: usize,
    /// Bytes queued for a subscriber. Above them it is disconnected.
    backlog_bytes: usize,
}

/// The RESP server: state that all its connections share.
#[derive(Debug)]
pub struct RespServer {
    hub: Arc<Hub>,
    metrics: Arc<Metrics>,
    names: Keyspace,
    /// Password and limits, which a reload changes.
    live: Arc<Live>,
    guess_limiter: Arc<GuessLimiter>,
    bounds: Bounds,
    channels: Arc<Channels>,
    portals: Option<Arc<OriginalPortals>>,
    /// Number of the next connection.
    next_number: AtomicU64,
    started: Instant,
    /// Time of the last log line about a rejected recipient.
    rejection_logged: Mutex<Option<Instant>>,
    /// Time of the last log line about messages dropped because sync is off.
    unstored_logged: Mutex<Option<Instant>>,
}

/// Minimum interval of log lines about rejected recipients. Their cause may last for days.
const REJECTION_LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Minimum interval of log lines about dropped messages. With sync off a Dispatcher may cause them all day.
const UNSTORED_LOG_INTERVAL: Duration = Duration::from_secs(300);

impl RespServer {
    /// Creates the server. `guess_limiter` counts wrong passwords.
    ///
    /// `remembered` are the portals that were in the pool when an earlier process stopped.
    #[must_use]
    pub fn new(
        config: &Config,
        live: Arc<Live>,
        hub: Arc<Hub>,
        metrics: Arc<Metrics>,
        guess_limiter: Arc<GuessLimiter>,
        remembered: Vec<AnnouncedPortal>,
    ) -> Arc<Self> {
        let names = Keyspace::new(config.namespace.as_deref());
        let channels = Arc::new(Channels::default());
        let pool = hub.portals().cloned();
        let portals = pool.map(|pool| OriginalPortals::new(pool, names.of(Name::Portal), channels.clone(), remembered));
        Arc::new(Self {
            metrics,
            names,
            live,
            guess_limiter,
            bounds: Bounds {
                command_bytes: config.redis_protocol.command_bytes,
                backlog_bytes: config.redis_protocol.backlog_bytes,
            },
            channels,
            portals,
            next_number: AtomicU64::new(1),
            started: Instant::now(),
            rejection_logged: Mutex::default(),
            unstored_logged: Mutex::default(),
            hub,
        })
    }

    /// Removes portals that have been disconnected for 60 s. Call it about once per second.
    pub fn sweep(&self, now: Instant) {
        if let Some(portals) = &self.portals {
            portals.sweep(now);
        }
    }

    /// Watches the list of portals in the pool. `None` if portals are off.
    ///
    /// The list is what the next process passes to [`RespServer::new`], because a portal of the original announces
    /// itself only once.
    #[must_use]
    pub fn announced(&self) -> Option<watch::Receiver<Vec<AnnouncedPortal>>> {
        self.portals.as_ref().map(|portals| portals.announced())
    }

    /// Counts the recipients for which a message was accepted.
    ///
    /// A Dispatcher ignores the count, so rejections are logged too.
    fn accepted_count(&self, outcome: &Outcome, by: &Subscriber) -> u64 {
        let Outcome { recipients, online, stored, .. } = *outcome;
        let rejected = outcome.rejected.len();
        tracing::debug!(
            redis_connection = by.number,
            peer = %by.address,
            recipients,
            online,
            stored,
            rejected,
            "dispatched"
        );
        if let Some(rejected) = outcome.rejected.first() {
            let mut logged = self.rejection_logged.lock();
            if logged.is_none_or(|at| at.elapsed() > REJECTION_LOG_INTERVAL) {
                *logged = Some(Instant::now());
                let (user, reason) = (excerpt(&rejected.user), rejected.reason.as_str());
                tracing::warn!(
                    user,
                    reason,
                    "a message of a Dispatcher was rejected for a user; see mesa_messages_rejected_total"
                );
            }
        }
        outcome.recipients.saturating_sub(outcome.rejected.len()) as u64
    }

    /// Logs that messages for offline users were dropped because sync is off, at most once per interval.
    ///
    /// A Dispatcher gets only the number of online users, and takes that for success.
    fn report_unstored(&self, offline: usize) {
        let mut logged = self.unstored_logged.lock();
        if offline > 0 && logged.is_none_or(|at| at.elapsed() > UNSTORED_LOG_INTERVAL) {
            *logged = Some(Instant::now());
            tracing::warn!(
                offline,
                "a message of a Dispatcher was dropped for offline users: sync.enabled is off; see \
                 mesa_messages_dropped_sync_off_total"
            );
        }
    }

    fn subscribe(&self, channel: Bytes, subscriber: &Arc<Subscriber>) {
        let portals = self.portals.as_ref().filter(|portals| portals.is_channel(&channel));
        self.channels.subscribe(channel, subscriber);
        if let Some(portals) = portals {
            portals.subscribe(subscriber);
        }
    }

    fn unsubscribe(&self, channel: &[u8], subscriber: &Subscriber, unwritten: &[Arc<ClientEvent>]) {
        self.channels.unsubscribe(channel, subscriber.number);
        if let Some(portals) = self.portals.as_ref().filter(|portals| portals.is_channel(channel)) {
            portals.unsubscribe(subscriber.number, unwritten);
        }
    }
}
