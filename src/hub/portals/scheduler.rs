//! Chooses the portal that receives an event.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Bounds, queue::PortalQueue};

/// Id of a consumer without a queue: an [`EventForwarder`](super::EventForwarder) delivers its events.
pub type ConsumerId = u64;

/// A consumer of events: chosen for single events, or receiving all.
#[derive(Debug)]
pub(super) enum Consumer {
    Queue(Arc<PortalQueue>),
    /// Without a queue: the forwarder delivers its events.
    Forwarded {
        id: ConsumerId,
        has_capacity: bool,
    },
    /// At another server.
    Remote(Arc<str>),
}

/// How suitable a consumer is for an event; the least value is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Readiness {
    /// Connected, with capacity.
    Ready,
    /// At another server, while consumers here are preferred.
    Remote,
    /// Connected, but an older event has to be dropped for this one.
    Full,
    /// Disconnected; the portal may resume.
    Disconnected,
}

/// Which consumers may receive an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// All consumers, without preference.
    Anywhere,
    /// Other servers only if no consumer here has capacity.
    PreferLocal,
    /// Consumers here only: the event came from another server.
    LocalOnly,
}

/// Consumers of events, and the state of choosing among them.
#[derive(Debug)]
pub(super) struct Scheduler {
    pub(super) consumers: Vec<Consumer>,
    round_robin: bool,
    /// Index of the consumer chosen last.
    last: usize,
    /// Id of the consumer without a queue that was added last.
    last_id: ConsumerId,
    random_state: u64,
}

impl Consumer {
    pub(super) fn is_connected(&self) -> bool {
        match self {
            Self::Queue(queue) => queue.has_reader(),
            Self::Forwarded { .. } => true,
            Self::Remote(_) => false,
        }
    }

    pub(super) fn is_remote(&self) -> bool {
        matches!(self, Self::Remote(_))
    }

    /// Returns the readiness for an event of `bytes`; `None` if the consumer is never chosen.
    fn readiness(&self, bytes: usize, bounds: &Bounds, scope: Scope) -> Option<Readiness> {
        match self {
            Self::Remote(_) => match scope {
                Scope::Anywhere => Some(Readiness::Ready),
                Scope::PreferLocal => Some(Readiness::Remote),
                Scope::LocalOnly => None,
            },
            Self::Queue(queue) if queue.is_for_all() => None,
            Self::Queue(queue) if !queue.has_reader() => Some(Readiness::Disconnected),
            Self::Queue(queue) => {
                Some(if queue.has_capacity(bytes, bounds) { Readiness::Ready } else { Readiness::Full })
            }
            Self::Forwarded { has_capacity, .. } => {
                Some(if *has_capacity { Readiness::Ready } else { Readiness::Full })
            }
        }
    }
}

impl Scheduler {
    pub(super) fn new(round_robin: bool) -> Self {
        // The seed need not be secret.
        let seed = std::time::UNIX_EPOCH.elapsed().map_or(1, |since| since.as_nanos() as u64);
        Self { consumers: Vec::new(), round_robin, last: 0, last_id: 0, random_state: seed }
    }

    pub(super) fn queues(&self) -> impl Iterator<Item = &Arc<PortalQueue>> {
        self.consumers.iter().filter_map(|consumer| match consumer {
            Consumer::Queue(queue) => Some(queue),
            Consumer::Forwarded { .. } | Consumer::Remote(_) => None,
        })
    }

    /// Returns the number of consumers here, connected or not.
    pub(super) fn local_count(&self) -> usize {
        self.consumers.iter().filter(|consumer| !consumer.is_remote()).count()
    }

    pub(super) fn remote(&self) -> impl Iterator<Item = &Arc<str>> {
        self.consumers.iter().filter_map(|consumer| match consumer {
            Consumer::Remote(portal) => Some(portal),
            _ => None,
        })
    }

    /// Sets the consumers at other servers.
    pub(super) fn set_remote(&mut self, portals: &[Arc<str>]) {
        self.consumers.retain(|consumer| !matches!(consumer, Consumer::Remote(portal) if !portals.contains(portal)));
        for portal in portals {
            if !self.remote().any(|known| known == portal) {
                self.consumers.push(Consumer::Remote(portal.clone()));
            }
        }
    }

    pub(super) fn has_forwarded(&self, wanted: ConsumerId) -> bool {
        self.consumers.iter().any(|consumer| matches!(consumer, Consumer::Forwarded { id, .. } if *id == wanted))
    }

    pub(super) fn add_consumer(&mut self) -> ConsumerId {
        self.last_id += 1;
        self.consumers.push(Consumer::Forwarded { id: self.last_id, has_capacity: true });
        self.last_id
    }

    /// Removes a consumer without a queue; false if there was none of this id.
    pub(super) fn remove_consumer(&mut self, removed: ConsumerId) -> bool {
        let before = self.consumers.len();
        self.consumers.retain(|consumer| !matches!(consumer, Consumer::Forwarded { id, .. } if *id == removed));
        self.consumers.len() < before
    }

    /// Sets whether a consumer without a queue has capacity.
    pub(super) fn set_capacity(&mut self, changed: ConsumerId, capacity: bool) {
        for consumer in &mut self.consumers {
            if let Consumer::Forwarded { id, has_capacity } = consumer
                && *id == changed
            {
                *has_capacity = capacity;
            }
        }
    }

    /// Reports whether any consumer can be chosen for an event, connected or not.
    pub(super) fn any_choosable(&self) -> bool {
        self.consumers.iter().any(|consumer| !matches!(consumer, Consumer::Queue(queue) if queue.is_for_all()))
    }

    /// Reports whether any consumer is connected and has capacity for an event of `bytes`.
    pub(super) fn any_ready(&self, bytes: usize, bounds: &Bounds) -> bool {
        self.consumers
            .iter()
            .any(|consumer| consumer.readiness(bytes, bounds, Scope::Anywhere) == Some(Readiness::Ready))
    }

    /// Removes queues that were not resumed within `timeout`; returns the number of events lost with them.
    pub(super) fn remove_expired(&mut self, now: Instant, timeout: Duration) -> u64 {
        let mut lost = 0;
        self.consumers.retain(|consumer| match consumer {
            Consumer::Queue(queue) => match queue.events_if_expired(now, timeout) {
                Some(queued) => {
                    lost += queued;
                    false
                }
                None => true,
            },
            Consumer::Forwarded { .. } | Consumer::Remote(_) => true,
        });
        lost
    }

    /// Removes the first disconnected queue; returns the number of events lost with it, `None` if there is none.
    pub(super) fn remove_one_disconnected(&mut self) -> Option<u64> {
        let is_disconnected = |consumer: &Consumer| matches!(consumer, Consumer::Queue(queue) if !queue.has_reader());
        let at = self.consumers.iter().position(is_disconnected)?;
        match self.consumers.remove(at) {
            Consumer::Queue(queue) => Some(queue.queued_count()),
            Consumer::Forwarded { .. } | Consumer::Remote(_) => None,
        }
    }

    /// Chooses a consumer for an event of `bytes`, among those of the best readiness.
    pub(super) fn choose(&mut self, bytes: usize, bounds: &Bounds, scope: Scope) -> Option<&Consumer> {
        let best = self.consumers.iter().filter_map(|consumer| consumer.readiness(bytes, bounds, scope)).min()?;
        let is_best = |consumer: &Consumer| consumer.readiness(bytes, bounds, scope) == Some(best);
        let at = if self.round_robin {
            let next = self.consumers.iter().skip(self.last + 1).position(is_best).map(|at| self.last + 1 + at);
            next.or_else(|| self.consumers.iter().position(is_best))?
        } else {
            let count = self.consumers.iter().filter(|consumer| is_best(consumer)).count();
            let skipped = self.random_below(count);
            let mut best = self.consumers.iter().enumerate().filter(|(_, consumer)| is_best(consumer));
            best.nth(skipped)?.0
        };
        self.last = at;
        Some(&self.consumers[at])
    }

    /// Returns a pseudorandom number below `count`, or 0.
    fn random_below(&mut self, count: usize) -> usize {
        self.random_state = self.random_state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.random_state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) as usize % count.max(1)
    }
}
