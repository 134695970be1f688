//! Stock portals: the pool of them, and what they are told.
//!
//! All of them subscribe to one channel, and read all that is said there. A portal takes what stands under its own id, or
//! everything where it was made to report all events. So each event is said to all of them once, under the id of the one
//! whose turn it is, as Redis and stock would.

use std::{net::IpAddr, sync::Arc, time::Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::{
    channels::Channels,
    portal_registry::{Announced, Number, Roll, Subscribed},
    subscriber_queue::{self, Put, Subscriber},
};
use crate::{
    compat::portal_event::{self, kind},
    hub::portals::{self, ClientEvent, ClientEventKind, ConsumerId, EventForwarder},
};

/// An id that is no portal's.
const NOBODY: &str = "";

#[derive(Debug)]
pub(super) struct StockPortals {
    pool: Arc<portals::Portals>,
    /// The channel they subscribe to.
    channel: Bytes,
    channels: Arc<Channels>,
    roll: Mutex<Roll>,
    /// The ids, whenever they have changed.
    announced: watch::Sender<Vec<Announced>>,
}

impl StockPortals {
    pub(super) fn new(
        pool: Arc<portals::Portals>,
        channel: String,
        channels: Arc<Channels>,
        remembered: Vec<Announced>,
    ) -> Arc<Self> {
        if !remembered.is_empty() {
            // They come back in a moment.
            pool.reserve_queue();
        }
        let announced = watch::Sender::new(remembered.clone());
        let roll = Mutex::new(Roll::remembered(remembered, Instant::now()));
        let portals = Arc::new(Self { pool, channel: channel.into(), channels, roll, announced });
        let watch: Arc<dyn EventForwarder> = portals.clone();
        portals.pool.set_forwarder(Arc::downgrade(&watch));
        portals
    }

    /// What has to be remembered over a restart.
    pub(super) fn announced(&self) -> watch::Receiver<Vec<Announced>> {
        self.announced.subscribe()
    }

    pub(super) fn is_channel(&self, channel: &[u8]) -> bool {
        self.channel == channel
    }

    /// The ids in the pool: those that were announced here, and those at other servers.
    pub(super) fn ids(&self) -> Vec<String> {
        let mut ids: Vec<String> = self.roll.lock().ids().map(|announced| announced.id.clone()).collect();
        ids.extend(self.pool.remote_names().iter().map(ToString::to_string));
        ids
    }

    /// A portal says that it is there. True if it was not known.
    pub(super) fn announce(&self, id: &str, number: Number, address: IpAddr) -> bool {
        self.change(|roll| roll.announce(id, number, address, Instant::now()))
    }

    /// A portal says that it goes. True if it was known.
    pub(super) fn leave(&self, id: &str) -> bool {
        self.change(|roll| roll.leave(id, Instant::now()))
    }

    pub(super) fn subscribe(&self, subscriber: &Subscriber) {
        self.change(|roll| roll.subscribe(subscriber.number, subscriber.address, Instant::now()));
    }

    /// A subscription has ended, with these events of its own not written.
    pub(super) fn unsubscribe(&self, number: Number, left: &[Arc<ClientEvent>]) {
        let gone = self.change(|roll| roll.unsubscribe(number, Instant::now()));
        if let Some(Subscribed { seat: Some(seat), .. }) = gone {
            self.pool.remove_consumer(seat);
            // It may be its network alone that is gone.
            self.pool.reserve_queue();
        }
        left.iter().for_each(|told| self.pool.redispatch(told));
    }

    /// A connection is closed.
    pub(super) fn close(&self, number: Number) {
        self.change(|roll| roll.close(number, Instant::now()));
    }

    /// To be called every second or so.
    pub(super) fn sweep(&self, now: Instant) {
        self.change(|roll| roll.sweep(now));
    }

    /// Whether a subscriber has room for more.
    pub(super) fn has_room(&self, number: Number, room: bool) {
        let seat = self.roll.lock().subscribed.iter().find(|one| one.number == number).and_then(|one| one.seat);
        if let Some(seat) = seat {
            self.pool.set_consumer_capacity(seat, room);
        }
    }

    /// Changes the roll; from then on those take turns who are bound to an id.
    fn change<T>(&self, change: impl FnOnce(&mut Roll) -> T) -> T {
        let mut seated = false;
        let result = {
            let mut roll = self.roll.lock();
            let result = change(&mut roll);
            for one in &mut roll.subscribed {
                match (one.ids.is_empty(), one.seat) {
                    (false, None) => {
                        one.seat = self.pool.add_consumer();
                        seated |= one.seat.is_some();
                    }
                    (true, Some(seat)) => {
                        self.pool.remove_consumer(seat);
                        one.seat = None;
                    }
                    _ => {}
                }
            }
            // Under the lock, so that what is told last is what holds.
            self.pool.set_observers(roll.subscribed.len());
            self.announced.send_if_modified(|old| {
                let changed = !roll.ids().eq(old.iter());
                if changed {
                    *old = roll.ids().cloned().collect();
                }
                changed
            });
            result
        };
        if seated {
            // Not under the lock: what was kept comes back to `told`, which takes it.
            self.pool.redistribute_orphans();
        }
        result
    }

    fn message(&self, told: &ClientEvent, id: &str) -> Bytes {
        subscriber_queue::message(&self.channel, &text(told, id))
    }
}

impl EventForwarder for StockPortals {
    fn forward(&self, told: &Arc<ClientEvent>, turn: Option<ConsumerId>, again: bool) {
        // Whose turn it is: number and ids. Known before the others are looked up, as they may come and go meanwhile.
        let chosen = turn.and_then(|seat| {
            let roll = self.roll.lock();
            let one = roll.subscribed.iter().find(|one| one.seat == Some(seat))?;
            Some((one.number, one.ids.clone()))
        });
        let subscribers = self.channels.subscribers(&self.channel);
        let mut put = Put::Refused;
        match &chosen {
            Some((number, ids)) => {
                let its = subscribers.iter().find(|one| one.number == *number);
                let common = if let [id] = &ids[..] { id.as_str() } else { NOBODY };
                let message = self.message(told, common);
                if let Some(its) = its {
                    put = match &ids[..] {
                        [_] => its.put(message.clone(), Some(told.clone())),
                        ids => {
                            let each = ids.iter().enumerate();
                            // Given up as a whole, so only one of them stands for it.
                            let own = |at: usize| (at + 1 == ids.len()).then(|| told.clone());
                            each.map(|(at, id)| its.put(self.message(told, id), own(at))).last().unwrap_or(Put::Refused)
                        }
                    };
                }
                if !again {
                    let others = subscribers.iter().filter(|one| one.number != *number);
                    others.for_each(|one| _ = one.put(message.clone(), None));
                }
                if put == Put::Crowded {
                    self.has_room(*number, false);
                }
            }
            None if !again => {
                let message = self.message(told, NOBODY);
                subscribers.iter().for_each(|one| _ = one.put(message.clone(), None));
            }
            None => {}
        }
        if let (Some(seat), Put::Refused) = (turn, put) {
            // It has gone between its turn and now. It is taken out of the line first, so that this comes to an end.
            self.pool.remove_consumer(seat);
            self.pool.redispatch(told);
        }
    }
}

/// An event as stock servers write it.
fn text(told: &ClientEvent, id: &str) -> Vec<u8> {
    let (name, message) = match &told.kind {
        ClientEventKind::Connection => (kind::CONNECTION, None),
        ClientEventKind::Authentication => (kind::AUTHENTICATION, None),
        ClientEventKind::Message { op, data, kind } => (kind::MESSAGE, Some((*op, data.as_deref(), kind.as_ref()))),
        ClientEventKind::Disconnection => (kind::DISCONNECTION, None),
    };
    portal_event::write(name, message, told.user.as_ref(), id)
}
