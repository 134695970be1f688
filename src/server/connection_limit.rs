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

/// Issues permits for connections, in total and per address.
pub(super) struct ConnectionLimiter {
    connections_max: usize,
    /// 0: unlimited.
    per_address_max: usize,
    in_use: AtomicUsize,
    /// Counts per address; only used with a limit per address.
    addresses: Mutex<HashMap<IpAddr, usize>>,
    released: Notify,
}

/// Permit for one connection, from the first byte of HTTP to the last of the WebSocket.
///
/// Released when its last clone is dropped.
#[derive(Clone)]
pub(super) struct Permit {
    /// Never read: its drop releases the permit.
    _inner: Arc<PermitInner>,
}

struct PermitInner {
    limiter: Arc<ConnectionLimiter>,
    address: IpAddr,
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
            connections_max,
            per_address_max,
            in_use: AtomicUsize::new(0),
            addresses: Mutex::default(),
            released: Notify::new(),
        })
    }

    /// Acquires a permit for a connection from `address`.
    pub(super) fn acquire(self: &Arc<Self>, address: IpAddr) -> Result<Permit, LimitReached> {
        if self.in_use.fetch_add(1, Ordering::AcqRel) >= self.connections_max {
            self.in_use.fetch_sub(1, Ordering::AcqRel);
            return Err(LimitReached::Total);
        }
        if self.per_address_max > 0 {
            let mut addresses = self.addresses.lock();
            let in_use = addresses.entry(address).or_insert(0);
            if *in_use >= self.per_address_max {
                drop(addresses);
                self.in_use.fetch_sub(1, Ordering::AcqRel);
                return Err(LimitReached::Address);
            }
            *in_use += 1;
        }
        Ok(Permit { _inner: Arc::new(PermitInner { limiter: self.clone(), address }) })
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

impl Drop for PermitInner {
    fn drop(&mut self) {
        if self.limiter.per_address_max > 0 {
            let mut addresses = self.limiter.addresses.lock();
            if let Some(in_use) = addresses.get_mut(&self.address) {
                *in_use -= 1;
                if *in_use == 0 {
                    addresses.remove(&self.address);
                }
            }
        }
        self.limiter.in_use.fetch_sub(1, Ordering::AcqRel);
        self.limiter.released.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn permit_is_released_when_its_last_clone_is_dropped() {
        let limiter = ConnectionLimiter::new(3, 2);
        let [one, two] = ["10.0.0.1", "10.0.0.2"].map(|address| address.parse::<IpAddr>().unwrap());
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
        assert!(limiter.addresses.lock().is_empty());
    }
}
