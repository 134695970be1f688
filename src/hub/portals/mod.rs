//! Pool of portals: backends that receive client events.
//!
//! Each event goes to exactly one portal, round robin or at random, and to every portal that requested all events. The
//! pool never waits for a portal: events are in the portal's bounded queue until it takes them.
//!
//! - `bounds`: bounds of queues and times
//! - `event`: owned copy of a client event
//! - `queue`: queued events of one portal, and taken ones retained for a resume
//! - `scheduler`: chooses the portal for an event
//! - `remote`: portals at other servers, and their events for portals here
//!
//! # Slow and dead portals
//!
//! - While a queue is full, events go to portals with capacity. If all are full, the chosen queue drops its oldest events,
//!   and its portal receives a gap marker with their number. A slow portal is not disconnected: it delays at most the
//!   events in its queue, and a new connection would not make it faster.
//! - A portal that takes no event for [`Bounds::stall_timeout`] is disconnected. The queued events of a disconnected portal
//!   go to the other portals.
//! - A portal that reconnects within [`Bounds::resume_timeout`] resumes its queue. Events that may have been lost with the
//!   old connection are repeated, up to [`Bounds::retained`]. Without other portals its queue collects new events
//!   meanwhile.

mod bounds;
mod event;
mod queue;
mod remote;
mod scheduler;
#[cfg(test)]
mod tests;

use std::{
    fmt,
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Instant,
};

use parking_lot::{Mutex, RwLock};

pub use self::{bounds::Bounds, scheduler::ConsumerId};
use super::events::{ConnectionId, Event, Listener};
use crate::{
    cluster::portals::{PortalTarget, RemotePortals},
    metrics::Metrics,
};
pub(super) use event::copy as copy_event;
pub use event::{ClientEvent, ClientEventKind, EventOrigin};
use queue::PortalQueue;
pub use queue::{Item, StreamId, TakenItem};
use scheduler::{Consumer, Scheduler, Scope};

/// Prefix of the name of a consumer without a queue, unlike the name of any queue.
const FORWARDED_PREFIX: &str = "forwarded-";

/// Forwards events to consumers without a queue.
///
/// Called on the task of the connection that caused the event, so it must not wait.
pub trait EventForwarder: Send + Sync {
    /// Forwards an event, to `consumer` if it was chosen.
    ///
    /// `redispatched`: the consumer chosen before has disconnected, and observers of all events have the event already.
    fn forward(&self, event: &Arc<ClientEvent>, consumer: Option<ConsumerId>, redispatched: bool);
}

/// The pool of portals.
pub struct Portals {
    bounds: Bounds,
    metrics: Arc<Metrics>,
    /// Whether any portal or observer may receive events.
    active: AtomicBool,
    scheduler: Mutex<Scheduler>,
    forwarder: RwLock<Option<Weak<dyn EventForwarder>>>,
    /// Number of observers that `forwarder` sends every event.
    observers: AtomicUsize,
    /// Called when a portal joins or leaves.
    change_listener: OnceLock<ChangeListener>,
    /// Portals at other servers; unset without a cluster.
    remote: OnceLock<RemotePool>,
    /// Called when a resume has found the queue, and before it connects to it.
    #[cfg(test)]
    resume_hook: OnceLock<fn(&Portals)>,
}

/// Portals at other servers.
struct RemotePool {
    portals: Arc<dyn RemotePortals>,
    /// This server, as the origin of its clients' events.
    origin: EventOrigin,
    /// Whether an observer at another server receives every event.
    observed: AtomicBool,
}

/// Listener that is called with a portal's name: with true when it joins, with false when it leaves.
pub type ChangeListener = Box<dyn Fn(&str, bool) + Send + Sync>;

impl Portals {
    /// Creates an empty pool: round robin if `round_robin`, else at random (`portal.distributeLoad`).
    #[must_use]
    pub fn new(round_robin: bool, bounds: Bounds, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self {
            bounds,
            metrics,
            active: AtomicBool::new(false),
            scheduler: Mutex::new(Scheduler::new(round_robin)),
            forwarder: RwLock::default(),
            observers: AtomicUsize::new(0),
            change_listener: OnceLock::new(),
            remote: OnceLock::new(),
            #[cfg(test)]
            resume_hook: OnceLock::new(),
        })
    }

    /// Sets the listener for joining and leaving portals, called without a lock. Only the first call has an effect.
    pub fn on_change(&self, listener: ChangeListener) {
        _ = self.change_listener.set(listener);
    }

    /// Reports that the portal of a queue has joined or left, if that has changed since the last report.
    ///
    /// The state is read under the lock of the report. So of a disconnect and a resume at the same time, the later one
    /// is reported last, and the other servers keep a connected portal.
    fn report_change(&self, queue: &PortalQueue) {
        let mut reported = queue.reported.lock();
        let connected = queue.has_reader();
        if std::mem::replace(&mut *reported, connected) == connected {
            return;
        }
        let (portal, choosable) = (queue.stream().as_str(), !queue.is_for_all());
        if connected {
            self.report_join(portal, choosable);
        } else {
            self.report_leave(portal, choosable);
        }
    }

    /// Counts a new portal, and reports it to the other servers if they may choose it (`choosable`).
    fn report_join(&self, portal: &str, choosable: bool) {
        self.metrics.portals.inc();
        if let (true, Some(remote_pool)) = (choosable, self.remote.get()) {
            remote_pool.portals.add(portal);
        }
        self.change_listener.get().inspect(|listener| listener(portal, true));
    }

    fn report_leave(&self, portal: &str, choosable: bool) {
        self.metrics.portals.dec();
        if let (true, Some(remote_pool)) = (choosable, self.remote.get()) {
            remote_pool.portals.remove(portal);
        }
        self.change_listener.get().inspect(|listener| listener(portal, false));
    }

    /// Adds a portal with a queue; `None` at the limit of portals.
    ///
    /// `all`: it receives every event, and is never chosen for one.
    #[must_use]
    pub fn join(self: &Arc<Self>, all: bool) -> Option<Portal> {
        let queue = PortalQueue::new(all);
        let reader = queue.connect(None);
        {
            let mut scheduler = self.scheduler.lock();
            self.ensure_capacity(&mut scheduler)?;
            scheduler.consumers.push(Consumer::Queue(queue.clone()));
            self.refresh_active(&scheduler);
        }
        self.report_change(&queue);
        if !all {
            self.redistribute_orphans();
        }
        Some(Portal { pool: self.clone(), reader, queue })
    }

    /// Adds a portal that tried to resume an unknown stream. A gap marker precedes its events.
    #[must_use]
    pub fn join_with_gap(self: &Arc<Self>, all: bool) -> Option<Portal> {
        let portal = self.join(all)?;
        portal.queue.push_unknown_gap();
        Some(portal)
    }

    /// Resumes a portal's queue after item `number`; `None` if the queue does not exist any more.
    ///
    /// The previous reader of the queue receives no more items.
    #[must_use]
    pub fn resume(self: &Arc<Self>, stream: &StreamId, number: u64) -> Option<Portal> {
        let (queue, reader) = {
            let scheduler = self.scheduler.lock();
            let queue = scheduler.queues().find(|queue| queue.stream() == stream)?.clone();
            #[cfg(test)]
            self.resume_hook.get().inspect(|hook| hook(self));
            // Under the lock: a disconnected queue may be removed at any time, and a reader of it would receive nothing.
            let reader = queue.connect(Some(number));
            (queue, reader)
        };
        self.report_change(&queue);
        Some(Portal { pool: self.clone(), reader, queue })
    }

    /// Adds a consumer without a queue; `None` at the limit of portals.
    #[must_use]
    pub fn add_consumer(&self) -> Option<ConsumerId> {
        let consumer = {
            let mut scheduler = self.scheduler.lock();
            self.ensure_capacity(&mut scheduler)?;
            self.active.store(true, Ordering::Release);
            scheduler.add_consumer()
        };
        self.report_join(&format!("{FORWARDED_PREFIX}{consumer}"), true);
        Some(consumer)
    }

    /// Removes a consumer without a queue.
    pub fn remove_consumer(&self, consumer: ConsumerId) {
        let removed = {
            let mut scheduler = self.scheduler.lock();
            let removed = scheduler.remove_consumer(consumer);
            self.refresh_active(&scheduler);
            removed
        };
        if removed {
            self.report_leave(&format!("{FORWARDED_PREFIX}{consumer}"), true);
        }
    }

    /// Sets whether a consumer has capacity. A consumer without capacity is skipped while others have some.
    pub fn set_consumer_capacity(&self, consumer: ConsumerId, has_capacity: bool) {
        self.scheduler.lock().set_capacity(consumer, has_capacity);
    }

    /// Sets the forwarder for consumers without a queue.
    pub fn set_forwarder(&self, forwarder: Weak<dyn EventForwarder>) {
        *self.forwarder.write() = Some(forwarder);
    }

    /// Sets the number of observers that the forwarder sends every event.
    pub fn set_observers(&self, observers: usize) {
        let scheduler = self.scheduler.lock();
        self.observers.store(observers, Ordering::Release);
        self.refresh_active(&scheduler);
    }

    /// Returns this server, as the origin of its clients' events.
    pub(super) fn origin(&self) -> EventOrigin {
        self.remote.get().map_or(EventOrigin::Local, |remote_pool| remote_pool.origin.clone())
    }

    /// Returns the number of connected portals.
    #[must_use]
    pub fn count(&self) -> usize {
        self.scheduler.lock().consumers.iter().filter(|consumer| consumer.is_connected()).count()
    }

    /// Disconnects stalled portals, and removes queues that were not resumed in time. Called about once per second.
    pub fn expire(&self, now: Instant) {
        if !self.active.load(Ordering::Acquire) {
            return;
        }
        let stalled: Vec<Arc<PortalQueue>> = {
            let scheduler = self.scheduler.lock();
            scheduler.queues().filter(|queue| queue.end_if_stalled(now, self.bounds.stall_timeout)).cloned().collect()
        };
        for queue in &stalled {
            self.report_change(queue);
            tracing::warn!(
                "a portal took none of its queued events for {:?} and is disconnected; it can resume its queue",
                self.bounds.stall_timeout
            );
        }
        self.redistribute_orphans();
        let lost = {
            let mut scheduler = self.scheduler.lock();
            let lost = scheduler.remove_expired(now, self.bounds.resume_timeout);
            self.refresh_active(&scheduler);
            lost
        };
        self.metrics.portal_events_dropped.inc_by(lost);
    }

    /// Ensures capacity for one more portal by removing a disconnected one; `None` if all are connected.
    fn ensure_capacity(&self, scheduler: &mut Scheduler) -> Option<()> {
        if scheduler.local_count() >= self.bounds.portals {
            let lost = scheduler.remove_one_disconnected()?;
            self.metrics.portal_events_dropped.inc_by(lost);
        }
        Some(())
    }

    /// Updates `active` after a change of portals or observers.
    fn refresh_active(&self, scheduler: &Scheduler) {
        let observed = self.observers.load(Ordering::Acquire) > 0;
        let mut active = !scheduler.consumers.is_empty() || observed;
        if let Some(remote_pool) = self.remote.get() {
            remote_pool.portals.set_wants_all(observed || scheduler.queues().any(|queue| queue.is_for_all()));
            active |= remote_pool.observed.load(Ordering::Acquire);
        }
        self.active.store(active, Ordering::Release);
    }

    /// Dispatches an event that its portal did not take to another portal.
    pub fn redispatch(&self, event: &Arc<ClientEvent>) {
        self.metrics.portal_events_forwarded.inc();
        self.dispatch(event, true, Scope::PreferLocal);
    }

    /// Dispatches an event that its portal did not take to another portal of this server.
    fn redispatch_locally(&self, event: &Arc<ClientEvent>) {
        self.metrics.portal_events_forwarded.inc();
        self.dispatch(event, true, Scope::LocalOnly);
    }

    /// Delivers an event to a chosen portal, and to receivers of all events unless it is `redispatched`.
    fn dispatch(&self, event: &Arc<ClientEvent>, redispatched: bool, scope: Scope) {
        let remote_pool = self.remote.get();
        let (mut consumer, mut queue_id, mut remote) = (None, None, None);
        let dropped = {
            let mut scheduler = self.scheduler.lock();
            let mut dropped = 0;
            if !redispatched {
                dropped += self.queue_for_all(&scheduler, event);
            }
            match scheduler.choose(event.bytes(), &self.bounds, scope) {
                Some(Consumer::Forwarded { id, .. }) => consumer = Some(*id),
                Some(Consumer::Queue(queue)) => {
                    dropped += queue.push(event.clone(), &self.bounds);
                    queue_id = remote_pool.is_some().then(|| queue.stream().clone());
                }
                Some(Consumer::Remote(portal)) => remote = Some(portal.clone()),
                None => dropped += u64::from(redispatched),
            }
            dropped
        };
        self.metrics.portal_events_dropped.inc_by(dropped);
        if let Some(remote_pool) = remote_pool {
            if let Some(portal) = &remote {
                remote_pool.portals.publish(event, PortalTarget::Remote(portal), redispatched);
            } else if !redispatched && remote_pool.observed.load(Ordering::Acquire) {
                let forwarded = consumer.map(|consumer| format!("{FORWARDED_PREFIX}{consumer}"));
                let local = forwarded.as_deref().or(queue_id.as_ref().map(StreamId::as_str));
                remote_pool.portals.publish(event, local.map_or(PortalTarget::Unassigned, PortalTarget::Local), false);
            }
        }
        if consumer.is_some() || !redispatched {
            self.forward(event, consumer, redispatched);
        }
    }

    /// Queues an event for every portal that receives all events; returns the number of dropped events.
    fn queue_for_all(&self, scheduler: &Scheduler, event: &Arc<ClientEvent>) -> u64 {
        scheduler.queues().filter(|queue| queue.is_for_all()).map(|queue| queue.push(event.clone(), &self.bounds)).sum()
    }

    /// Passes an event to the forwarder if a consumer was chosen or there are observers.
    fn forward(&self, event: &Arc<ClientEvent>, consumer: Option<ConsumerId>, redispatched: bool) {
        if consumer.is_some() || self.observers.load(Ordering::Acquire) > 0 {
            let forwarder = self.forwarder.read().as_ref().and_then(Weak::upgrade);
            if let Some(forwarder) = forwarder {
                forwarder.forward(event, consumer, redispatched);
            }
        }
    }

    /// Reserves a queue for the next portal, so that events are queued while no portal is connected.
    ///
    /// A portal that joins within [`Bounds::resume_timeout`] receives them.
    pub fn reserve_queue(&self) {
        let mut scheduler = self.scheduler.lock();
        if !scheduler.any_choosable() && scheduler.local_count() < self.bounds.portals {
            scheduler.consumers.push(Consumer::Queue(PortalQueue::new(false)));
            self.active.store(true, Ordering::Release);
        }
    }

    /// Moves events of disconnected portals to connected ones, as far as these have capacity.
    ///
    /// The next [`Portals::expire`] moves more.
    pub fn redistribute_orphans(&self) {
        loop {
            let event = {
                let scheduler = self.scheduler.lock();
                let orphaned = scheduler.queues().filter(|queue| !queue.has_reader() && !queue.is_for_all());
                let oldest = orphaned.filter_map(|queue| Some((queue.oldest_bytes()?, queue)));
                let mut movable = oldest.filter(|(bytes, _)| scheduler.any_ready(*bytes, &self.bounds));
                movable.find_map(|(_, queue)| queue.take_orphan())
            };
            match event {
                Some(event) => self.redispatch(&event),
                None => return,
            }
        }
    }
}

impl Listener for Portals {
    fn event(&self, connection: ConnectionId, event: Event<'_>) {
        if self.active.load(Ordering::Acquire) {
            self.metrics.portal_events.inc();
            self.dispatch(&Arc::new(copy_event(connection, self.origin(), event)), false, Scope::Anywhere);
        }
    }
}

impl fmt::Debug for Portals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Portals").field("count", &self.count()).finish_non_exhaustive()
    }
}

/// A reader of a portal's queue. Dropping it disconnects the portal, which may resume for [`Bounds::resume_timeout`].
#[derive(Debug)]
pub struct Portal {
    pool: Arc<Portals>,
    queue: Arc<PortalQueue>,
    reader: u64,
}

impl Portal {
    /// Returns the id with which [`Portals::resume`] finds the queue.
    #[must_use]
    pub fn stream(&self) -> &StreamId {
        self.queue.stream()
    }

    /// Returns the number of the item taken last, or acknowledged at resume; 0 before the first.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.queue.number()
    }

    /// Waits for the next event or gap marker. Cancel safe: dropping the future loses no event.
    ///
    /// `None`: another reader has resumed the queue, or the portal was disconnected.
    pub async fn next(&mut self) -> Option<TakenItem> {
        self.queue.next(self.reader, &self.pool.bounds).await
    }

    /// Returns the next event or gap marker, if one is queued.
    #[must_use]
    pub fn try_next(&mut self) -> Option<TakenItem> {
        self.queue.try_next(self.reader, &self.pool.bounds).flatten()
    }
}

impl Drop for Portal {
    fn drop(&mut self) {
        if self.queue.disconnect(self.reader, Instant::now()) {
            self.pool.report_change(&self.queue);
            self.pool.redistribute_orphans();
        }
    }
}
