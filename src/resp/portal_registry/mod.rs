//! Matches ids of original portals to connections.
//!
//! A Portal of the original has three connections, and the protocol does not link them. One adds its id to the pool,
//! one publishes that it is ready, and one subscribes. A Portal announces its id once, when it is created. When its
//! connections break, or the server restarts, it only subscribes again. It handles events by their id alone.
//!
//! So ids are bound to subscriptions here. An announced id is bound to the next subscription from the same address: a
//! Portal opens its connections in this order. A subscription without an announcement belongs to an id that was
//! announced earlier, on a closed connection. If there are several such ids, the subscription is bound to all of them.
//! An event for it is then sent once under each id, and the Portal handles the one with its own id.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use crate::hub::portals::ConsumerId;

/// Limit of ids. One more replaces the oldest id without a connection. If all have a connection, it is rejected.
const IDS_MAX: usize = 256;

/// Ids that one subscription may be bound to.
const IDS_PER_SUBSCRIPTION_MAX: usize = 32;

/// Time in which a new Portal announces itself. Then a subscription counts as that of a returned Portal.
const ANNOUNCE_TIMEOUT: Duration = Duration::from_secs(1);

/// Time after which an id without connections is removed.
const RETURN_TIMEOUT: Duration = Duration::from_secs(60);

/// Length limit of an id, in bytes. Ids of the original have 36.
pub(super) const ID_BYTES_MAX: usize = 256;

/// Number of a connection. Later connections have higher numbers.
pub(super) type ConnectionNumber = u64;

/// A portal's id and address, which are stored over a restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnnouncedPortal {
    /// Id that the portal announced.
    pub id: String,
    /// Address of its connection.
    pub address: IpAddr,
}

#[derive(Debug)]
struct Id {
    announced: AnnouncedPortal,
    /// Open connections on which it was announced.
    connections: Vec<ConnectionNumber>,
    /// Lowest number of these connections.
    first: ConnectionNumber,
    /// Time since when it has no connection and no subscription.
    absent_since: Option<Instant>,
}

/// A subscription to the channel of events.
#[derive(Debug)]
pub(super) struct Subscription {
    pub number: ConnectionNumber,
    address: IpAddr,
    since: Instant,
    /// Ids to which it is bound. Several if the right id is unknown.
    pub ids: Vec<String>,
    /// Its consumer in the pool, which the owner of the registry maintains.
    pub consumer: Option<ConsumerId>,
}

/// Announced ids, and subscriptions.
#[derive(Debug, Default)]
pub(super) struct PortalRegistry {
    ids: Vec<Id>,
    pub(super) subscriptions: Vec<Subscription>,
}

impl PortalRegistry {
    /// Restores the registry of an earlier process.
    pub(super) fn remembered(announced: Vec<AnnouncedPortal>, now: Instant) -> Self {
        let id = |announced| Id { announced, connections: Vec::new(), first: 0, absent_since: Some(now) };
        let valid = announced.into_iter().filter(|one| (1..=ID_BYTES_MAX).contains(&one.id.len())).take(IDS_MAX);
        Self { ids: valid.map(id).collect(), subscriptions: Vec::new() }
    }

    /// Iterates over the portals in the pool.
    pub(super) fn ids(&self) -> impl Iterator<Item = &AnnouncedPortal> {
        self.ids.iter().map(|id| &id.announced)
    }

    /// Adds an announced portal. Returns whether it is new, or `None` if [`IDS_MAX`] other portals are connected.
    pub(super) fn announce(
        &mut self,
        id: &str,
        number: ConnectionNumber,
        address: IpAddr,
        now: Instant,
    ) -> Option<bool> {
        let known = self.ids.iter_mut().find(|known| known.announced.id == id);
        let new = known.is_none();
        match known {
            Some(known) => {
                if !known.connections.contains(&number) {
                    known.connections.push(number);
                }
                known.first = if known.connections.len() == 1 { number } else { known.first.min(number) };
                known.announced.address = address;
            }
            None => {
                if self.ids.len() >= IDS_MAX {
                    let absent = self.ids.iter().position(|id| id.absent_since.is_some());
                    // Its subscription may still be open, and is then bound to another id.
                    let replaced = absent.or_else(|| self.ids.iter().position(|id| id.connections.is_empty()))?;
                    self.ids.remove(replaced);
                }
                let announced = AnnouncedPortal { id: id.to_owned(), address };
                self.ids.push(Id { announced, connections: vec![number], first: number, absent_since: None });
            }
        }
        self.bind(now);
        Some(new)
    }

    /// Removes a portal. Returns true if it was known.
    pub(super) fn leave(&mut self, id: &str, now: Instant) -> bool {
        let before = self.ids.len();
        self.ids.retain(|known| known.announced.id != id);
        self.bind(now);
        self.ids.len() < before
    }

    pub(super) fn subscribe(&mut self, number: ConnectionNumber, address: IpAddr, now: Instant) {
        self.subscriptions.push(Subscription { number, address, since: now, ids: Vec::new(), consumer: None });
        self.bind(now);
    }

    /// Removes a subscription, and returns it.
    pub(super) fn unsubscribe(&mut self, number: ConnectionNumber, now: Instant) -> Option<Subscription> {
        let at = self.subscriptions.iter().position(|one| one.number == number)?;
        let removed = self.subscriptions.remove(at);
        self.bind(now);
        Some(removed)
    }

    /// Removes a closed connection from all ids.
    pub(super) fn close(&mut self, number: ConnectionNumber, now: Instant) {
        self.ids.iter_mut().for_each(|id| id.connections.retain(|connection| *connection != number));
        self.bind(now);
    }

    /// Binds subscriptions older than [`ANNOUNCE_TIMEOUT`], and removes expired ids. Returns true if any were removed.
    pub(super) fn sweep(&mut self, now: Instant) -> bool {
        self.bind(now);
        let before = self.ids.len();
        self.ids
            .retain(|id| id.absent_since.is_none_or(|since| now.saturating_duration_since(since) <= RETURN_TIMEOUT));
        self.ids.len() < before
    }

    /// Binds ids to subscriptions after a change.
    fn bind(&mut self, now: Instant) {
        let known = |id: &String| self.ids.iter().any(|known| known.announced.id == *id);
        self.subscriptions.iter_mut().for_each(|one| one.ids.retain(known));
        self.bind_announced();
        self.bind_returned(now);
        for id in &mut self.ids {
            let bound = self.subscriptions.iter().any(|one| one.ids.contains(&id.announced.id));
            let is_absent = id.connections.is_empty() && !bound;
            id.absent_since = if is_absent { id.absent_since.or(Some(now)) } else { None };
        }
    }

    /// Binds each id with a connection to a subscription from its address: an unbound one, or one that is bound to an
    /// id without a connection.
    fn bind_announced(&mut self) {
        let mut announced: Vec<usize> =
            (0..self.ids.len()).filter(|at| !self.ids[*at].connections.is_empty()).collect();
        announced.sort_by_key(|at| self.ids[*at].first);
        for at in announced {
            let Id { announced, first, .. } = &self.ids[at];
            if self.subscriptions.iter().any(|one| one.ids == [announced.id.clone()]) {
                continue;
            }
            let is_announced =
                |id: &String| self.ids.iter().any(|known| known.announced.id == *id && !known.connections.is_empty());
            let free = self.subscriptions.iter().enumerate().filter(|(_, one)| {
                one.address == announced.address && !(one.ids.len() == 1 && is_announced(&one.ids[0]))
            });
            // Unbound ones first, then the next after the connection of the announcement.
            let best =
                free.min_by_key(|(_, one)| (!one.ids.is_empty(), one.number < *first, one.number.abs_diff(*first)));
            let (best, id) = (best.map(|(at, _)| at), announced.id.clone());
            if let Some(best) = best {
                self.subscriptions[best].ids = vec![id];
            }
        }
    }

    /// Binds an unbound subscription to all ids of its address without a connection and a subscription.
    fn bind_returned(&mut self, now: Instant) {
        let is_certain = |one: &Subscription| one.ids.len() == 1;
        let bound: Vec<String> =
            self.subscriptions.iter().filter(|one| is_certain(one)).map(|one| one.ids[0].clone()).collect();
        let returned: Vec<AnnouncedPortal> = self
            .ids
            .iter()
            .filter(|id| id.connections.is_empty() && !bound.contains(&id.announced.id))
            .map(|id| id.announced.clone())
            .collect();
        for one in self.subscriptions.iter_mut().filter(|one| !is_certain(one)) {
            if now.saturating_duration_since(one.since) >= ANNOUNCE_TIMEOUT {
                let ids = returned.iter().rev().filter(|id| id.address == one.address).take(IDS_PER_SUBSCRIPTION_MAX);
                one.ids = ids.map(|id| id.id.clone()).collect();
            }
        }
    }
}

#[cfg(test)]
mod tests;
