//! Read-only queries about users, and readiness.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use super::{Hub, run_blocking};
use crate::{
    health::{Health, NotReady},
    message::{DeviceId, Recipients, Seq, UserId},
    store::{DeviceState, Entry, Erasure, Gap, KnownUser, ReadLimit, StoreError, UserState},
};

/// Time for a user's sessions to end before an erasure.
const ERASE_TIMEOUT: Duration = Duration::from_secs(10);

/// Interval at which an erasure disconnects a user whose sessions do not end.
const ERASE_DISCONNECT_INTERVAL: Duration = Duration::from_millis(100);

/// Interval at which an erasure checks whether the user's sessions have ended.
const ERASE_POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Bytes of payload in one page of pending messages (one message at least).
const PAGE_BYTES_MAX: usize = 4 << 20;

/// Age of a step of the commit thread, 10 s, beyond which the server reports itself as not ready.
const STEP_STALL_TIMEOUT: Duration = Duration::from_secs(10);

/// State of a user.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct UserReport {
    /// The user.
    pub user: UserId,
    /// Whether a message was ever sent to this user, or a client connected as this user.
    pub known: bool,
    /// Current connections authenticated as this user.
    pub connections: usize,
    /// When the user last connected or disconnected, if that was recorded.
    pub last_seen: Option<SystemTime>,
    /// Devices with a cursor of their own, in the order of their first connection.
    pub devices: Vec<DeviceReport>,
    /// Pending messages.
    pub pending: u64,
    /// Bytes of pending messages. Estimated without reading them while acknowledgements are out of order.
    pub pending_bytes: u64,
    /// Sequence of the user's last message; 0 if there was none.
    pub last_sequence: Seq,
    /// All sequences up to and including this one are acknowledged by every device.
    pub acknowledged: Seq,
    /// Missing ranges of the user's log with a known reason, in order; at most 64.
    pub gaps: Vec<Gap>,
    /// Whether some stored data of the user cannot be read. The other fields then cover what can be read.
    pub damaged: bool,
}

/// State of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceReport {
    /// The device.
    pub device: DeviceId,
    /// All sequences up to and including this one are acknowledged by the device.
    pub acknowledged: Seq,
    /// Messages it has not acknowledged.
    pub pending: u64,
    /// When it last connected or disconnected, if that was recorded.
    pub last_seen: Option<SystemTime>,
}

impl Hub {
    fn report(user: UserId, connections: usize, state: &UserState) -> UserReport {
        UserReport {
            known: state.known,
            connections,
            user,
            last_seen: state.seen,
            devices: state.devices.iter().map(device_report).collect(),
            pending: state.pending,
            pending_bytes: state.pending_bytes,
            last_sequence: state.head,
            acknowledged: state.acknowledged.through(),
            gaps: state.gaps.clone(),
            damaged: state.damaged,
        }
    }

    /// Returns online users above `after`, in the order of their ids.
    pub async fn online(&self, after: Option<&UserId>, limit: usize) -> Vec<UserId> {
        if let Some(cluster) = &self.cluster
            && let Some(users) = cluster.online_page(after, limit).await
        {
            return users;
        }
        self.presence.page(after, limit)
    }

    /// Returns the number of users connected to this server.
    #[must_use]
    pub fn online_count(&self) -> usize {
        self.presence.count()
    }

    /// Returns the users connected to any server, those of the original too, in no order.
    ///
    /// `None` if this is the only server, or the others cannot be queried.
    pub async fn all_online_users(&self) -> Option<Vec<UserId>> {
        self.cluster.as_ref()?.online_users().await
    }

    /// Returns the number of users online at any server; at this one if the query fails.
    pub async fn all_online_count(&self) -> usize {
        match &self.cluster {
            Some(cluster) => cluster.online_user_count().await.unwrap_or_else(|| self.online_count()),
            None => self.online_count(),
        }
    }

    /// Reports whether a user is online at any server; at this one if the query fails.
    pub async fn is_online(&self, user: &UserId) -> bool {
        match &self.cluster {
            _ if self.registry.session_count(user) > 0 => true,
            Some(cluster) => cluster.is_online(user).await.unwrap_or(false),
            None => false,
        }
    }

    /// Returns the number of connections at all servers; at this one if the query fails.
    pub async fn all_connection_count(&self) -> usize {
        match &self.cluster {
            Some(cluster) => cluster.connection_count().await.unwrap_or_else(|| self.connection_count()),
            None => self.connection_count(),
        }
    }

    /// Returns known users above `after`, ordered by id, each with the number of pending messages.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn pending_of_users(
        &self,
        after: Option<&UserId>,
        limit: usize,
    ) -> Result<Vec<(UserId, u64)>, StoreError> {
        let (store, after) = (self.store.clone(), after.cloned());
        let users = run_blocking(move || store.users(after.as_ref(), limit)).await?;
        Ok(users.into_iter().map(|(user, state)| (user, state.map_or(0, |state| state.pending))).collect())
    }

    /// Returns a user's oldest pending messages within a limit. Reads the disk only for messages that are not in
    /// memory.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn oldest_pending(&self, user: &UserId, limit: ReadLimit) -> Result<Vec<Entry>, StoreError> {
        let state = if self.store.is_remote() {
            let (store, user) = (self.store.clone(), user.clone());
            run_blocking(move || store.state(&user)).await?
        } else {
            self.store.state(user)?
        };
        if state.pending == 0 {
            return Ok(Vec::new());
        }
        let after = state.acknowledged.through();
        let mut entries = match self.store.read_cached(user, after, limit) {
            Some(result) => result.entries,
            None => {
                let (store, user) = (self.store.clone(), user.clone());
                run_blocking(move || store.read(&user, after, limit)).await?.entries
            }
        };
        entries.retain(|entry| !state.acknowledged.contains(entry.seq));
        Ok(entries)
    }

    /// Returns known users above `after`, in the order of their ids. Partly unreadable users are included.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn users(&self, after: Option<&UserId>, limit: usize) -> Result<Vec<UserReport>, StoreError> {
        let (store, after) = (self.store.clone(), after.cloned());
        let users = run_blocking(move || store.users(after.as_ref(), limit)).await?;
        let users: Vec<_> = users.into_iter().map(with_damage_flag).collect::<Result<_, _>>()?;
        let ids: Vec<UserId> = users.iter().map(|(user, _)| user.clone()).collect();
        let connections = self.connection_counts_of(&ids).await.into_iter();
        let report =
            |((user, state), connections)| UserReport { known: true, ..Self::report(user, connections, &state) };
        Ok(users.into_iter().zip(connections).map(report).collect())
    }

    /// Returns the state of each of these users, in the same order. Partly unreadable users are included.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn users_of(&self, ids: Vec<UserId>) -> Result<Vec<UserReport>, StoreError> {
        let (store, requested) = (self.store.clone(), ids.clone());
        let states = run_blocking(move || {
            store.states(requested)?.into_iter().map(with_damage_flag).collect::<Result<Vec<_>, _>>()
        });
        let states = states.await?;
        let connections = self.connection_counts_of(&ids).await;
        let report = |((user, state), connections)| Self::report(user, connections, &state);
        Ok(states.into_iter().zip(connections).map(report).collect())
    }

    /// Returns the state of one user; all zero for an unknown user.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn user(&self, user: &UserId) -> Result<UserReport, StoreError> {
        let (store, id) = (self.store.clone(), user.clone());
        let state = run_blocking(move || {
            let mut state = store.state(&id)?;
            match store.pending_bytes(&id) {
                Ok(bytes) => state.pending_bytes = bytes,
                // The state covers what can be read.
                Err(StoreError::Damaged(_)) => state.damaged = true,
                Err(error) => return Err(error),
            }
            Ok(state)
        });
        let state = state.await?;
        Ok(Self::report(user.clone(), self.connection_count_of(user).await, &state))
    }

    /// Returns a user's number of connections at all servers; at this one if the query fails.
    pub async fn connection_count_of(&self, user: &UserId) -> usize {
        self.connection_counts_of(std::slice::from_ref(user)).await.first().copied().unwrap_or(0)
    }

    /// Returns a user's pending messages above `after`.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn pending(&self, user: &UserId, after: Seq, limit: usize) -> Result<Vec<Entry>, StoreError> {
        let (store, user) = (self.store.clone(), user.clone());
        run_blocking(move || {
            let limit = ReadLimit { entries: limit, bytes: PAGE_BYTES_MAX };
            // Entries retained for another session may be acknowledged already. They are not pending.
            let acknowledged = store.state(&user)?.acknowledged;
            let mut entries = store.read(&user, after.max(acknowledged.through()), limit)?.entries;
            entries.retain(|entry| !acknowledged.contains(entry.seq));
            Ok(entries)
        })
        .await
    }

    /// Acknowledges all messages of a user; resolves with their number once that is durable.
    ///
    /// # Errors
    /// When the store accepts no writes.
    pub async fn clear(&self, user: &UserId) -> Result<u64, StoreError> {
        let (store, id) = (self.store.clone(), user.clone());
        if !run_blocking(move || store.state(&id)).await?.known {
            // Clearing an unknown user must not make the user known.
            return Ok(0);
        }
        self.store.clear(user).await
    }

    /// Disconnects a user, and erases everything that the store has about the user. Resolves when that is durable.
    ///
    /// [`Erasure::Online`]: the user connected again and again, for 10 s.
    ///
    /// # Errors
    /// When the store accepts no writes.
    pub async fn erase(&self, user: &UserId) -> Result<Erasure, StoreError> {
        if self.store.is_remote() {
            // Before the disconnect, because nothing will be erased.
            return Ok(Erasure::Unsupported);
        }
        let end = Instant::now() + ERASE_TIMEOUT;
        loop {
            self.disconnect(&Recipients::Users(vec![user.clone()]), &[]).await;
            // A session ends before its socket is closed. Another one may begin meanwhile.
            let again = Instant::now() + ERASE_DISCONNECT_INTERVAL;
            while self.registry.session_count(user) > 0 && Instant::now() < again {
                tokio::time::sleep(ERASE_POLL_INTERVAL).await;
            }
            if self.registry.session_count(user) > 0 && Instant::now() < end {
                continue;
            }
            match self.store.erase(user).await? {
                Erasure::Online if Instant::now() < end => {}
                erasure => return Ok(erasure),
            }
        }
    }

    /// Returns the conditions of the server's components.
    #[must_use]
    pub fn health(&self) -> Arc<Health> {
        self.store.health()
    }

    /// Updates the polled health conditions, and reports whether every component is ready.
    ///
    /// # Errors
    /// Every component that is not ready, with its reason.
    pub fn ready(&self) -> Result<(), Vec<NotReady>> {
        let health = self.store.health();
        // Components report all other conditions themselves.
        let unreachable = self.store.unreachable().map(|why| format!("the store cannot be reached: {why}"));
        health.set("store_connection", unreachable.map(Into::into));
        // A full disk has been reported by the store.
        let full = self.store.full_reason().filter(|_| !health.is_not_ready("disk_full"));
        let full = full.map(|why| format!("the store is full: {why}"));
        health.set("store_capacity", full.map(Into::into));
        let stalled = self.store.current_step().filter(|(_, age)| *age > STEP_STALL_TIMEOUT);
        let stalled = stalled.map(|(step, age)| {
            let seconds = age.as_secs();
            format!("the commit thread has been {step} for {seconds} s; check whether the disk of the store responds")
        });
        health.set("commit", stalled.map(Into::into));
        let reports = health.reports();
        if reports.is_empty() { Ok(()) } else { Err(reports) }
    }
}

/// Turns damage of a user's data into a flag, so that it does not fail a list of users.
fn with_damage_flag((user, state): KnownUser) -> Result<(UserId, UserState), StoreError> {
    match state {
        Ok(state) => Ok((user, state)),
        Err(StoreError::Damaged(_)) => Ok((user, UserState { damaged: true, ..UserState::default() })),
        Err(error) => Err(error),
    }
}

fn device_report(state: &DeviceState) -> DeviceReport {
    let DeviceState { device, acknowledged, pending, seen } = state;
    DeviceReport { device: device.clone(), acknowledged: *acknowledged, pending: *pending, last_seen: *seen }
}
