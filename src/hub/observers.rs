//! Observers of client events: each gets a copy of every event of this server, and takes none from the portals.
//!
//! For people who watch, and so without a resume: while no observer is connected, nothing is copied or kept.

use std::{
    collections::VecDeque,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;

use super::{
    events::{ConnectionId, Event},
    portals::{ClientEvent, EventOrigin, copy_event},
};

/// Observers at a time; one more is rejected.
const OBSERVERS_MAX: usize = 64;

/// Events queued for one observer; one more drops the oldest, which is counted.
const EVENTS_MAX: usize = 4096;

/// Bytes of those events, with the same consequence. The newest event is never dropped.
const BYTES_MAX: usize = 1 << 20;

/// All observers. Without any, an event costs one atomic load.
#[derive(Default)]
pub(super) struct Observers {
    any: AtomicBool,
    rings: RwLock<Vec<Arc<Ring>>>,
}

impl Observers {
    /// Adds an observer; `None` at the limit.
    pub(super) fn add(self: &Arc<Self>) -> Option<Observer> {
        let ring = Arc::new(Ring::default());
        let mut rings = self.rings.write();
        if rings.len() >= OBSERVERS_MAX {
            return None;
        }
        rings.push(ring.clone());
        self.any.store(true, Ordering::Release);
        drop(rings);
        Some(Observer { observers: self.clone(), ring })
    }

    /// Queues a copy of an event for every observer.
    pub(super) fn notify(&self, connection: ConnectionId, origin: impl FnOnce() -> EventOrigin, event: Event<'_>) {
        if self.any.load(Ordering::Acquire) {
            let event = Arc::new(copy_event(connection, origin(), event));
            self.rings.read().iter().for_each(|ring| ring.push(&event));
        }
    }

    fn remove(&self, ring: &Arc<Ring>) {
        let mut rings = self.rings.write();
        rings.retain(|other| !Arc::ptr_eq(other, ring));
        self.any.store(!rings.is_empty(), Ordering::Release);
    }
}

impl fmt::Debug for Observers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Observers").field("count", &self.rings.read().len()).finish_non_exhaustive()
    }
}

/// An item that an observer receives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Observed {
    /// An event.
    Event(Arc<ClientEvent>),
    /// So many events were dropped here, because the observer was too slow.
    Dropped(u64),
}

/// An observer of client events. Dropping it ends the observation.
pub struct Observer {
    observers: Arc<Observers>,
    ring: Arc<Ring>,
}

impl Observer {
    /// Waits for the next item. Cancel safe: dropping the future loses no event.
    pub async fn next(&mut self) -> Observed {
        loop {
            let mut pushed = std::pin::pin!(self.ring.pushed.notified());
            // Enabled before the ring is read, so that no notification in between is missed.
            pushed.as_mut().enable();
            if let Some(item) = self.ring.take() {
                return item;
            }
            pushed.await;
        }
    }

    /// Returns the next item, if there is one.
    #[must_use]
    pub fn try_next(&mut self) -> Option<Observed> {
        self.ring.take()
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.observers.remove(&self.ring);
    }
}

impl fmt::Debug for Observer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Observer").finish_non_exhaustive()
    }
}

/// Queue of one observer.
#[derive(Default)]
struct Ring {
    state: Mutex<RingState>,
    pushed: Notify,
}

#[derive(Default)]
struct RingState {
    events: VecDeque<Arc<ClientEvent>>,
    bytes: usize,
    /// Events dropped before the first one in `events`.
    dropped: u64,
}

impl Ring {
    fn push(&self, event: &Arc<ClientEvent>) {
        let mut state = self.state.lock();
        state.bytes += event.bytes();
        state.events.push_back(event.clone());
        while state.events.len() > EVENTS_MAX || (state.bytes > BYTES_MAX && state.events.len() > 1) {
            let Some(oldest) = state.events.pop_front() else { break };
            state.bytes -= oldest.bytes();
            state.dropped += 1;
        }
        drop(state);
        self.pushed.notify_waiters();
    }

    fn take(&self) -> Option<Observed> {
        let mut state = self.state.lock();
        if state.dropped > 0 {
            return Some(Observed::Dropped(std::mem::take(&mut state.dropped)));
        }
        let event = state.events.pop_front()?;
        state.bytes -= event.bytes();
        Some(Observed::Event(event))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        hub::{InboundMessage, portals::ClientEventKind},
        message::UserId,
    };

    fn send(observers: &Observers, connection: ConnectionId, data: &str) {
        let (user, message) = (UserId::new("alice").unwrap(), InboundMessage::new(0, Some(data), None));
        observers.notify(connection, || EventOrigin::Local, Event::Message { user: Some(&user), message });
    }

    /// Takes all items; returns the numbers of the events' connections, and of dropped events.
    fn drain(observer: &mut Observer) -> (Vec<ConnectionId>, Vec<u64>) {
        let (mut events, mut dropped) = (Vec::new(), Vec::new());
        while let Some(item) = observer.try_next() {
            match item {
                Observed::Event(event) => events.push(event.connection),
                Observed::Dropped(count) => {
                    assert!(events.is_empty(), "dropped events are reported before the later ones");
                    dropped.push(count);
                }
            }
        }
        (events, dropped)
    }

    #[test]
    fn every_observer_gets_each_event_and_nothing_is_copied_without_one() {
        let observers = Arc::new(Observers::default());
        let unobserved = || -> EventOrigin { panic!("an event is copied, but there is no observer") };
        observers.notify(1, unobserved, Event::Connection);
        let (mut one, mut two) = (observers.add().unwrap(), observers.add().unwrap());
        send(&observers, 2, "1");
        observers.notify(2, || EventOrigin::Local, Event::Disconnection { user: None, code: 1000, reason: "" });
        assert_eq!((drain(&mut one), drain(&mut two)), ((vec![2, 2], vec![]), (vec![2, 2], vec![])));
        drop(one);
        send(&observers, 3, "1");
        assert!(
            matches!(two.try_next(), Some(Observed::Event(event)) if matches!(event.kind, ClientEventKind::Message { .. }))
        );
        drop(two);
        observers.notify(4, unobserved, Event::Connection);
    }

    #[test]
    fn slow_observer_drops_its_oldest_events_at_both_bounds_and_counts_them() {
        let observers = Arc::new(Observers::default());
        let (mut slow, mut fast) = (observers.add().unwrap(), observers.add().unwrap());
        let over = 10;
        for connection in 0..EVENTS_MAX as u64 + over {
            send(&observers, connection, "1");
            assert_eq!(drain(&mut fast).0, [connection], "a slow observer has no effect on another");
        }
        let (events, dropped) = drain(&mut slow);
        assert_eq!((events.len(), events[0], dropped), (EVENTS_MAX, over, vec![over]));
        let half = format!("\"{}\"", "x".repeat(BYTES_MAX / 2));
        (0..3).for_each(|connection| send(&observers, connection, &half));
        assert_eq!(drain(&mut slow), (vec![2], vec![2]));
        let large = format!("\"{}\"", "x".repeat(2 * BYTES_MAX));
        (0..2).for_each(|connection| send(&observers, connection, &large));
        assert_eq!(drain(&mut slow), (vec![1], vec![1]), "the newest is never dropped");
        assert_eq!(slow.ring.state.lock().bytes, 0);
    }

    #[test]
    fn number_of_observers_is_bounded() {
        let observers = Arc::new(Observers::default());
        let mut all: Vec<_> = (0..OBSERVERS_MAX).map(|_| observers.add().unwrap()).collect();
        assert!(observers.add().is_none());
        all.pop();
        assert!(observers.add().is_some());
    }
}
