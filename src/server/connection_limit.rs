//! Who has a place: connections counted in all and per address, and the way to wait until the last has gone.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use parking_lot::Mutex;
use tokio::sync::{Notify, futures::Notified};

/// The places of a server.
pub(super) struct Slots {
    connections_max: usize,
    /// 0: no bound.
    per_address_max: usize,
    taken: AtomicUsize,
    /// Only kept where there is a bound.
    addresses: Mutex<HashMap<IpAddr, usize>>,
    freed: Notify,
}

/// One connection's place, from the first byte of HTTP to the last of the WebSocket. Free again when the last clone
/// is dropped.
#[derive(Clone)]
pub(super) struct Slot {
    /// Never read: the place is given back by its drop.
    _place: Arc<Place>,
}

struct Place {
    slots: Arc<Slots>,
    address: IpAddr,
}

/// Why there is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Full {
    /// All places are taken.
    All,
    /// This address has as many as it may have.
    Address,
}

impl Slots {
    pub(super) fn new(connections_max: usize, per_address_max: usize) -> Arc<Self> {
        Arc::new(Self {
            connections_max,
            per_address_max,
            taken: AtomicUsize::new(0),
            addresses: Mutex::default(),
            freed: Notify::new(),
        })
    }

    /// Takes a place for a connection from `address`.
    pub(super) fn take(self: &Arc<Self>, address: IpAddr) -> Result<Slot, Full> {
        if self.taken.fetch_add(1, Ordering::AcqRel) >= self.connections_max {
            self.taken.fetch_sub(1, Ordering::AcqRel);
            return Err(Full::All);
        }
        if self.per_address_max > 0 {
            let mut addresses = self.addresses.lock();
            let taken = addresses.entry(address).or_insert(0);
            if *taken >= self.per_address_max {
                drop(addresses);
                self.taken.fetch_sub(1, Ordering::AcqRel);
                return Err(Full::Address);
            }
            *taken += 1;
        }
        Ok(Slot { _place: Arc::new(Place { slots: self.clone(), address }) })
    }

    /// Places that are taken.
    pub(super) fn taken(&self) -> usize {
        self.taken.load(Ordering::Acquire)
    }

    /// Resolves when a place becomes free after this call.
    pub(super) fn freed(&self) -> Notified<'_> {
        self.freed.notified()
    }

    /// Resolves when every place is free.
    pub(super) async fn all_free(&self) {
        loop {
            let freed = self.freed.notified();
            if self.taken.load(Ordering::Acquire) == 0 {
                return;
            }
            freed.await;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.slots.per_address_max > 0 {
            let mut addresses = self.slots.addresses.lock();
            if let Some(taken) = addresses.get_mut(&self.address) {
                *taken -= 1;
                if *taken == 0 {
                    addresses.remove(&self.address);
                }
            }
        }
        self.slots.taken.fetch_sub(1, Ordering::AcqRel);
        self.slots.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_place_is_free_again_when_its_last_holder_is_gone() {
        let slots = Slots::new(3, 2);
        let [one, two] = ["10.0.0.1", "10.0.0.2"].map(|address| address.parse::<IpAddr>().unwrap());
        let (first, second) = (slots.take(one).unwrap(), slots.take(one).unwrap());
        assert_eq!(slots.take(one).err(), Some(Full::Address), "two of one address at most");
        let third = slots.take(two).unwrap();
        assert_eq!(slots.take(two).err(), Some(Full::All), "three in all at most");
        let held = first.clone();
        drop(first);
        assert_eq!((slots.take(two).err(), slots.taken()), (Some(Full::All), 3));
        drop(held);
        drop(slots.take(one).unwrap());
        drop((second, third));
        slots.all_free().await;
        assert!(slots.addresses.lock().is_empty());
    }
}
