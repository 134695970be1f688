//! Tracks the activity of each HTTP connection, and evicts one when no permit is left for a new connection.
//!
//! Eviction closes a connection that waits for its peer, and never a WebSocket. The order is:
//!
//! 1. connections that only discard a rejected body
//! 2. connections on which a request has not arrived completely
//! 3. connections without a valid API key that are idle, or do not read their response
//! 4. idle connections with a valid API key
//!
//! A connection with a valid API key is never evicted while a request is being answered.

use std::{
    collections::BTreeMap,
    future::poll_fn,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Instant,
};

use futures_util::task::AtomicWaker;
use parking_lot::Mutex;

/// Eviction rank of a connection without a valid API key that has sent a complete request.
const RANK_WITHOUT_KEY: u8 = 2;

/// Eviction rank of an idle connection with a valid API key: the last.
const RANK_KEYED: u8 = 3;

/// Activity of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Phase {
    /// The peer has sent nothing yet.
    New,
    /// The head of a request has begun to arrive.
    Head,
    /// A request is being answered.
    Busy,
    /// The whole response has been passed to hyper. The connection becomes idle once all of it is written.
    Answered,
    /// The connection is kept alive, and no byte of the next request has arrived.
    Idle,
    /// The response is sent, and further bytes from the peer are discarded.
    Lingering,
}

impl Phase {
    const ALL: [Self; 6] = [Self::New, Self::Head, Self::Busy, Self::Answered, Self::Idle, Self::Lingering];
}

/// State that the task, the response and the evictor of one connection share.
#[derive(Debug)]
pub(super) struct Activity {
    phase: AtomicU8,
    /// When the connection became idle, in milliseconds since the process started.
    idle_since: AtomicU64,
    /// Whether a request on this connection had a valid API key.
    keyed: AtomicBool,
    /// Whether the peer does not read its response.
    stalled: AtomicBool,
    /// Whether the connection is evicted.
    evicted: AtomicBool,
    /// Whether the server stops.
    stopping: AtomicBool,
    waker: AtomicWaker,
}

impl Activity {
    fn new() -> Self {
        Self {
            phase: AtomicU8::new(Phase::New as u8),
            idle_since: AtomicU64::new(0),
            keyed: AtomicBool::new(false),
            stalled: AtomicBool::new(false),
            evicted: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            waker: AtomicWaker::new(),
        }
    }

    pub(super) fn phase(&self) -> Phase {
        Phase::ALL[usize::from(self.phase.load(Ordering::Acquire))]
    }

    pub(super) fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Release);
    }

    pub(super) fn become_idle(&self, now: Instant) {
        self.idle_since.store(millis(now), Ordering::Relaxed);
        self.enter(Phase::Idle);
    }

    /// Records that a request had a valid API key.
    pub(super) fn set_keyed(&self) {
        if !self.keyed.load(Ordering::Relaxed) {
            self.keyed.store(true, Ordering::Relaxed);
        }
    }

    pub(super) fn set_stalled(&self, stalled: bool) {
        self.stalled.store(stalled, Ordering::Release);
    }

    /// Marks that the server stops, so that lingering connections end sooner.
    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.waker.wake();
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Reports whether the connection is evicted; if not, the task is woken when it is.
    pub(super) fn poll_evicted(&self, cx: &mut Context<'_>) -> bool {
        if self.evicted.load(Ordering::Acquire) {
            return true;
        }
        self.waker.register(cx.waker());
        self.evicted.load(Ordering::Acquire)
    }

    /// Resolves when the connection is evicted.
    pub(super) async fn evicted(&self) {
        poll_fn(|cx| if self.poll_evicted(cx) { Poll::Ready(()) } else { Poll::Pending }).await;
    }

    fn evict(&self) {
        self.evicted.store(true, Ordering::Release);
        self.waker.wake();
    }

    /// Returns the position in the order of eviction, the lowest first; `None`: never evicted.
    fn rank(&self) -> Option<(u8, u64)> {
        if self.evicted.load(Ordering::Acquire) {
            return None;
        }
        let keyed = self.keyed.load(Ordering::Relaxed);
        match self.phase() {
            Phase::Lingering => Some((0, 0)),
            Phase::New | Phase::Head => Some((1, 0)),
            Phase::Idle => {
                let rank = if keyed { RANK_KEYED } else { RANK_WITHOUT_KEY };
                Some((rank, self.idle_since.load(Ordering::Relaxed)))
            }
            Phase::Busy | Phase::Answered => {
                (self.stalled.load(Ordering::Acquire) && !keyed).then_some((RANK_WITHOUT_KEY, 0))
            }
        }
    }
}

fn millis(now: Instant) -> u64 {
    static BEGIN: LazyLock<Instant> = LazyLock::new(Instant::now);
    now.saturating_duration_since(*BEGIN).as_millis() as u64
}

/// HTTP connections of a listener, in the order of their arrival. `WebSockets` are not among them.
#[derive(Debug, Default)]
pub(super) struct Activities(Mutex<OpenConnections>);

#[derive(Debug, Default)]
struct OpenConnections {
    /// Connections that arrived while few permits were left sort first, so that earlier ones stay connected.
    connections: BTreeMap<(bool, u64), Arc<Activity>>,
    next: u64,
}

/// Registration of a connection, until it ends or becomes a WebSocket.
pub(super) struct Entry {
    all: Arc<Activities>,
    key: (bool, u64),
    pub(super) activity: Arc<Activity>,
}

impl Activities {
    /// Registers a connection. `crowded`: few permits were left when it arrived, so it is evicted before earlier ones.
    pub(super) fn enter(self: &Arc<Self>, crowded: bool) -> Entry {
        let activity = Arc::new(Activity::new());
        let mut open = self.0.lock();
        open.next += 1;
        let key = (!crowded, open.next);
        open.connections.insert(key, activity.clone());
        Entry { all: self.clone(), key, activity }
    }

    /// Evicts one connection; false if there is none to evict.
    pub(super) fn evict(&self) -> bool {
        self.evict_below(u8::MAX)
    }

    /// Evicts one connection without a valid API key.
    ///
    /// Used when the process has no free descriptor. One eviction may not suffice, and repeated ones must not close the
    /// connections of all backends.
    pub(super) fn evict_without_key(&self) -> bool {
        self.evict_below(RANK_KEYED)
    }

    fn evict_below(&self, rank_limit: u8) -> bool {
        let open = self.0.lock();
        let mut first: Option<((u8, u64), &Arc<Activity>)> = None;
        for activity in open.connections.values() {
            let Some(rank) = activity.rank().filter(|rank| rank.0 < rank_limit) else { continue };
            if first.is_none_or(|(lowest, _)| rank < lowest) {
                first = Some((rank, activity));
            }
            // Only lingering connections rank lower, and there are few.
            if rank.0 <= 1 {
                break;
            }
        }
        first.inspect(|(_, activity)| activity.evict()).is_some()
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.all.0.lock().connections.remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn eviction_closes_the_connection_of_the_lowest_rank() {
        let all = Arc::new(Activities::default());
        assert!(!all.evict());
        let began = Instant::now();
        let [early, busy, stalled, idle, keyed, late] =
            [false, false, false, false, false, true].map(|crowded| all.enter(crowded));
        busy.activity.enter(Phase::Busy);
        stalled.activity.enter(Phase::Answered);
        stalled.activity.set_stalled(true);
        idle.activity.become_idle(began + Duration::from_secs(2));
        keyed.activity.become_idle(began + Duration::from_secs(1));
        keyed.activity.set_keyed();
        let evicted = |entry: &Entry| entry.activity.evicted.load(Ordering::Acquire);
        for (rank, next) in [&late, &early, &stalled, &idle, &keyed].into_iter().enumerate() {
            assert!(!evicted(next), "rank {rank}");
            assert_eq!(all.evict_without_key(), rank < 4, "rank {rank}");
            assert!((rank < 4 || all.evict()) && evicted(next), "rank {rank}");
        }
        assert!(!all.evict() && !evicted(&busy));
        drop((early, busy, stalled, idle, keyed, late));
        assert!(all.0.lock().connections.is_empty());
    }
}
