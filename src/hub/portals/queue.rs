//! Bounded, resumable event queue of one portal.
//!
//! Items are numbered when the portal takes them: 1, 2, 3 …, whatever was dropped or moved to other portals before. An
//! item is an event, or a gap marker for events that the portal missed. A portal that resumes after a number receives
//! all later items that are retained, and a gap marker for the others.

use std::{
    collections::VecDeque,
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{Bounds, event::ClientEvent};

/// Id of a queue, unique among this process and earlier ones.
#[derive(Clone, PartialEq, Eq)]
pub struct StreamId(Box<str>);

impl StreamId {
    fn random() -> Self {
        let mut bytes = [0_u8; 8];
        if getrandom::fill(&mut bytes).is_err() {
            // It has to be unique but not secret, so the time is a sufficient fallback.
            bytes = (std::time::UNIX_EPOCH.elapsed().map_or(1, |since| since.as_nanos() as u64)).to_be_bytes();
        }
        Self(format!("{:016x}", u64::from_be_bytes(bytes)).into())
    }

    /// Parses what [`StreamId::as_str`] returned.
    #[must_use]
    pub fn from_text(text: &str) -> Self {
        Self(text.into())
    }

    /// Returns the id: sixteen hexadecimal digits.
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

/// An item that was taken from a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TakenItem {
    /// Its number in this queue.
    pub number: u64,
    /// The item.
    pub item: Item,
}

/// An item of a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// An event.
    Event(Arc<ClientEvent>),
    /// Gap marker: events were dropped or are not retained any more. Their number, if it is known.
    Gap(Option<u64>),
}

impl Item {
    fn bytes(&self) -> usize {
        match self {
            Self::Event(event) => event.bytes(),
            Self::Gap(_) => 0,
        }
    }

    fn is_event(&self) -> bool {
        matches!(self, Self::Event(_))
    }
}

pub(super) struct PortalQueue {
    stream: StreamId,
    all: bool,
    state: Mutex<State>,
    /// Whether the portal was last reported as connected. Locked before `state`, during the report.
    pub(super) reported: Mutex<bool>,
    changed: Notify,
}

struct State {
    /// Items that are not taken yet.
    queued: VecDeque<Numbered>,
    /// Events in `queued`, and their bytes. Gap markers are not counted: each replaces at least one event.
    queued_events: usize,
    queued_bytes: usize,
    /// Items taken last, and retained for a resume.
    taken: VecDeque<Numbered>,
    taken_bytes: usize,
    /// Number of the item taken last.
    number: u64,
    /// Number of the last gap marker that is not retained. A portal that resumes before it has missed an unknown number
    /// of events.
    last_dropped_marker: u64,
    /// Id of the reader that connected last, which alone may take items.
    reader: u64,
    /// Whether that reader is connected.
    connected: bool,
    /// When that reader connected or disconnected, took an item, or an empty queue received one.
    idle_since: Instant,
}

/// An item and how many numbers it covers: several, if a gap marker replaces taken items.
struct Numbered {
    item: Item,
    numbers: u64,
}

impl Numbered {
    fn single(item: Item) -> Self {
        Self { item, numbers: 1 }
    }
}

impl PortalQueue {
    pub(super) fn new(all: bool) -> Arc<Self> {
        let state = State {
            queued: VecDeque::new(),
            queued_events: 0,
            queued_bytes: 0,
            taken: VecDeque::new(),
            taken_bytes: 0,
            number: 0,
            last_dropped_marker: 0,
            reader: 0,
            connected: false,
            idle_since: Instant::now(),
        };
        let (stream, state) = (StreamId::random(), Mutex::new(state));
        Arc::new(Self { stream, all, state, reported: Mutex::new(false), changed: Notify::new() })
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
        self.state.lock().connected
    }

    /// Reports whether an event of `bytes` fits without dropping another.
    pub(super) fn has_capacity(&self, bytes: usize, bounds: &Bounds) -> bool {
        let state = self.state.lock();
        state.queued_events < bounds.events && state.queued_bytes + bytes <= bounds.bytes
    }

    /// Connects a reader in place of the previous one, and returns its id.
    ///
    /// `acknowledged`: the number of the last item that the reader has received, if it resumes.
    pub(super) fn connect(&self, acknowledged: Option<u64>) -> u64 {
        let mut state = self.state.lock();
        state.reader += 1;
        state.connected = true;
        state.idle_since = Instant::now();
        if let Some(acknowledged) = acknowledged {
            state.rewind_to(acknowledged);
        }
        let reader = state.reader;
        drop(state);
        self.changed.notify_waiters();
        reader
    }

    /// Disconnects a reader; false if it was not the current one.
    pub(super) fn disconnect(&self, reader: u64, now: Instant) -> bool {
        let mut state = self.state.lock();
        let is_current = state.connected && state.reader == reader;
        if is_current {
            state.connected = false;
            state.idle_since = now;
        }
        is_current
    }

    /// Ends the reader if it has taken nothing of a non-empty queue for longer than `timeout`; false otherwise.
    ///
    /// One step, so that it never ends a reader that has just resumed the queue.
    pub(super) fn end_if_stalled(&self, now: Instant, timeout: Duration) -> bool {
        let mut state = self.state.lock();
        let idle = now.saturating_duration_since(state.idle_since);
        if !state.connected || state.queued.is_empty() || idle <= timeout {
            return false;
        }
        state.reader += 1;
        state.connected = false;
        state.idle_since = now;
        drop(state);
        self.changed.notify_waiters();
        true
    }

    /// Returns the number of queued events if the queue was not resumed within `timeout`.
    pub(super) fn events_if_expired(&self, now: Instant, timeout: Duration) -> Option<u64> {
        let state = self.state.lock();
        let expired = !state.connected && now.saturating_duration_since(state.idle_since) > timeout;
        expired.then_some(state.queued_events as u64)
    }

    /// Queues an event; returns the number of older events dropped for it.
    pub(super) fn push(&self, event: Arc<ClientEvent>, bounds: &Bounds) -> u64 {
        let dropped = {
            let mut state = self.state.lock();
            if state.queued.is_empty() && state.connected {
                state.idle_since = Instant::now();
            }
            state.push_back(Item::Event(event));
            state.drop_oldest(bounds)
        };
        self.changed.notify_waiters();
        dropped
    }

    /// Puts a gap marker without a number of events before all queued items.
    pub(super) fn push_unknown_gap(&self) {
        self.state.lock().push_front(Numbered::single(Item::Gap(None)));
        self.changed.notify_waiters();
    }

    /// Removes the oldest queued event for another portal, unless a reader is connected. Gap markers stay.
    pub(super) fn take_orphan(&self) -> Option<Arc<ClientEvent>> {
        let mut state = self.state.lock();
        if state.connected { None } else { state.remove_oldest_event() }
    }

    /// Returns the number of queued events.
    pub(super) fn queued_count(&self) -> u64 {
        self.state.lock().queued_events as u64
    }

    /// Returns the size of the oldest queued event, in bytes.
    pub(super) fn oldest_bytes(&self) -> Option<usize> {
        let state = self.state.lock();
        state.queued.iter().find(|queued| queued.item.is_event()).map(|queued| queued.item.bytes())
    }

    /// Takes the next item; `None` if none is queued, `Some(None)` if the reader was replaced or disconnected.
    pub(super) fn try_next(&self, reader: u64, bounds: &Bounds) -> Option<Option<TakenItem>> {
        let mut state = self.state.lock();
        if state.reader != reader || !state.connected {
            return Some(None);
        }
        let next = state.pop_front()?;
        let item = next.item.clone();
        state.idle_since = Instant::now();
        state.retain_taken(next, bounds);
        Some(Some(TakenItem { number: state.number, item }))
    }

    /// Waits for the next item and takes it; `None` if the reader was replaced or disconnected.
    pub(super) async fn next(&self, reader: u64, bounds: &Bounds) -> Option<TakenItem> {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            // Enabled before the queue is read, so that no notification in between is missed.
            changed.as_mut().enable();
            if let Some(next) = self.try_next(reader, bounds) {
                return next;
            }
            changed.await;
        }
    }
}

impl State {
    fn add_size(&mut self, item: &Item) {
        self.queued_events += usize::from(item.is_event());
        self.queued_bytes += item.bytes();
    }

    fn subtract_size(&mut self, item: &Item) {
        self.queued_events -= usize::from(item.is_event());
        self.queued_bytes -= item.bytes();
    }

    fn push_back(&mut self, item: Item) {
        self.add_size(&item);
        self.queued.push_back(Numbered::single(item));
    }

    fn push_front(&mut self, numbered: Numbered) {
        self.add_size(&numbered.item);
        self.queued.push_front(numbered);
    }

    fn pop_front(&mut self) -> Option<Numbered> {
        let numbered = self.queued.pop_front()?;
        self.subtract_size(&numbered.item);
        Some(numbered)
    }

    fn remove_oldest_event(&mut self) -> Option<Arc<ClientEvent>> {
        let at = self.queued.iter().position(|queued| queued.item.is_event())?;
        let item = self.queued.remove(at)?.item;
        self.subtract_size(&item);
        match item {
            Item::Event(event) => Some(event),
            Item::Gap(_) => None,
        }
    }

    /// Drops the oldest events until the queue is within its bounds; returns their number.
    ///
    /// One gap marker replaces them, and the gap markers among them.
    fn drop_oldest(&mut self, bounds: &Bounds) -> u64 {
        let (mut dropped, mut missed) = (0, Some(0));
        while self.queued_events > bounds.events || (self.queued_bytes > bounds.bytes && self.queued_events > 1) {
            let Some(oldest) = self.pop_front() else { break };
            let count = match oldest.item {
                Item::Event(_) => {
                    dropped += 1;
                    Some(1)
                }
                Item::Gap(count) => count,
            };
            missed = missed.zip(count).map(|(missed, count)| missed + count);
        }
        if dropped > 0 {
            self.push_front(Numbered::single(Item::Gap(missed)));
        }
        dropped
    }

    /// Assigns the next number, and retains the taken item as far as the bounds allow.
    fn retain_taken(&mut self, next: Numbered, bounds: &Bounds) {
        self.number += next.numbers;
        self.taken_bytes += next.item.bytes();
        self.taken.push_back(next);
        while self.taken.len() > bounds.retained || self.taken_bytes > bounds.bytes {
            let Some(oldest) = self.taken.pop_front() else { break };
            self.taken_bytes -= oldest.item.bytes();
            if !oldest.item.is_event() {
                self.last_dropped_marker = self.number - self.taken.iter().map(|taken| taken.numbers).sum::<u64>();
            }
        }
    }

    /// Queues again the items that were taken after `acknowledged`.
    ///
    /// One gap marker replaces those that are not retained, and covers all of their numbers.
    fn rewind_to(&mut self, acknowledged: u64) {
        while self.number > acknowledged {
            let Some(last) = self.taken.pop_back() else {
                let numbers = self.number - acknowledged;
                let count = (self.last_dropped_marker <= acknowledged).then_some(numbers);
                self.push_front(Numbered { item: Item::Gap(count), numbers });
                self.number = acknowledged;
                break;
            };
            self.taken_bytes -= last.item.bytes();
            self.number -= last.numbers;
            self.push_front(last);
        }
    }
}

impl fmt::Debug for PortalQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PortalQueue").field("stream", &self.stream).field("all", &self.all).finish_non_exhaustive()
    }
}
