//! Which portal is which connection.
//!
//! A stock Portal has three connections and tells nobody that they belong together: on one it puts its id into the pool,
//! on another it publishes that it is ready, on the third it subscribes. It says its id once, when it is made; when its
//! connections break, or the server starts anew, it only subscribes again. And it takes an event for its own by the id
//! alone.
//!
//! So ids are bound to subscriptions here. One that announces itself is bound to the subscription of the same address that
//! came behind it, which is how the three connections are made. A subscription that nobody announces belongs to an id
//! that was announced before, on a connection that is gone. Where there are several such ids it cannot be known which;
//! then it has all of them, and an event for it is told under each: a Portal takes the one that is its own.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use crate::hub::portals::ConsumerId;

/// Ids in all. Beyond that those that were announced first are forgotten, of those that have no connection.
const IDS_MAX: usize = 256;

/// Ids that one subscription may have.
const IDS_OF_ONE_MAX: usize = 32;

/// How long a subscription waits for its Portal to announce itself, before it is taken for one that came back.
const ANNOUNCED_WITHIN: Duration = Duration::from_secs(1);

/// How long an id is kept of which no connection is left.
const RETURN_WITHIN: Duration = Duration::from_secs(60);

/// Longest id, in bytes. Stock has 36.
pub(super) const ID_BYTES_MAX: usize = 256;

/// Names a connection; those that come later have higher numbers.
pub(super) type Number = u64;

/// An id, and from where it was announced: what has to be remembered over a restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announced {
    /// What the portal calls itself.
    pub id: String,
    /// Where it is.
    pub address: IpAddr,
}

#[derive(Debug)]
struct Id {
    announced: Announced,
    /// The connections on which it was announced, as far as they are open.
    by: Vec<Number>,
    /// The first of them.
    first: Number,
    /// Since when it has no connection and no subscription.
    gone: Option<Instant>,
}

/// A subscription to what happens.
#[derive(Debug)]
pub(super) struct Subscribed {
    pub number: Number,
    address: IpAddr,
    since: Instant,
    /// Whose it is, or may be.
    pub ids: Vec<String>,
    /// Its place in the pool; kept by who has the roll.
    pub seat: Option<ConsumerId>,
}

#[derive(Debug, Default)]
pub(super) struct Roll {
    ids: Vec<Id>,
    pub(super) subscribed: Vec<Subscribed>,
}

impl Roll {
    /// As it was before a restart.
    pub(super) fn remembered(announced: Vec<Announced>, now: Instant) -> Self {
        let id = |announced| Id { announced, by: Vec::new(), first: 0, gone: Some(now) };
        let sound = announced.into_iter().filter(|one| (1..=ID_BYTES_MAX).contains(&one.id.len())).take(IDS_MAX);
        Self { ids: sound.map(id).collect(), subscribed: Vec::new() }
    }

    /// Those who are in the pool.
    pub(super) fn ids(&self) -> impl Iterator<Item = &Announced> {
        self.ids.iter().map(|id| &id.announced)
    }

    /// A portal says that it is there. True if it was not known.
    pub(super) fn announce(&mut self, id: &str, number: Number, address: IpAddr, now: Instant) -> bool {
        let known = self.ids.iter_mut().find(|known| known.announced.id == id);
        let new = known.is_none();
        match known {
            Some(known) => {
                known.by.push(number);
                known.by.dedup();
                known.first = if known.by.len() == 1 { number } else { known.first.min(number) };
                known.announced.address = address;
            }
            None => {
                if self.ids.len() >= IDS_MAX {
                    let oldest = self.ids.iter().position(|id| id.by.is_empty()).unwrap_or(0);
                    self.ids.remove(oldest);
                }
                let announced = Announced { id: id.to_owned(), address };
                self.ids.push(Id { announced, by: vec![number], first: number, gone: None });
            }
        }
        self.bind(now);
        new
    }

    /// A portal says that it goes. True if it was known.
    pub(super) fn leave(&mut self, id: &str, now: Instant) -> bool {
        let before = self.ids.len();
        self.ids.retain(|known| known.announced.id != id);
        self.bind(now);
        self.ids.len() < before
    }

    pub(super) fn subscribe(&mut self, number: Number, address: IpAddr, now: Instant) {
        self.subscribed.push(Subscribed { number, address, since: now, ids: Vec::new(), seat: None });
        self.bind(now);
    }

    /// A subscription is over: what there was of it.
    pub(super) fn unsubscribe(&mut self, number: Number, now: Instant) -> Option<Subscribed> {
        let at = self.subscribed.iter().position(|one| one.number == number)?;
        let gone = self.subscribed.remove(at);
        self.bind(now);
        Some(gone)
    }

    /// A connection is closed.
    pub(super) fn close(&mut self, number: Number, now: Instant) {
        self.ids.iter_mut().for_each(|id| id.by.retain(|by| *by != number));
        self.bind(now);
    }

    /// Binds those that have waited long enough, and forgets ids that do not come back. True if some were.
    pub(super) fn sweep(&mut self, now: Instant) -> bool {
        self.bind(now);
        let before = self.ids.len();
        self.ids.retain(|id| id.gone.is_none_or(|gone| now.saturating_duration_since(gone) <= RETURN_WITHIN));
        self.ids.len() < before
    }

    fn bind(&mut self, now: Instant) {
        let known = |id: &String| self.ids.iter().any(|known| known.announced.id == *id);
        self.subscribed.iter_mut().for_each(|one| one.ids.retain(known));
        self.bind_announced();
        self.bind_returned(now);
        for id in &mut self.ids {
            let bound = self.subscribed.iter().any(|one| one.ids.contains(&id.announced.id));
            let gone = id.by.is_empty() && !bound;
            id.gone = if gone { id.gone.or(Some(now)) } else { None };
        }
    }

    /// Each id that has a connection gets a subscription of its address: one that is nobody's, or else one of an id that
    /// has no connection.
    fn bind_announced(&mut self) {
        let mut announced: Vec<usize> = (0..self.ids.len()).filter(|at| !self.ids[*at].by.is_empty()).collect();
        announced.sort_by_key(|at| self.ids[*at].first);
        for at in announced {
            let Id { announced, first, .. } = &self.ids[at];
            if self.subscribed.iter().any(|one| one.ids == [announced.id.clone()]) {
                continue;
            }
            let is_announced =
                |id: &String| self.ids.iter().any(|known| known.announced.id == *id && !known.by.is_empty());
            let free = self.subscribed.iter().enumerate().filter(|(_, one)| {
                one.address == announced.address && !(one.ids.len() == 1 && is_announced(&one.ids[0]))
            });
            // One that is nobody's first, then the one that came soonest behind the announcement's connection.
            let best =
                free.min_by_key(|(_, one)| (!one.ids.is_empty(), one.number < *first, one.number.abs_diff(*first)));
            let (best, id) = (best.map(|(at, _)| at), announced.id.clone());
            if let Some(best) = best {
                self.subscribed[best].ids = vec![id];
            }
        }
    }

    /// A subscription that is nobody's may be that of any id of its address that has no connection and no subscription.
    fn bind_returned(&mut self, now: Instant) {
        let alone = |one: &Subscribed| one.ids.len() == 1;
        let bound: Vec<String> =
            self.subscribed.iter().filter(|one| alone(one)).map(|one| one.ids[0].clone()).collect();
        let returned: Vec<Announced> = self
            .ids
            .iter()
            .filter(|id| id.by.is_empty() && !bound.contains(&id.announced.id))
            .map(|id| id.announced.clone())
            .collect();
        for one in self.subscribed.iter_mut().filter(|one| !alone(one)) {
            if now.saturating_duration_since(one.since) >= ANNOUNCED_WITHIN {
                let its = returned.iter().rev().filter(|id| id.address == one.address).take(IDS_OF_ONE_MAX);
                one.ids = its.map(|id| id.id.clone()).collect();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
    const THERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));

    fn bound(roll: &Roll) -> Vec<(Number, Vec<&str>)> {
        roll.subscribed.iter().map(|one| (one.number, one.ids.iter().map(String::as_str).collect())).collect()
    }

    /// A portal, as it comes: its connections are `first`, the next and the one after that, which subscribes.
    fn comes(roll: &mut Roll, id: &str, first: Number, address: IpAddr, now: Instant) {
        roll.subscribe(first + 2, address, now);
        roll.announce(id, first + 1, address, now);
        roll.announce(id, first, address, now);
    }

    #[test]
    fn a_portal_is_bound_to_its_own_subscription_in_whatever_order_it_speaks() {
        let now = Instant::now();
        let mut roll = Roll::default();
        roll.subscribe(6, HERE, now);
        roll.announce("two", 5, HERE, now);
        assert_eq!(bound(&roll), [(6, vec!["two"])]);
        roll.announce("one", 2, HERE, now);
        roll.announce("one", 1, HERE, now);
        assert_eq!(bound(&roll), [(6, vec!["two"])], "one has none yet");
        roll.subscribe(3, HERE, now);
        roll.announce("two", 4, HERE, now);
        comes(&mut roll, "far", 7, THERE, now);
        assert_eq!(bound(&roll), [(6, vec!["two"]), (3, vec!["one"]), (9, vec!["far"])]);
    }

    #[test]
    fn a_portal_that_says_so_goes_and_one_whose_connections_end_is_bound_no_more() {
        let now = Instant::now();
        let mut roll = Roll::default();
        comes(&mut roll, "one", 1, HERE, now);
        assert!(roll.leave("one", now) && !roll.leave("one", now));
        assert_eq!(bound(&roll), [(3, vec![])]);
        assert_eq!(roll.unsubscribe(3, now).unwrap().ids, [""; 0]);
        comes(&mut roll, "two", 4, HERE, now);
        for number in [4, 5] {
            roll.close(number, now);
        }
        assert_eq!(bound(&roll)[0], (6, vec!["two"]), "it still listens");
        assert_eq!(roll.unsubscribe(6, now).unwrap().ids, ["two"]);
        assert!(!roll.sweep(now + RETURN_WITHIN) && roll.sweep(now + RETURN_WITHIN * 2));
        assert_eq!(roll.ids().count(), 0);
    }

    #[test]
    fn a_subscription_that_returns_is_that_of_the_portal_that_was_lost() {
        let now = Instant::now();
        let mut roll = Roll::remembered(vec![Announced { id: "one".into(), address: HERE }], now);
        roll.subscribe(1, HERE, now);
        roll.subscribe(2, THERE, now);
        assert_eq!(bound(&roll), [(1, vec![]), (2, vec![])], "it may be a new one");
        assert!(!roll.sweep(now + ANNOUNCED_WITHIN));
        assert_eq!(bound(&roll), [(1, vec!["one"]), (2, vec![])]);
        assert!(!roll.sweep(now + RETURN_WITHIN * 9), "it is there");
        // A new one, whose subscription was taken for that of the old one.
        let mut roll = Roll::remembered(vec![Announced { id: "one".into(), address: HERE }], now);
        roll.subscribe(3, HERE, now);
        roll.sweep(now + ANNOUNCED_WITHIN);
        roll.announce("new", 1, HERE, now + ANNOUNCED_WITHIN);
        assert_eq!(bound(&roll), [(3, vec!["new"])]);
    }

    #[test]
    fn where_it_cannot_be_known_which_it_is_a_subscription_has_all_that_it_may_be() {
        let now = Instant::now();
        let ids = ["one", "two"].map(|id| Announced { id: id.into(), address: HERE });
        let mut roll = Roll::remembered(ids.to_vec(), now);
        roll.subscribe(1, HERE, now);
        roll.subscribe(2, HERE, now);
        roll.sweep(now + ANNOUNCED_WITHIN);
        assert_eq!(bound(&roll), [(1, vec!["two", "one"]), (2, vec!["two", "one"])]);
        // One of them says who it is, and so who the other is.
        roll.announce("one", 3, HERE, now + ANNOUNCED_WITHIN);
        let mut now_bound = bound(&roll);
        now_bound.sort();
        assert_eq!(now_bound.iter().map(|(_, ids)| ids.len()).collect::<Vec<_>>(), [1, 1]);
    }

    #[test]
    fn of_two_that_were_mistaken_for_each_other_the_one_that_lives_is_bound_to_what_lives() {
        let now = Instant::now();
        let mut roll = Roll::default();
        // Their connections came all mixed: each is taken for the other.
        roll.announce("one", 1, HERE, now);
        roll.announce("two", 2, HERE, now);
        roll.subscribe(3, HERE, now);
        roll.subscribe(4, HERE, now);
        assert_eq!(bound(&roll), [(3, vec!["one"]), (4, vec!["two"])]);
        // In truth the first subscription was that of the second, which dies.
        roll.close(2, now);
        roll.unsubscribe(3, now);
        assert_eq!(bound(&roll), [(4, vec!["one"])]);
    }

    #[test]
    fn there_are_so_many_ids_and_no_more() {
        let now = Instant::now();
        let mut roll = Roll::default();
        for n in 0..IDS_MAX as u64 + 10 {
            roll.announce(&n.to_string(), n, HERE, now);
            roll.close(n, now);
        }
        assert_eq!(roll.ids().count(), IDS_MAX);
        roll.subscribe(9999, HERE, now);
        roll.sweep(now + ANNOUNCED_WITHIN);
        assert_eq!(roll.subscribed[0].ids.len(), IDS_OF_ONE_MAX);
    }
}
