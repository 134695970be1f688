//! Portals at other servers, and their events for portals here.

use std::sync::{
    Arc, Weak,
    atomic::{AtomicBool, Ordering},
};

use super::{ClientEvent, ConsumerId, EventOrigin, FORWARDED_PREFIX, Portals, RemotePool};
use crate::cluster::{Cluster, portals::LocalPortals};

impl Portals {
    /// Connects the pool to the pools of other servers. Called once, before the first portal joins.
    pub fn join_cluster(self: &Arc<Self>, cluster: &dyn Cluster) {
        let local: Arc<dyn LocalPortals> = self.clone();
        let portals = cluster.join_portals(Arc::downgrade(&local) as Weak<dyn LocalPortals>);
        let origin = EventOrigin::Server(portals.server());
        _ = self.remote.set(RemotePool { portals, origin, observed: AtomicBool::new(false) });
    }

    /// Returns the names of portals at other servers that can be chosen for events.
    #[must_use]
    pub fn remote_names(&self) -> Vec<Arc<str>> {
        self.scheduler.lock().remote().cloned().collect()
    }

    /// Delivers an event to a portal at this server; false if the portal has disconnected.
    ///
    /// Delivery to a forwarded consumer also reaches observers of all events, unless the event was redispatched.
    fn deliver_local(&self, event: &Arc<ClientEvent>, portal: &str, redispatched: bool) -> bool {
        if let Some(consumer) = portal.strip_prefix(FORWARDED_PREFIX).and_then(|id| id.parse::<ConsumerId>().ok()) {
            let found = self.scheduler.lock().has_forwarded(consumer);
            if found {
                self.forward(event, Some(consumer), redispatched);
            }
            return found;
        }
        let scheduler = self.scheduler.lock();
        let Some(queue) = scheduler.queues().find(|queue| queue.stream().as_str() == portal && queue.has_reader())
        else {
            return false;
        };
        let dropped = queue.push(event.clone(), &self.bounds);
        self.metrics.portal_events_dropped.inc_by(dropped);
        true
    }
}

impl LocalPortals for Portals {
    fn set_remote(&self, portals: &[Arc<str>], observed: bool) {
        {
            let mut scheduler = self.scheduler.lock();
            scheduler.set_remote(portals);
            if let Some(remote_pool) = self.remote.get() {
                remote_pool.observed.store(observed, Ordering::Release);
            }
            self.refresh_active(&scheduler);
        }
        self.redistribute_orphans();
    }

    fn deliver(&self, event: Arc<ClientEvent>, portal: Option<&str>, redispatched: bool) {
        if !redispatched {
            let dropped = self.queue_for_all(&self.scheduler.lock(), &event);
            self.metrics.portal_events_dropped.inc_by(dropped);
        }
        let delivered = portal.is_none_or(|portal| self.deliver_local(&event, portal, redispatched));
        let forwarded = delivered && portal.is_some_and(|portal| portal.starts_with(FORWARDED_PREFIX));
        if !(redispatched || forwarded) {
            self.forward(&event, None, false);
        }
        match (delivered, redispatched) {
            (true, _) => {}
            (false, false) => self.redispatch(&event),
            // Servers with outdated lists of each other's portals must not redispatch an event between them for ever.
            (false, true) => self.redispatch_locally(&event),
        }
    }
}
