//! What waits for one portal, and what it took last.
//!
//! Events get their numbers when they are taken: 1, 2, 3 … whatever was dropped or went to others before. A marker that
//! events are missing is one of them, with a number of its own. So a portal that comes back and names the last number it
//! has had is given what follows, markers too, as long as that is kept.

use std::{
    collections::VecDeque,
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{Bounds, event::ClientEvent};

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

/// An event or a marker, taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Its number in this inbox.
    pub number: u64,
    /// What was taken.
    pub what: Item,
}

/// One of the things that a portal is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// An event.
    Event(Arc<ClientEvent>),
    /// Events that this portal should have had here and cannot have any more: dropped because it was too slow, or asked
    /// for too late. How many, if that is known.
    Missed(Option<u64>),
}

impl Item {
    fn bytes(&self) -> usize {
        match self {
            Self::Event(told) => told.bytes(),
            Self::Missed(_) => 0,
        }
    }

    fn is_event(&self) -> bool {
        matches!(self, Self::Event(_))
    }
}

pub(super) struct Inbox {
    stream: StreamId,
    all: bool,
    state: Mutex<State>,
    changed: Notify,
}

struct State {
    /// Not taken yet.
    waiting: VecDeque<Numbered>,
    /// Of those: events, and their bytes. Markers are not counted: each stands in place of at least one event.
    waiting_events: usize,
    waiting_bytes: usize,
    /// Taken last; the last of it has the number `number`.
    taken: VecDeque<Numbered>,
    taken_bytes: usize,
    number: u64,
    /// The number of the last marker that is not kept in `taken` any more. A portal that resumes before it cannot be told
    /// how many events are missing.
    uncounted: u64,
    /// Who may read: the last who sat down.
    reader: u64,
    /// He is there.
    there: bool,
    /// Since when he has taken nothing of what waits; since when he is away.
    since: Instant,
}

/// An item, and how many numbers it takes: its own, and those of what was taken before and is not kept any more.
struct Numbered {
    item: Item,
    numbers: u64,
}

impl Numbered {
    fn one(item: Item) -> Self {
        Self { item, numbers: 1 }
    }
}

impl Inbox {
    pub(super) fn new(all: bool) -> Arc<Self> {
        let state = State {
            waiting: VecDeque::new(),
            waiting_events: 0,
            waiting_bytes: 0,
            taken: VecDeque::new(),
            taken_bytes: 0,
            number: 0,
            uncounted: 0,
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
        state.waiting_events < bounds.events && state.waiting_bytes + bytes <= bounds.bytes
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
        abandoned.then_some(state.waiting_events as u64)
    }

    /// Puts in an event; returns how many old ones had to go for it.
    pub(super) fn put(&self, told: Arc<ClientEvent>, bounds: &Bounds) -> u64 {
        let dropped = {
            let mut state = self.state.lock();
            if state.waiting.is_empty() && state.there {
                state.since = Instant::now();
            }
            state.push_back(Item::Event(told));
            state.drop_oldest(bounds)
        };
        self.changed.notify_waiters();
        dropped
    }

    /// Puts a marker before all that waits: events are missing, and their number is not known.
    pub(super) fn put_unknown_missed(&self) {
        self.state.lock().push_front(Numbered::one(Item::Missed(None)));
        self.changed.notify_waiters();
    }

    /// The oldest event that waits is given up, unless its reader is back: another portal gets it. Markers stay.
    pub(super) fn give_up_oldest(&self) -> Option<Arc<ClientEvent>> {
        let mut state = self.state.lock();
        if state.there { None } else { state.remove_oldest_event() }
    }

    /// Events that wait.
    pub(super) fn waiting(&self) -> u64 {
        self.state.lock().waiting_events as u64
    }

    /// Bytes of the oldest event that waits.
    pub(super) fn oldest_bytes(&self) -> Option<usize> {
        let state = self.state.lock();
        state.waiting.iter().find(|one| one.item.is_event()).map(|one| one.item.bytes())
    }

    /// The next event or marker for a reader; `None` where there is none yet, `Some(None)` where he may not read any more.
    pub(super) fn try_next(&self, reader: u64, bounds: &Bounds) -> Option<Option<Taken>> {
        let mut state = self.state.lock();
        if state.reader != reader || !state.there {
            return Some(None);
        }
        let next = state.pop_front()?;
        let what = next.item.clone();
        state.since = Instant::now();
        state.keep_taken(next, bounds);
        Some(Some(Taken { number: state.number, what }))
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
    fn count(&mut self, one: &Numbered) {
        self.waiting_events += usize::from(one.item.is_event());
        self.waiting_bytes += one.item.bytes();
    }

    fn discount(&mut self, one: &Numbered) {
        self.waiting_events -= usize::from(one.item.is_event());
        self.waiting_bytes -= one.item.bytes();
    }

    fn push_back(&mut self, item: Item) {
        let one = Numbered::one(item);
        self.count(&one);
        self.waiting.push_back(one);
    }

    fn push_front(&mut self, one: Numbered) {
        self.count(&one);
        self.waiting.push_front(one);
    }

    fn pop_front(&mut self) -> Option<Numbered> {
        let one = self.waiting.pop_front()?;
        self.discount(&one);
        Some(one)
    }

    fn remove_oldest_event(&mut self) -> Option<Arc<ClientEvent>> {
        let at = self.waiting.iter().position(|one| one.item.is_event())?;
        let one = self.waiting.remove(at)?;
        self.discount(&one);
        match one.item {
            Item::Event(told) => Some(told),
            Item::Missed(_) => None,
        }
    }

    /// Drops old events until the others are within the bounds, and puts a marker in their place. Markers on the way are
    /// added to it. Returns how many events were dropped.
    fn drop_oldest(&mut self, bounds: &Bounds) -> u64 {
        let (mut dropped, mut missed) = (0, Some(0));
        while self.waiting_events > bounds.events || (self.waiting_bytes > bounds.bytes && self.waiting_events > 1) {
            let Some(oldest) = self.pop_front() else { break };
            let count = match oldest.item {
                Item::Event(_) => {
                    dropped += 1;
                    Some(1)
                }
                Item::Missed(count) => count,
            };
            missed = missed.zip(count).map(|(missed, count)| missed + count);
        }
        if dropped > 0 {
            self.push_front(Numbered::one(Item::Missed(missed)));
        }
        dropped
    }

    /// Gives the next number, and keeps what was taken as far as the bounds allow.
    fn keep_taken(&mut self, next: Numbered, bounds: &Bounds) {
        self.number += next.numbers;
        self.taken_bytes += next.item.bytes();
        self.taken.push_back(next);
        while self.taken.len() > bounds.kept || self.taken_bytes > bounds.bytes {
            let Some(oldest) = self.taken.pop_front() else { break };
            self.taken_bytes -= oldest.item.bytes();
            if !oldest.item.is_event() {
                self.uncounted = self.number - self.taken.iter().map(|one| one.numbers).sum::<u64>();
            }
        }
    }

    /// What was taken after `had` waits again. In place of what is not kept any more comes a marker, which takes all of
    /// its numbers.
    fn go_back_to(&mut self, had: u64) {
        while self.number > had {
            let Some(last) = self.taken.pop_back() else {
                let numbers = self.number - had;
                let count = (self.uncounted <= had).then_some(numbers);
                self.push_front(Numbered { item: Item::Missed(count), numbers });
                self.number = had;
                break;
            };
            self.taken_bytes -= last.item.bytes();
            self.number -= last.numbers;
            self.push_front(last);
        }
    }
}

impl fmt::Debug for Inbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbox").field("stream", &self.stream).field("all", &self.all).finish_non_exhaustive()
    }
}
