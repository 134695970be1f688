//! Matches ids of original portals to connections.
//!
//! A Portal of the original has three connections, and nothing shows that they belong together. One puts its id into the
//! pool, one publishes that it is ready, and one subscribes. It announces its id once, when it is created. When its connections
//! break, or the server restarts, it only subscribes again. It recognizes its events by the id alone.
//!
//! So ids are bound to subscriptions here. An announced id is bound to the next subscription from the same address, which
//! is how a Portal opens its connections. A subscription without an announcement belongs to an id that was announced before,
//! on a closed connection. If several such ids are possible, the subscription is bound to all of them. An event for it is
//! then sent under each, and the Portal takes the one with its own id.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use crate::hub::portals::ConsumerId;

/// Ids in total. One more replaces the oldest id without a connection; if all have one, it is rejected.
const IDS_MAX: usize = 256;

/// Ids that one subscription may be bound to.
const IDS_PER_SUBSCRIPTION_MAX: usize = 32;

/// Time in which a new Portal announces itself; after it, a subscription counts as one that returned.
const ANNOUNCE_TIMEOUT: Duration = Duration::from_secs(1);

/// Time after which an id without connections is removed.
const RETURN_TIMEOUT: Duration = Duration::from_secs(60);

/// Length limit of an id, in bytes. Ids of the original have 36.
pub(super) const ID_BYTES_MAX: usize = 256;

/// Identifies a connection; later connections have higher numbers.
pub(super) type ConnectionNumber = u64;

/// Holds a portal's id and address, which must be remembered over a restart.
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
    by: Vec<ConnectionNumber>,
    /// Lowest number of them.
    first: ConnectionNumber,
    /// Time since which it has no connection and no subscription.
    absent_since: Option<Instant>,
}

/// Describes a subscription to the channel of events.
#[derive(Debug)]
pub(super) struct Subscription {
    pub number: ConnectionNumber,
    address: IpAddr,
    since: Instant,
    /// Ids it is bound to; several if it is uncertain which is right.
    pub ids: Vec<String>,
    /// Its consumer in the pool; maintained by the owner of the registry.
    pub seat: Option<ConsumerId>,
}

#[derive(Debug, Default)]
pub(super) struct PortalRegistry {
    ids: Vec<Id>,
    pub(super) subscriptions: Vec<Subscription>,
}

impl PortalRegistry {
    /// Restores the registry of an earlier process.
    pub(super) fn remembered(announced: Vec<AnnouncedPortal>, now: Instant) -> Self {
        let id = |announced| Id { announced, by: Vec::new(), first: 0, absent_since: Some(now) };
        let valid = announced.into_iter().filter(|one| (1..=ID_BYTES_MAX).contains(&one.id.len())).take(IDS_MAX);
        Self { ids: valid.map(id).collect(), subscriptions: Vec::new() }
    }

    /// Iterates over the portals in the pool.
    pub(super) fn ids(&self) -> impl Iterator<Item = &AnnouncedPortal> {
        self.ids.iter().map(|id| &id.announced)
    }

    /// Adds an announced portal, and returns whether it was unknown. `None`: [`IDS_MAX`] others are connected.
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
                if !known.by.contains(&number) {
                    known.by.push(number);
                }
                known.first = if known.by.len() == 1 { number } else { known.first.min(number) };
                known.announced.address = address;
            }
            None => {
                if self.ids.len() >= IDS_MAX {
                    let absent = self.ids.iter().position(|id| id.absent_since.is_some());
                    // Its subscription may still be open, and is then bound to another id.
                    let replaced = absent.or_else(|| self.ids.iter().position(|id| id.by.is_empty()))?;
                    self.ids.remove(replaced);
                }
                let announced = AnnouncedPortal { id: id.to_owned(), address };
                self.ids.push(Id { announced, by: vec![number], first: number, absent_since: None });
            }
        }
        self.bind(now);
        Some(new)
    }

    /// Removes a portal. True if it was known.
    pub(super) fn leave(&mut self, id: &str, now: Instant) -> bool {
        let before = self.ids.len();
        self.ids.retain(|known| known.announced.id != id);
        self.bind(now);
        self.ids.len() < before
    }

    pub(super) fn subscribe(&mut self, number: ConnectionNumber, address: IpAddr, now: Instant) {
        self.subscriptions.push(Subscription { number, address, since: now, ids: Vec::new(), seat: None });
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
        self.ids.iter_mut().for_each(|id| id.by.retain(|by| *by != number));
        self.bind(now);
    }

    /// Binds subscriptions that have waited for [`ANNOUNCE_TIMEOUT`], and removes expired ids. True if any were removed.
    pub(super) fn sweep(&mut self, now: Instant) -> bool {
        self.bind(now);
        let before = self.ids.len();
        self.ids
            .retain(|id| id.absent_since.is_none_or(|since| now.saturating_duration_since(since) <= RETURN_TIMEOUT));
        self.ids.len() < before
    }

    fn bind(&mut self, now: Instant) {
        let known = |id: &String| self.ids.iter().any(|known| known.announced.id == *id);
        self.subscriptions.iter_mut().for_each(|one| one.ids.retain(known));
        self.bind_announced();
        self.bind_returned(now);
        for id in &mut self.ids {
            let bound = self.subscriptions.iter().any(|one| one.ids.contains(&id.announced.id));
            let is_absent = id.by.is_empty() && !bound;
            id.absent_since = if is_absent { id.absent_since.or(Some(now)) } else { None };
        }
    }

    /// Binds each id with a connection to a subscription from its address: an unbound one, or one of an id without a
    /// connection.
    fn bind_announced(&mut self) {
        let mut announced: Vec<usize> = (0..self.ids.len()).filter(|at| !self.ids[*at].by.is_empty()).collect();
        announced.sort_by_key(|at| self.ids[*at].first);
        for at in announced {
            let Id { announced, first, .. } = &self.ids[at];
            if self.subscriptions.iter().any(|one| one.ids == [announced.id.clone()]) {
                continue;
            }
            let is_announced =
                |id: &String| self.ids.iter().any(|known| known.announced.id == *id && !known.by.is_empty());
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
        let alone = |one: &Subscription| one.ids.len() == 1;
        let bound: Vec<String> =
            self.subscriptions.iter().filter(|one| alone(one)).map(|one| one.ids[0].clone()).collect();
        let returned: Vec<AnnouncedPortal> = self
            .ids
            .iter()
            .filter(|id| id.by.is_empty() && !bound.contains(&id.announced.id))
            .map(|id| id.announced.clone())
            .collect();
        for one in self.subscriptions.iter_mut().filter(|one| !alone(one)) {
            if now.saturating_duration_since(one.since) >= ANNOUNCE_TIMEOUT {
                let its = returned.iter().rev().filter(|id| id.address == one.address).take(IDS_PER_SUBSCRIPTION_MAX);
                one.ids = its.map(|id| id.id.clone()).collect();
            }
        }
    }
}

#[cfg(test)]
mod tests;
