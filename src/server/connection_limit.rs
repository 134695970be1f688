//! Limits connections in total and per address, and waits until the last connection has closed.

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

use crate::util::client_network::client_network;

/// Issues permits for connections, in total and per address.
pub(super) struct ConnectionLimiter {
    connections_max: AtomicUsize,
    in_use: AtomicUsize,
    addresses: Arc<AddressLimiter>,
    released: Notify,
}

/// Counts connections per address.
struct AddressLimiter {
    /// 0: unlimited, and nothing is counted.
    connections_max: AtomicUsize,
    counts: Mutex<HashMap<IpAddr, usize>>,
}

/// Permit for one connection or request of an address or IPv6 network, released when it is dropped.
pub(super) struct AddressPermit {
    limiter: Arc<AddressLimiter>,
    address: IpAddr,
}

/// Permit for one connection, from the first byte of HTTP to the last of the WebSocket.
///
/// Released when its last clone is dropped.
#[derive(Clone)]
pub(super) struct Permit {
    inner: Arc<PermitInner>,
    /// Never read: its drop releases the permit. `None`: the address is not limited, or was not known.
    _address: Option<Arc<AddressPermit>>,
}

struct PermitInner {
    limiter: Arc<ConnectionLimiter>,
}

impl Permit {
    /// Acquires a permit for the address of a client behind a proxy.
    pub(super) fn acquire_address(&self, address: IpAddr) -> Result<Option<Arc<AddressPermit>>, LimitReached> {
        self.inner.limiter.addresses.acquire(address)
    }

    /// Returns this permit together with that of an address.
    pub(super) fn with_address(&self, address: Option<Arc<AddressPermit>>) -> Self {
        Self { inner: self.inner.clone(), _address: address }
    }
}

/// The limit for which no permit is available.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LimitReached {
    /// The total limit of connections.
    Total,
    /// The limit of the client's address.
    Address,
}

impl ConnectionLimiter {
    pub(super) fn new(connections_max: usize, per_address_max: usize) -> Arc<Self> {
        Arc::new(Self {
            connections_max: connections_max.into(),
            in_use: AtomicUsize::new(0),
            addresses: Arc::new(AddressLimiter { connections_max: per_address_max.into(), counts: Mutex::default() }),
            released: Notify::new(),
        })
    }

    /// Acquires a permit for a connection from `address`. `None`: connections of its address are not limited.
    pub(super) fn acquire(self: &Arc<Self>, address: Option<IpAddr>) -> Result<Permit, LimitReached> {
        if self.in_use.fetch_add(1, Ordering::AcqRel) >= self.connections_max() {
            self.in_use.fetch_sub(1, Ordering::AcqRel);
            return Err(LimitReached::Total);
        }
        // Dropped on an error, which releases the permit.
        let inner = Arc::new(PermitInner { limiter: self.clone() });
        let address = address.map(|address| self.addresses.acquire(address)).transpose()?.flatten();
        Ok(Permit { inner, _address: address })
    }

    /// Changes the limits. Present connections stay, also above a lower limit.
    ///
    /// Connections from a time without a limit per address do not count for their address.
    pub(super) fn set_limits(&self, connections_max: usize, per_address_max: usize) {
        self.connections_max.store(connections_max, Ordering::Relaxed);
        self.addresses.connections_max.store(per_address_max, Ordering::Relaxed);
    }

    /// Returns the total limit.
    pub(super) fn connections_max(&self) -> usize {
        self.connections_max.load(Ordering::Relaxed)
    }

    /// Returns the number of permits in use.
    pub(super) fn in_use(&self) -> usize {
        self.in_use.load(Ordering::Acquire)
    }

    /// Resolves when a permit is released after this call.
    pub(super) fn released(&self) -> Notified<'_> {
        self.released.notified()
    }

    /// Resolves when no permit is in use.
    pub(super) async fn all_released(&self) {
        loop {
            let released = self.released.notified();
            if self.in_use.load(Ordering::Acquire) == 0 {
                return;
            }
            released.await;
        }
    }
}

impl AddressLimiter {
    /// `None`: there is no limit.
    fn acquire(self: &Arc<Self>, address: IpAddr) -> Result<Option<Arc<AddressPermit>>, LimitReached> {
        let connections_max = self.connections_max.load(Ordering::Relaxed);
        if connections_max == 0 {
            return Ok(None);
        }
        let address = client_network(address);
        let mut counts = self.counts.lock();
        let in_use = counts.entry(address).or_insert(0);
        if *in_use >= connections_max {
            return Err(LimitReached::Address);
        }
        *in_use += 1;
        Ok(Some(Arc::new(AddressPermit { limiter: self.clone(), address })))
    }
}

impl Drop for AddressPermit {
    fn drop(&mut self) {
        let mut counts = self.limiter.counts.lock();
        if let Some(in_use) = counts.get_mut(&self.address) {
            *in_use -= 1;
            if *in_use == 0 {
                counts.remove(&self.address);
            }
        }
    }
}

impl Drop for PermitInner {
    fn drop(&mut self) {
        self.limiter.in_use.fetch_sub(1, Ordering::AcqRel);
        self.limiter.released.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changed_limits_count_each_permit_as_it_was_acquired() {
        let (limiter, address) = (ConnectionLimiter::new(9, 0), "10.0.0.1".parse().ok());
        let uncounted = limiter.acquire(address).unwrap();
        limiter.set_limits(9, 1);
        let counted = limiter.acquire(address).unwrap();
        drop(uncounted);
        assert_eq!(limiter.acquire(address).err(), Some(LimitReached::Address));
        limiter.set_limits(1, 0);
        assert_eq!(limiter.acquire(address).err(), Some(LimitReached::Total));
        drop(counted);
        assert!(limiter.acquire(address).is_ok() && limiter.addresses.counts.lock().is_empty());
    }

    #[test]
    fn addresses_of_one_ipv6_network_count_together() {
        let limiter = ConnectionLimiter::new(9, 1);
        let acquire = |text: &str| limiter.acquire(text.parse().ok());
        let [first, other] = ["2001:db8::1", "2001:db8:0:1::1"].map(|text| acquire(text).unwrap());
        assert_eq!(acquire("2001:db8::ffff:2").err(), Some(LimitReached::Address));
        drop(first);
        assert!(acquire("2001:db8::ffff:2").is_ok());
        drop(other);
        assert!(limiter.addresses.counts.lock().is_empty());
    }

    #[tokio::test]
    async fn permit_is_released_when_its_last_clone_is_dropped() {
        let limiter = ConnectionLimiter::new(3, 2);
        let [one, two] = ["10.0.0.1", "10.0.0.2"].map(|address| address.parse::<IpAddr>().ok());
        let (first, second) = (limiter.acquire(one).unwrap(), limiter.acquire(one).unwrap());
        assert_eq!(limiter.acquire(one).err(), Some(LimitReached::Address), "expected at most two of one address");
        let third = limiter.acquire(two).unwrap();
        assert_eq!(limiter.acquire(two).err(), Some(LimitReached::Total), "expected at most three in all");
        let held = first.clone();
        drop(first);
        assert_eq!((limiter.acquire(two).err(), limiter.in_use()), (Some(LimitReached::Total), 3));
        drop(held);
        drop(limiter.acquire(one).unwrap());
        drop((second, third));
        limiter.all_released().await;
        assert!(limiter.addresses.counts.lock().is_empty());
    }
}
