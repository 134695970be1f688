//! Delivers client events to portals of the original.
//!
//! All portals subscribe to one channel, and receive every event on it. A portal handles events under its own id, or
//! all events if it is configured so. So each event is published once, under the id of the portal whose turn it is, as
//! in the original.

use std::{net::IpAddr, sync::Arc, time::Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::{
    channels::Channels,
    portal_registry::{AnnouncedPortal, ConnectionNumber, PortalRegistry, Subscription},
    subscriber_queue::{self, PushResult, Subscriber},
};
use crate::{
    compat::portal::{self, kind},
    hub::portals::{self, ClientEvent, ClientEventKind, ConsumerId, EventForwarder},
};

/// Id that no portal has.
const NO_PORTAL: &str = "";

/// The portals of the original that are connected to this server.
#[derive(Debug)]
pub(super) struct OriginalPortals {
    pool: Arc<portals::Portals>,
    /// The channel of events.
    channel: Bytes,
    channels: Arc<Channels>,
    registry: Mutex<PortalRegistry>,
    /// Portals in the pool. Each change is sent.
    announced: watch::Sender<Vec<AnnouncedPortal>>,
}

impl OriginalPortals {
    pub(super) fn new(
        pool: Arc<portals::Portals>,
        channel: String,
        channels: Arc<Channels>,
        remembered: Vec<AnnouncedPortal>,
    ) -> Arc<Self> {
        if !remembered.is_empty() {
            // These portals will reconnect shortly.
            pool.reserve_queue();
        }
        let announced = watch::Sender::new(remembered.clone());
        let registry = Mutex::new(PortalRegistry::remembered(remembered, Instant::now()));
        let portals = Arc::new(Self { pool, channel: channel.into(), channels, registry, announced });
        let watch: Arc<dyn EventForwarder> = portals.clone();
        portals.pool.set_forwarder(Arc::downgrade(&watch));
        portals
    }

    /// Watches the portals that must be stored over a restart.
    pub(super) fn announced(&self) -> watch::Receiver<Vec<AnnouncedPortal>> {
        self.announced.subscribe()
    }

    pub(super) fn is_channel(&self, channel: &[u8]) -> bool {
        self.channel == channel
    }

    /// Returns the ids in the pool: those announced here, and those of other servers.
    pub(super) fn ids(&self) -> Vec<String> {
        let mut ids: Vec<String> = self.registry.lock().ids().map(|announced| announced.id.clone()).collect();
        ids.extend(self.pool.remote_names().iter().map(ToString::to_string));
        ids
    }

    /// Adds a portal. Returns whether it is new, or `None` if there are too many.
    pub(super) fn announce(&self, id: &str, number: ConnectionNumber, address: IpAddr) -> Option<bool> {
        self.change(|registry| registry.announce(id, number, address, Instant::now()))
    }

    /// Removes a portal. Returns true if it was known.
    pub(super) fn leave(&self, id: &str) -> bool {
        self.change(|registry| registry.leave(id, Instant::now()))
    }

    pub(super) fn subscribe(&self, subscriber: &Subscriber) {
        self.change(|registry| registry.subscribe(subscriber.number, subscriber.address, Instant::now()));
    }

    /// Ends a subscription, and redispatches its unwritten events.
    pub(super) fn unsubscribe(&self, number: ConnectionNumber, unwritten: &[Arc<ClientEvent>]) {
        let removed = self.change(|registry| registry.unsubscribe(number, Instant::now()));
        if let Some(Subscription { consumer: Some(consumer), .. }) = removed {
            self.pool.remove_consumer(consumer);
            // The portal may reconnect after a network failure.
            self.pool.reserve_queue();
        }
        unwritten.iter().for_each(|event| self.pool.redispatch(event));
    }

    /// Removes a closed connection.
    pub(super) fn close(&self, number: ConnectionNumber) {
        self.change(|registry| registry.close(number, Instant::now()));
    }

    /// Binds returned subscriptions, and removes expired ids. Call it about once per second.
    pub(super) fn sweep(&self, now: Instant) {
        self.change(|registry| registry.sweep(now));
    }

    /// Records whether a subscriber's queue has space.
    pub(super) fn set_has_space(&self, number: ConnectionNumber, has_space: bool) {
        let consumer =
            self.registry.lock().subscriptions.iter().find(|one| one.number == number).and_then(|one| one.consumer);
        if let Some(consumer) = consumer {
            self.pool.set_consumer_capacity(consumer, has_space);
        }
    }

    /// Changes the registry. Then gives turns to all subscriptions that are bound to an id.
    fn change<T>(&self, change: impl FnOnce(&mut PortalRegistry) -> T) -> T {
        let mut added = false;
        let result = {
            let mut registry = self.registry.lock();
            let result = change(&mut registry);
            for one in &mut registry.subscriptions {
                match (one.ids.is_empty(), one.consumer) {
                    (false, None) => {
                        one.consumer = self.pool.add_consumer();
                        added |= one.consumer.is_some();
                    }
                    (true, Some(consumer)) => {
                        self.pool.remove_consumer(consumer);
                        one.consumer = None;
                    }
                    _ => {}
                }
            }
            // Under the lock, so that the pool and the watcher get changes in order.
            self.pool.set_observers(registry.subscriptions.len());
            self.announced.send_if_modified(|old| {
                let changed = !registry.ids().eq(old.iter());
                if changed {
                    *old = registry.ids().cloned().collect();
                }
                changed
            });
            result
        };
        if added {
            // Outside the lock: queued events come back through `EventForwarder::forward`, which takes it.
            self.pool.redistribute_orphans();
        }
        result
    }

    fn message(&self, event: &ClientEvent, id: &str) -> Bytes {
        subscriber_queue::message(&self.channel, &text(event, id))
    }
}

impl EventForwarder for OriginalPortals {
    fn forward(&self, event: &Arc<ClientEvent>, turn: Option<ConsumerId>, again: bool) {
        // Number and ids of the chosen subscription. Read before the list of subscribers, which may change meanwhile.
        let chosen = turn.and_then(|consumer| {
            let registry = self.registry.lock();
            let one = registry.subscriptions.iter().find(|one| one.consumer == Some(consumer))?;
            Some((one.number, one.ids.clone()))
        });
        let subscribers = self.channels.subscribers(&self.channel);
        let mut result = PushResult::Closed;
        match &chosen {
            Some((number, ids)) => {
                let subscriber = subscribers.iter().find(|one| one.number == *number);
                let common = if let [id] = &ids[..] { id.as_str() } else { NO_PORTAL };
                let message = self.message(event, common);
                if let Some(subscriber) = subscriber {
                    result = match &ids[..] {
                        [_] => subscriber.push(message.clone(), Some(event.clone())),
                        ids => {
                            let each = ids.iter().enumerate();
                            // The event is redispatched as a whole, so only one copy carries it.
                            let own = |at: usize| (at + 1 == ids.len()).then(|| event.clone());
                            each.map(|(at, id)| subscriber.push(self.message(event, id), own(at)))
                                .last()
                                .unwrap_or(PushResult::Closed)
                        }
                    };
                }
                if !again {
                    let others = subscribers.iter().filter(|one| one.number != *number);
                    others.for_each(|one| _ = one.push(message.clone(), None));
                }
                if result == PushResult::Crowded {
                    self.set_has_space(*number, false);
                }
            }
            None if !again => {
                let message = self.message(event, NO_PORTAL);
                subscribers.iter().for_each(|one| _ = one.push(message.clone(), None));
            }
            None => {}
        }
        if let (Some(consumer), PushResult::Closed) = (turn, result) {
            // The subscriber disconnected after it was chosen. Removing it first makes the redispatch terminate.
            self.pool.remove_consumer(consumer);
            self.pool.redispatch(event);
        }
    }
}

/// Encodes an event like servers of the original.
fn text(event: &ClientEvent, id: &str) -> Vec<u8> {
    let (name, message) = match &event.kind {
        ClientEventKind::Connection => (kind::CONNECTION, None),
        ClientEventKind::Authentication => (kind::AUTHENTICATION, None),
        ClientEventKind::Message { op, data, kind } => (kind::MESSAGE, Some((*op, data.as_deref(), kind.as_ref()))),
        ClientEventKind::Disconnection => (kind::DISCONNECTION, None),
    };
    portal::write(name, message, event.user.as_ref(), id)
}
