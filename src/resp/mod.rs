//! Redis without Redis: as much of its protocol as the Dispatchers and Portals of the stock package speak, over the hub.
//!
//! They live inside Node services and are not ours to change. With this they point their `redis://` address here, and
//! nothing else.
//!
//! - [`parser`]: from bytes to commands · [`encode`]: from answers to bytes
//! - [`connection`]: the life of a connection, one command after the other
//! - [`command`]: the table of commands · [`execute`]: what each does
//! - [`payload`]: what a Dispatcher says, read
//! - [`pipeline`]: messages that share a commit, and the answers that wait for it
//! - [`channels`], [`subscriber_queue`]: who has subscribed to what, and what waits for him
//! - [`original_portals`], [`portal_registry`]: stock portals, and which of them is which connection
//! - [`queries`], [`info`]: what can be looked at
//!
//! # Nothing lost, nothing twice
//!
//! A stock Dispatcher asks for each recipient whether he is here (`SISMEMBER`), appends the message to what waits for those
//! who are not (`HGET`, then `HSET` of all that and one more), and publishes it for the others. Between the question and the
//! rest a user may come or go. That makes no difference here: both the append and what is published go through the user's
//! log, which delivers to who is here and keeps for who is not. A recipient is in one of the two and never in both, so that
//! nothing is doubled. And of what `HSET` brings only the last message is new: taking that one alone makes two Dispatchers
//! who read the same list before either wrote harmless, as well as what was delivered since it was read.

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
    auth::{Guesses, Password},
    compat::keyspace::{Keyspace, Name},
    config::Config,
    hub::{Hub, Outcome, portals::ClientEvent},
    logging::excerpt,
    metrics::Metrics,
};
use channels::Channels;
use original_portals::StockPortals;
pub use portal_registry::Announced;
use subscriber_queue::Subscriber;

/// How much a connection may ask for, and how long it may take.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    /// Bytes of a command; a larger one closes the connection.
    command_bytes: usize,
    /// Bytes that wait for a subscriber; one that lets more pile up is cut.
    backlog_bytes: usize,
    /// Recipients of a dispatch; one with more is refused.
    recipients: usize,
    /// How long a connection may take to show the password; then it is closed.
    authenticate_within: Duration,
    /// A connection that takes nothing of its answers for so long is closed.
    write_within: Duration,
}

/// What all connections have in common.
#[derive(Debug)]
pub struct Wire {
    hub: Arc<Hub>,
    metrics: Arc<Metrics>,
    names: Keyspace,
    password: Option<Password>,
    guesses: Arc<Guesses>,
    bounds: Bounds,
    channels: Arc<Channels>,
    portals: Option<Arc<StockPortals>>,
    numbers: AtomicU64,
    since: Instant,
    /// When it was last said in the log that a message was refused for somebody.
    refused_told: Mutex<Option<Instant>>,
    /// When the log last reported messages that were dropped because sync is off.
    unstored_reported: Mutex<Option<Instant>>,
}

/// Refusals are said in the log this often at most: what makes them may go on for days.
const REFUSED_TOLD_EVERY: Duration = Duration::from_secs(10);

/// Dropped messages are reported in the log this often at most: with sync off a Dispatcher may drop some all day.
const UNSTORED_REPORT_INTERVAL: Duration = Duration::from_secs(300);

impl Wire {
    /// Speaks for `hub`. `guesses` counts wrong passwords. `remembered`: the portals that were in the pool when an earlier process stopped.
    #[must_use]
    pub fn new(
        config: &Config,
        hub: Arc<Hub>,
        metrics: Arc<Metrics>,
        guesses: Arc<Guesses>,
        remembered: Vec<Announced>,
    ) -> Arc<Self> {
        let names = Keyspace::new(config.namespace.as_deref());
        let channels = Arc::new(Channels::default());
        let pool = hub.portals().cloned();
        let portals = pool.map(|pool| StockPortals::new(pool, names.of(Name::Portal), channels.clone(), remembered));
        Arc::new(Self {
            metrics,
            names,
            password: config.redis_protocol.password.as_deref().map(Password::new),
            guesses,
            bounds: Bounds {
                command_bytes: config.redis_protocol.command_bytes,
                backlog_bytes: config.redis_protocol.backlog_bytes,
                recipients: config.limits.recipients,
                authenticate_within: config.limits.header_timeout,
                write_within: config.limits.write_timeout,
            },
            channels,
            portals,
            numbers: AtomicU64::new(1),
            since: Instant::now(),
            refused_told: Mutex::default(),
            unstored_reported: Mutex::default(),
            hub,
        })
    }

    /// To be called every second or so.
    pub fn sweep(&self, now: Instant) {
        if let Some(portals) = &self.portals {
            portals.sweep(now);
        }
    }

    /// The portals in the pool, whenever they change: what to give to [`Wire::new`] next time. A stock portal says only once
    /// that it is there. `None` where there are to be no portals.
    #[must_use]
    pub fn announced(&self) -> Option<watch::Receiver<Vec<Announced>>> {
        self.portals.as_ref().map(|portals| portals.announced())
    }

    /// For how many a message was taken: of those it was for, all but those for whom it was refused. A Dispatcher has no ear
    /// for the difference, so it is also said in the log.
    fn taken_for(&self, outcome: &Outcome) -> u64 {
        if let Some(refused) = outcome.rejected.first() {
            let mut told = self.refused_told.lock();
            if told.is_none_or(|told| told.elapsed() > REFUSED_TOLD_EVERY) {
                *told = Some(Instant::now());
                let (user, reason) = (excerpt(&refused.user), refused.reason.as_str());
                tracing::warn!(
                    user,
                    reason,
                    "a message of a Dispatcher was not taken for a user; see mesa_messages_rejected_total"
                );
            }
        }
        outcome.recipients.saturating_sub(outcome.rejected.len()) as u64
    }

    /// Reports in the log that messages for offline users were dropped because sync is off, at most once per interval.
    ///
    /// A Dispatcher only learns how many users were online, which it takes for success.
    fn report_unstored(&self, offline: usize) {
        let mut reported = self.unstored_reported.lock();
        if offline > 0 && reported.is_none_or(|at| at.elapsed() > UNSTORED_REPORT_INTERVAL) {
            *reported = Some(Instant::now());
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

    fn unsubscribe(&self, channel: &[u8], subscriber: &Subscriber, left: &[Arc<ClientEvent>]) {
        self.channels.unsubscribe(channel, subscriber.number);
        if let Some(portals) = self.portals.as_ref().filter(|portals| portals.is_channel(channel)) {
            portals.unsubscribe(subscriber.number, left);
        }
    }
}
