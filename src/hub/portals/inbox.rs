//! What waits for one portal, and what it took last.
//!
//! Events get their numbers when they are taken: 1, 2, 3 … without a hole, whatever was dropped or went to others before.
//! So a portal that comes back and names the last number it has had is given what follows, as long as that is kept.

use std::{
    collections::VecDeque,
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{Bounds, told::Told};

/// Names an inbox: unlike any other, of this process and of those before it.
#[derive(Clone, PartialEq, Eq)]
pub struct StreamId(Box<str>);

impl StreamId {
    fn random() -> Self {
        let mut bytes = [0_u8; 8];
        if getrandom::fill(&mut bytes).is_err() {
            // It has to be unlike others, and need not be secret: the time will do.
            bytes = (std::time::UNIX_EPOCH.elapsed().map_or(1, |since| since.as_nanos() as u64)).to_be_bytes();
        }
        Self(format!("{:016x}", u64::from_be_bytes(bytes)).into())
    }

    /// Takes back what [`StreamId::as_str`] gave.
    #[must_use]
    pub fn from_text(text: &str) -> Self {
        Self(text.into())
    }

    /// Sixteen hexadecimal digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An event, taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Its number in this inbox.
    pub number: u64,
    /// Events that this portal should have had before it and cannot have any more: dropped because it was too slow, or
    /// asked for too late.
    pub missed: u64,
    /// What has happened.
    pub told: Arc<Told>,
}

pub(super) struct Inbox {
    stream: StreamId,
    all: bool,
    state: Mutex<State>,
    changed: Notify,
}

struct State {
    /// Not taken yet.
    waiting: VecDeque<Arc<Told>>,
    waiting_bytes: usize,
    /// Taken last; the last of it has the number `number`.
    taken: VecDeque<Arc<Told>>,
    taken_bytes: usize,
    number: u64,
    /// To be told with the next one.
    missed: u64,
    /// Who may read: the last who sat down.
    reader: u64,
    /// He is there.
    there: bool,
    /// Since when he has taken nothing of what waits; since when he is away.
    since: Instant,
}

impl Inbox {
    pub(super) fn new(all: bool) -> Arc<Self> {
        let state = State {
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            taken: VecDeque::new(),
            taken_bytes: 0,
            number: 0,
            missed: 0,
            reader: 0,
            there: false,
            since: Instant::now(),
        };
        Arc::new(Self { stream: StreamId::random(), all, state: Mutex::new(state), changed: Notify::new() })
    }

    pub(super) fn stream(&self) -> &StreamId {
        &self.stream
    }

    pub(super) fn number(&self) -> u64 {
        self.state.lock().number
    }

    pub(super) fn is_for_all(&self) -> bool {
        self.all
    }

    pub(super) fn has_reader(&self) -> bool {
        self.state.lock().there
    }

    /// Whether so many bytes more need nothing to go for them.
    pub(super) fn has_room(&self, bytes: usize, bounds: &Bounds) -> bool {
        let state = self.state.lock();
        state.waiting.len() < bounds.events && state.waiting_bytes + bytes <= bounds.bytes
    }

    /// A reader sits down, and who was there before reads no further. He has had everything up to a number, if he says so.
    /// Also whether somebody was there.
    pub(super) fn sit(&self, had: Option<u64>) -> (u64, bool) {
        let mut state = self.state.lock();
        state.reader += 1;
        let was_there = std::mem::replace(&mut state.there, true);
        state.since = Instant::now();
        if let Some(had) = had {
            state.go_back_to(had);
        }
        let reader = state.reader;
        drop(state);
        self.changed.notify_waiters();
        (reader, was_there)
    }

    /// A reader goes; false if he was not the one who may read.
    pub(super) fn stand_up(&self, reader: u64, now: Instant) -> bool {
        let mut state = self.state.lock();
        let was = state.there && state.reader == reader;
        if was {
            state.there = false;
            state.since = now;
        }
        was
    }

    /// Ends whoever reads; false if nobody does.
    pub(super) fn send_away(&self, now: Instant) -> bool {
        let mut state = self.state.lock();
        let was = state.there;
        state.reader += 1;
        state.there = false;
        state.since = now;
        drop(state);
        self.changed.notify_waiters();
        was
    }

    /// Whether its reader has taken nothing of what waits for so long.
    pub(super) fn is_stuck(&self, now: Instant, patience: Duration) -> bool {
        let state = self.state.lock();
        state.there && !state.waiting.is_empty() && now.saturating_duration_since(state.since) > patience
    }

    /// Whether nobody has come back for so long; then how many events are lost with it.
    pub(super) fn is_abandoned(&self, now: Instant, after: Duration) -> Option<u64> {
        let state = self.state.lock();
        let abandoned = !state.there && now.saturating_duration_since(state.since) > after;
        abandoned.then_some(state.waiting.len() as u64)
    }

    /// Puts in an event; returns how many old ones had to go for it.
    pub(super) fn put(&self, told: Arc<Told>, bounds: &Bounds) -> u64 {
        let mut dropped = 0;
        {
            let mut state = self.state.lock();
            if state.waiting.is_empty() && state.there {
                state.since = Instant::now();
            }
            state.waiting_bytes += told.bytes();
            state.waiting.push_back(told);
            while state.waiting.len() > bounds.events || (state.waiting_bytes > bounds.bytes && state.waiting.len() > 1)
            {
                _ = state.pop_waiting();
                dropped += 1;
            }
            state.missed += dropped;
        }
        self.changed.notify_waiters();
        dropped
    }

    /// The oldest that waits is given up, unless its reader is back: somebody else will have it.
    pub(super) fn give_up_oldest(&self) -> Option<Arc<Told>> {
        let mut state = self.state.lock();
        if state.there { None } else { state.pop_waiting() }
    }

    /// Events that wait.
    pub(super) fn waiting(&self) -> u64 {
        self.state.lock().waiting.len() as u64
    }

    /// Bytes of the oldest that waits.
    pub(super) fn oldest_bytes(&self) -> Option<usize> {
        self.state.lock().waiting.front().map(|told| told.bytes())
    }

    /// The next event for a reader; `None` where there is none yet, `Some(None)` where he may not read any more.
    pub(super) fn try_next(&self, reader: u64, bounds: &Bounds) -> Option<Option<Taken>> {
        let mut state = self.state.lock();
        if state.reader != reader || !state.there {
            return Some(None);
        }
        let told = state.pop_waiting()?;
        state.since = Instant::now();
        state.number += 1;
        state.taken_bytes += told.bytes();
        state.taken.push_back(told.clone());
        while state.taken.len() > bounds.kept || state.taken_bytes > bounds.bytes {
            let Some(oldest) = state.taken.pop_front() else { break };
            state.taken_bytes -= oldest.bytes();
        }
        let missed = std::mem::take(&mut state.missed);
        Some(Some(Taken { number: state.number, missed, told }))
    }

    pub(super) async fn next(&self, reader: u64, bounds: &Bounds) -> Option<Taken> {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            // Before looking, so that what happens between looking and waiting is not missed.
            changed.as_mut().enable();
            if let Some(next) = self.try_next(reader, bounds) {
                return next;
            }
            changed.await;
        }
    }
}

impl State {
    fn pop_waiting(&mut self) -> Option<Arc<Told>> {
        let told = self.waiting.pop_front()?;
        self.waiting_bytes -= told.bytes();
        Some(told)
    }

    /// What was taken after `had` waits again.
    fn go_back_to(&mut self, had: u64) {
        while self.number > had {
            // What is not kept any more is missed, and has had its number all the same.
            let Some(told) = self.taken.pop_back() else {
                self.missed += self.number - had;
                break;
            };
            self.taken_bytes -= told.bytes();
            self.waiting_bytes += told.bytes();
            self.waiting.push_front(told);
            self.number -= 1;
        }
    }
}

impl fmt::Debug for Inbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbox").field("stream", &self.stream).field("all", &self.all).finish_non_exhaustive()
    }
}
