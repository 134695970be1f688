//! The pool of portals: backends that are told what happens to clients.
//!
//! Every event goes to exactly one portal, in turn or at random, and to each that asked for all of them. The pool never
//! waits for a portal: what one has not taken yet stands in an inbox of bounded size.
//!
//! - `bounds`: bounds of queues and times
//! - `event`: an event that is kept until somebody takes it
//! - `queue`: what waits for one portal, and what it took last
//! - `scheduler`: whose turn it is
//! - `remote`: portals of other servers, and what is told to those that are here by others
//!
//! # Who is slow, and who dies
//!
//! - While an inbox is full, events go to portals that have room. Where none has, the oldest event of the inbox whose turn
//!   it is is dropped, and its portal told how many were. A portal is not cut for being slow: what it holds up is not more
//!   than its inbox, and a new connection would not make it faster.
//! - One that takes nothing at all for [`Bounds::patience`] is taken for dead. So is one whose connection ends. What it had
//!   not taken goes on to the others.
//! - One that comes back within [`Bounds::resume_for`] goes on where it was: what was written to its old connection and
//!   may have been lost on the way is repeated to it, as far as [`Bounds::kept`] reaches. Where no other portal is there,
//!   what happens meanwhile waits for it.

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

pub use self::bounds::{Bounds, SeatId};
use super::events::{ConnectionId, Event, Listener};
use crate::{
    cluster::portals::{PortalTarget, RemotePortals},
    metrics::Metrics,
};
pub use event::{ClientEvent, ClientEventKind, EventOrigin};
use queue::Inbox;
pub use queue::{Item, StreamId, Taken};
use scheduler::{Member, Reach, Turns};

/// What the name of a seat begins with.
const SEAT: &str = "seat-";

/// Whoever passes events on himself. Called on the task of the connection that an event is about: must not wait.
pub trait Watch: Send + Sync {
    /// An event, and the seat whose turn it is, if it is a seat's. `again`: it was that of another seat before, which is
    /// gone, so that who was told then is not to be told once more.
    fn told(&self, told: &Arc<ClientEvent>, turn: Option<SeatId>, again: bool);
}

/// The pool.
pub struct Portals {
    bounds: Bounds,
    metrics: Arc<Metrics>,
    /// Somebody may want to be told something.
    any: AtomicBool,
    turns: Mutex<Turns>,
    watch: RwLock<Option<Weak<dyn Watch>>>,
    /// How many are told about everything by `watch`.
    watching: AtomicUsize,
    /// Told who comes and goes.
    change: OnceLock<Change>,
    /// Portals of other servers, where there are any.
    far: OnceLock<Far>,
}

struct Far {
    portals: Arc<dyn RemotePortals>,
    /// What is told here has happened at this server.
    at: EventOrigin,
    /// Somebody there is to be told everything.
    listen: AtomicBool,
}

/// Told that the portal of this name has come (true) or gone.
pub type Change = Box<dyn Fn(&str, bool) + Send + Sync>;

impl Portals {
    /// An empty pool. `in_turn`: each portal after the other, rather than at random (`portal.distributeLoad`).
    #[must_use]
    pub fn new(in_turn: bool, bounds: Bounds, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self {
            bounds,
            metrics,
            any: AtomicBool::new(false),
            turns: Mutex::new(Turns::new(in_turn)),
            watch: RwLock::default(),
            watching: AtomicUsize::new(0),
            change: OnceLock::new(),
            far: OnceLock::new(),
        })
    }

    /// From here on `change` is told who comes and goes. The first one counts. Called without a lock.
    pub fn on_change(&self, change: Change) {
        _ = self.change.set(change);
    }

    fn comes(&self, portal: &str, in_turn: bool) {
        self.metrics.portals.inc();
        if let (true, Some(far)) = (in_turn, self.far.get()) {
            far.portals.add(portal);
        }
        self.change.get().inspect(|change| change(portal, true));
    }

    fn goes(&self, portal: &str, in_turn: bool) {
        self.metrics.portals.dec();
        if let (true, Some(far)) = (in_turn, self.far.get()) {
            far.portals.remove(portal);
        }
        self.change.get().inspect(|change| change(portal, false));
    }

    /// A portal comes. `all`: it is to be told about everything, and takes no turns.
    #[must_use]
    pub fn join(self: &Arc<Self>, all: bool) -> Option<Portal> {
        let inbox = Inbox::new(all);
        let (reader, _) = inbox.sit(None);
        {
            let mut turns = self.turns.lock();
            self.make_room(&mut turns)?;
            turns.members.push(Member::Inbox(inbox.clone()));
            self.look_whether_any(&turns);
        }
        self.comes(inbox.stream().as_str(), !all);
        if !all {
            self.pass_on_what_is_left();
        }
        Some(Portal { pool: self.clone(), reader, inbox })
    }

    /// The same for a portal that names a stream which is not known any more: a marker comes before all events.
    #[must_use]
    pub fn join_behind_unknown(self: &Arc<Self>, all: bool) -> Option<Portal> {
        let portal = self.join(all)?;
        portal.inbox.put_unknown_missed();
        Some(portal)
    }

    /// A portal comes back to its inbox, having had everything up to `number`. `None`: that inbox is not there any more.
    ///
    /// Whoever still reads from it reads no further.
    #[must_use]
    pub fn resume(self: &Arc<Self>, stream: &StreamId, number: u64) -> Option<Portal> {
        let inbox = {
            let turns = self.turns.lock();
            let mut inboxes = turns.inboxes();
            inboxes.find(|inbox| inbox.stream() == stream)?.clone()
        };
        let (reader, was_there) = inbox.sit(Some(number));
        if !was_there {
            self.comes(inbox.stream().as_str(), !inbox.is_for_all());
        }
        Some(Portal { pool: self.clone(), reader, inbox })
    }

    /// A portal that `watch` passes events on to takes turns from here on.
    #[must_use]
    pub fn seat(&self) -> Option<SeatId> {
        let seat = {
            let mut turns = self.turns.lock();
            self.make_room(&mut turns)?;
            self.any.store(true, Ordering::Release);
            turns.seat()
        };
        self.comes(&format!("{SEAT}{seat}"), true);
        Some(seat)
    }

    /// It takes turns no more.
    pub fn rise(&self, seat: SeatId) {
        let rose = {
            let mut turns = self.turns.lock();
            let rose = turns.rise(seat);
            self.look_whether_any(&turns);
            rose
        };
        if rose {
            self.goes(&format!("{SEAT}{seat}"), true);
        }
    }

    /// Says whether a seat has room for more; one that has none is passed over while others have some.
    pub fn seat_has_room(&self, seat: SeatId, room: bool) {
        self.turns.lock().set_room(seat, room);
    }

    /// Sets who passes events on to seats, for as long as he is there.
    pub fn set_watch(&self, watch: Weak<dyn Watch>) {
        *self.watch.write() = Some(watch);
    }

    /// How many of those that `watch` passes events on to want to be told about everything.
    pub fn set_watching(&self, watching: usize) {
        let turns = self.turns.lock();
        self.watching.store(watching, Ordering::Release);
        self.look_whether_any(&turns);
    }

    /// Portals that are there.
    #[must_use]
    pub fn count(&self) -> usize {
        self.turns.lock().members.iter().filter(|member| member.is_there()).count()
    }

    /// Takes out who is dead or does not come back, as of `now`. To be called every second or so.
    pub fn sweep(&self, now: Instant) {
        if !self.any.load(Ordering::Acquire) {
            return;
        }
        let stuck: Vec<Arc<Inbox>> = {
            let turns = self.turns.lock();
            turns.inboxes().filter(|inbox| inbox.is_stuck(now, self.bounds.patience)).cloned().collect()
        };
        for inbox in &stuck {
            if inbox.send_away(now) {
                self.goes(inbox.stream().as_str(), !inbox.is_for_all());
                tracing::warn!("a portal took nothing for {:?} and is taken out", self.bounds.patience);
            }
        }
        self.pass_on_what_is_left();
        let forgotten = {
            let mut turns = self.turns.lock();
            let forgotten = turns.forget(now, self.bounds.resume_for);
            self.look_whether_any(&turns);
            forgotten
        };
        self.metrics.portal_events_dropped.inc_by(forgotten);
    }

    /// Makes room for one more, at the cost of one that may not come back; `None` if all are there.
    fn make_room(&self, turns: &mut Turns) -> Option<()> {
        if turns.near() >= self.bounds.portals {
            let lost = turns.forget_one()?;
            self.metrics.portal_events_dropped.inc_by(lost);
        }
        Some(())
    }

    fn look_whether_any(&self, turns: &Turns) {
        let watching = self.watching.load(Ordering::Acquire) > 0;
        let mut any = !turns.members.is_empty() || watching;
        if let Some(far) = self.far.get() {
            far.portals.set_wants_all(watching || turns.inboxes().any(|inbox| inbox.is_for_all()));
            any |= far.listen.load(Ordering::Acquire);
        }
        self.any.store(any, Ordering::Release);
    }

    /// Offers an event that somebody was given and has not taken to another one.
    pub fn again(&self, told: &Arc<ClientEvent>) {
        self.metrics.portal_events_passed_on.inc();
        self.offer(told, true, Reach::RatherHere);
    }

    /// The same, for no other than those who are here.
    fn again_here(&self, told: &Arc<ClientEvent>) {
        self.metrics.portal_events_passed_on.inc();
        self.offer(told, true, Reach::Here);
    }

    fn offer(&self, told: &Arc<ClientEvent>, again: bool, reach: Reach) {
        let far = self.far.get();
        let (mut seat, mut inbox_of, mut there) = (None, None, None);
        let dropped = {
            let mut turns = self.turns.lock();
            let mut dropped = 0;
            if !again {
                dropped += self.put_for_all(&turns, told);
            }
            match turns.choose(told.bytes(), &self.bounds, reach) {
                Some(Member::Seat { id, .. }) => seat = Some(*id),
                Some(Member::Inbox(inbox)) => {
                    dropped += inbox.put(told.clone(), &self.bounds);
                    inbox_of = far.is_some().then(|| inbox.stream().clone());
                }
                Some(Member::Far(portal)) => there = Some(portal.clone()),
                None => dropped += u64::from(again),
            }
            dropped
        };
        self.metrics.portal_events_dropped.inc_by(dropped);
        if let Some(far) = far {
            if let Some(portal) = &there {
                far.portals.publish(told, PortalTarget::Remote(portal), again);
            } else if !again && far.listen.load(Ordering::Acquire) {
                let seat = seat.map(|seat| format!("{SEAT}{seat}"));
                let here = seat.as_deref().or(inbox_of.as_ref().map(StreamId::as_str));
                far.portals.publish(told, here.map_or(PortalTarget::Unassigned, PortalTarget::Local), false);
            }
        }
        if seat.is_some() || !again {
            self.tell_watch(told, seat, again);
        }
    }

    /// Those who are told everything have it from here on; returns how many old events had to go for it.
    fn put_for_all(&self, turns: &Turns, told: &Arc<ClientEvent>) -> u64 {
        turns.inboxes().filter(|inbox| inbox.is_for_all()).map(|inbox| inbox.put(told.clone(), &self.bounds)).sum()
    }

    fn tell_watch(&self, told: &Arc<ClientEvent>, seat: Option<SeatId>, again: bool) {
        if seat.is_some() || self.watching.load(Ordering::Acquire) > 0 {
            let watch = self.watch.read().as_ref().and_then(Weak::upgrade);
            if let Some(watch) = watch {
                watch.told(told, seat, again);
            }
        }
    }

    /// What happens while nobody is there to be told waits for whoever comes within [`Bounds::resume_for`].
    pub fn keep_a_place(&self) {
        let mut turns = self.turns.lock();
        if !turns.somebody_takes_turns() && turns.near() < self.bounds.portals {
            turns.members.push(Member::Inbox(Inbox::new(false)));
            self.any.store(true, Ordering::Release);
        }
    }

    /// What waits for portals that are away goes on to those that are there, as much as they have room for. The rest
    /// waits for the next sweep.
    pub fn pass_on_what_is_left(&self) {
        loop {
            let told = {
                let turns = self.turns.lock();
                let away = turns.inboxes().filter(|inbox| !inbox.has_reader() && !inbox.is_for_all());
                let left = away.filter_map(|inbox| Some((inbox.oldest_bytes()?, inbox)));
                let mut fits = left.filter(|(bytes, _)| turns.somebody_has_room(*bytes, &self.bounds));
                fits.find_map(|(_, inbox)| inbox.give_up_oldest())
            };
            match told {
                Some(told) => self.again(&told),
                None => return,
            }
        }
    }
}

impl Listener for Portals {
    fn event(&self, connection: ConnectionId, event: Event<'_>) {
        if self.any.load(Ordering::Acquire) {
            self.metrics.portal_events.inc();
            let at = self.far.get().map_or(EventOrigin::Local, |far| far.at.clone());
            self.offer(&Arc::new(event::told(connection, at, event)), false, Reach::Anywhere);
        }
    }
}

impl fmt::Debug for Portals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Portals").field("count", &self.count()).finish_non_exhaustive()
    }
}

/// A portal that reads from its inbox. Dropping it takes it out of the pool; its inbox stays for a while.
#[derive(Debug)]
pub struct Portal {
    pool: Arc<Portals>,
    inbox: Arc<Inbox>,
    reader: u64,
}

impl Portal {
    /// What names the inbox to [`Portals::resume`].
    #[must_use]
    pub fn stream(&self) -> &StreamId {
        self.inbox.stream()
    }

    /// The number of the event that it took last, or has said to have had; 0 before the first.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.inbox.number()
    }

    /// The next event or marker; `None` when another reader has come for this inbox, or the pool has taken the portal out. Nothing
    /// is lost where the future is dropped.
    pub async fn next(&mut self) -> Option<Taken> {
        self.inbox.next(self.reader, &self.pool.bounds).await
    }

    /// The next event or marker, if one waits.
    #[must_use]
    pub fn try_next(&mut self) -> Option<Taken> {
        self.inbox.try_next(self.reader, &self.pool.bounds).flatten()
    }
}

impl Drop for Portal {
    fn drop(&mut self) {
        if self.inbox.stand_up(self.reader, Instant::now()) {
            self.pool.goes(self.inbox.stream().as_str(), !self.inbox.is_for_all());
            self.pool.pass_on_what_is_left();
        }
    }
}
