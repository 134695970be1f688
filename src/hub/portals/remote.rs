//! Portals of other servers, and what is told to those that are here by others.

use std::sync::{
    Arc, Weak,
    atomic::{AtomicBool, Ordering},
};

use super::{ClientEvent, EventOrigin, Far, Portals, SEAT, SeatId};
use crate::cluster::{Cluster, portals::LocalPortals};

impl Portals {
    /// From here on the portals here are among those of all servers. To be called before anybody comes, and once.
    pub fn stand_among(self: &Arc<Self>, cluster: &dyn Cluster) {
        let near: Arc<dyn LocalPortals> = self.clone();
        let portals = cluster.join_portals(Arc::downgrade(&near) as Weak<dyn LocalPortals>);
        let at = EventOrigin::Server(portals.server());
        _ = self.far.set(Far { portals, at, listen: AtomicBool::new(false) });
    }

    /// Portals that take turns at other servers, as they are called among all of them.
    #[must_use]
    pub fn elsewhere(&self) -> Vec<Arc<str>> {
        self.turns.lock().far().cloned().collect()
    }

    /// Gives an event to a portal that is here; false where it is not. Beside a seat all who watch are told, unless they have
    /// been.
    fn give(&self, told: &Arc<ClientEvent>, portal: &str, again: bool) -> bool {
        if let Some(seat) = portal.strip_prefix(SEAT).and_then(|seat| seat.parse::<SeatId>().ok()) {
            let sits = self.turns.lock().has_seat(seat);
            if sits {
                self.tell_watch(told, Some(seat), again);
            }
            return sits;
        }
        let turns = self.turns.lock();
        let Some(inbox) = turns.inboxes().find(|inbox| inbox.stream().as_str() == portal && inbox.has_reader()) else {
            return false;
        };
        let dropped = inbox.put(told.clone(), &self.bounds);
        self.metrics.portal_events_dropped.inc_by(dropped);
        true
    }
}

impl LocalPortals for Portals {
    fn set_remote(&self, in_turn: &[Arc<str>], listen: bool) {
        {
            let mut turns = self.turns.lock();
            turns.set_far(in_turn);
            if let Some(far) = self.far.get() {
                far.listen.store(listen, Ordering::Release);
            }
            self.look_whether_any(&turns);
        }
        self.pass_on_what_is_left();
    }

    fn deliver(&self, told: Arc<ClientEvent>, portal: Option<&str>, again: bool) {
        if !again {
            let dropped = self.put_for_all(&self.turns.lock(), &told);
            self.metrics.portal_events_dropped.inc_by(dropped);
        }
        let given = portal.is_none_or(|portal| self.give(&told, portal, again));
        let beside_a_seat = given && portal.is_some_and(|portal| portal.starts_with(SEAT));
        if !(again || beside_a_seat) {
            self.tell_watch(&told, None, false);
        }
        match (given, again) {
            (true, _) => {}
            // It has gone meanwhile.
            (false, false) => self.again(&told),
            // For the second time: between servers that are wrong about each other it must come to an end.
            (false, true) => self.again_here(&told),
        }
    }
}
