//! What can be asked about users.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use super::{Hub, on_disk_thread};
use crate::{
    health::{Health, NotReady},
    message::{DeviceId, Seq, UserId},
    store::{DeviceState, Entry, KnownUser, ReadLimit, StoreError, UserState},
};

/// Bytes of payload one page of pending messages holds at most (one message at least).
const PAGE_BYTES_MAX: usize = 4 << 20;

/// A commit that takes longer than this is told to whoever asks whether the server is ready.
const COMMIT_STALL: Duration = Duration::from_secs(10);

/// What is known of a user.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct UserReport {
    /// Who.
    pub user: UserId,
    /// Whether anything was ever sent to this user, or he was ever here.
    pub known: bool,
    /// Connections that are authenticated as this user now.
    pub connections: usize,
    /// When the user last connected or disconnected, as far as that was written down.
    pub last_seen: Option<SystemTime>,
    /// Devices with a cursor of their own, those that came first first.
    pub devices: Vec<DeviceReport>,
    /// Messages not received yet.
    pub pending: u64,
    /// Bytes of those messages. Counted without reading them, so while they are received out of order an estimate.
    pub pending_bytes: u64,
    /// Sequence of the user's last message; 0 if there was none.
    pub last_sequence: Seq,
    /// Some of what is stored of the user cannot be read; what is said here is what can.
    pub damaged: bool,
}

/// What is known of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceReport {
    /// Its name.
    pub device: DeviceId,
    /// Messages it has not received yet.
    pub pending: u64,
    /// When it last connected or disconnected, as far as that was written down.
    pub last_seen: Option<SystemTime>,
}

impl Hub {
    fn report(user: UserId, connections: usize, state: &UserState) -> UserReport {
        UserReport {
            known: state.known,
            connections,
            user,
            last_seen: state.seen,
            devices: state.devices.iter().map(of_device).collect(),
            pending: state.pending,
            pending_bytes: state.pending_bytes,
            last_sequence: state.head,
            damaged: state.damaged,
        }
    }

    /// Users who are connected, in the order of their ids, those above `after`.
    pub async fn online(&self, after: Option<&UserId>, limit: usize) -> Vec<UserId> {
        if let Some(cluster) = &self.cluster
            && let Some(users) = cluster.online_page(after, limit).await
        {
            return users;
        }
        self.presence.page(after, limit)
    }

    /// How many users are connected to this server.
    #[must_use]
    pub fn online_count(&self) -> usize {
        self.presence.count()
    }

    /// Everybody who is connected to any of several servers, those of another make too, in no order; `None` where this is the
    /// only one, or the others cannot be asked.
    pub async fn everybody(&self) -> Option<Vec<UserId>> {
        self.cluster.as_ref()?.online_users().await
    }

    /// How many users are connected, to any server; to this one where the others cannot be asked.
    pub async fn everybody_count(&self) -> usize {
        match &self.cluster {
            Some(cluster) => cluster.online_user_count().await.unwrap_or_else(|| self.online_count()),
            None => self.online_count(),
        }
    }

    /// Whether a user is connected, to any server; to this one where the others cannot be asked.
    pub async fn is_online(&self, user: &UserId) -> bool {
        match &self.cluster {
            _ if self.registry.connections(user) > 0 => true,
            Some(cluster) => cluster.is_online(user).await.unwrap_or(false),
            None => false,
        }
    }

    /// Connections to all servers; to this one where the others cannot be asked.
    pub async fn connections_anywhere(&self) -> usize {
        match &self.cluster {
            Some(cluster) => cluster.connection_count().await.unwrap_or_else(|| self.connections()),
            None => self.connections(),
        }
    }

    /// Known users in the order of their ids, those above `after`, each with how many messages wait for him.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn pending_of_users(
        &self,
        after: Option<&UserId>,
        limit: usize,
    ) -> Result<Vec<(UserId, u64)>, StoreError> {
        let (store, after) = (self.store.clone(), after.cloned());
        let users = on_disk_thread(move || store.users(after.as_ref(), limit)).await?;
        Ok(users.into_iter().map(|(user, state)| (user, state.map_or(0, |state| state.pending))).collect())
    }

    /// The oldest of what waits for a user, within a limit, without taking it. Asks the disk only for what is not at hand.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn oldest_pending(&self, user: &UserId, limit: ReadLimit) -> Result<Vec<Entry>, StoreError> {
        let state = if self.store.is_far() {
            let (store, user) = (self.store.clone(), user.clone());
            on_disk_thread(move || store.state(&user)).await?
        } else {
            self.store.state(user)?
        };
        if state.pending == 0 {
            return Ok(Vec::new());
        }
        let after = state.received.through();
        let mut entries = match self.store.recent(user, after, limit) {
            Some(found) => found.entries,
            None => {
                let (store, user) = (self.store.clone(), user.clone());
                on_disk_thread(move || store.read(&user, after, limit)).await?.entries
            }
        };
        entries.retain(|entry| !state.received.contains(entry.seq));
        Ok(entries)
    }

    /// Known users in the order of their ids, those above `after`; one of whom not all can be read is among them.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn users(&self, after: Option<&UserId>, limit: usize) -> Result<Vec<UserReport>, StoreError> {
        let (store, after) = (self.store.clone(), after.cloned());
        let users = on_disk_thread(move || store.users(after.as_ref(), limit)).await?;
        let users: Vec<_> = users.into_iter().map(readable).collect::<Result<_, _>>()?;
        let ids: Vec<UserId> = users.iter().map(|(user, _)| user.clone()).collect();
        let connections = self.connections_of(&ids).await.into_iter();
        let report =
            |((user, state), connections)| UserReport { known: true, ..Self::report(user, connections, &state) };
        Ok(users.into_iter().zip(connections).map(report).collect())
    }

    /// What is known of each of these users, in the same order; one of whom not all can be read is among them.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn users_of(&self, ids: Vec<UserId>) -> Result<Vec<UserReport>, StoreError> {
        let (store, asked) = (self.store.clone(), ids.clone());
        let states =
            on_disk_thread(move || store.states(asked)?.into_iter().map(readable).collect::<Result<Vec<_>, _>>());
        let states = states.await?;
        let connections = self.connections_of(&ids).await;
        let report = |((user, state), connections)| Self::report(user, connections, &state);
        Ok(states.into_iter().zip(connections).map(report).collect())
    }

    /// What is known of one user; all zero for one never heard of.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn user(&self, user: &UserId) -> Result<UserReport, StoreError> {
        let (store, id) = (self.store.clone(), user.clone());
        let state = on_disk_thread(move || {
            let mut state = store.state(&id)?;
            match store.pending_bytes(&id) {
                Ok(bytes) => state.pending_bytes = bytes,
                // What the state says is what can be known.
                Err(StoreError::Damaged(_)) => state.damaged = true,
                Err(error) => return Err(error),
            }
            Ok(state)
        });
        let state = state.await?;
        Ok(Self::report(user.clone(), self.connections_to(user).await, &state))
    }

    /// Connections of one user, to any server; to this one where the others cannot be asked.
    pub async fn connections_to(&self, user: &UserId) -> usize {
        self.connections_of(std::slice::from_ref(user)).await.first().copied().unwrap_or(0)
    }

    /// A user's pending messages above `after`, without taking them.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn pending(&self, user: &UserId, after: Seq, limit: usize) -> Result<Vec<Entry>, StoreError> {
        let (store, user) = (self.store.clone(), user.clone());
        on_disk_thread(move || {
            let limit = ReadLimit { entries: limit, bytes: PAGE_BYTES_MAX };
            // What another session still holds may be received already; it is not pending.
            let received = store.state(&user)?.received;
            let mut entries = store.read(&user, after.max(received.through()), limit)?.entries;
            entries.retain(|entry| !received.contains(entry.seq));
            Ok(entries)
        })
        .await
    }

    /// Counts all that a user has as received; resolves with how many messages that were, once that is durable.
    ///
    /// # Errors
    /// When the store takes nothing.
    pub async fn clear(&self, user: &UserId) -> Result<u64, StoreError> {
        let (store, id) = (self.store.clone(), user.clone());
        if !on_disk_thread(move || store.state(&id)).await?.known {
            // Clearing what nobody ever had must not make it somebody's.
            return Ok(0);
        }
        self.store.clear(user).await
    }

    /// Conditions of the server's parts.
    #[must_use]
    pub fn health(&self) -> Arc<Health> {
        self.store.health()
    }

    /// Whether every part of the server is ready: dispatches are taken.
    ///
    /// # Errors
    /// Every part that is not ready, with its reason.
    pub fn ready(&self) -> Result<(), Vec<NotReady>> {
        let health = self.store.health();
        // Conditions that are asked for. Others are reported by the parts themselves.
        let unreachable = self.store.unreachable().map(|why| format!("the store cannot be reached: {why}"));
        health.set("store_connection", unreachable.map(Into::into));
        // Where it is the disk, the store has reported that.
        let full = self.store.full().filter(|_| !health.is_not_ready("disk_full"));
        let full = full.map(|why| format!("the store is full: {why}"));
        health.set("store_capacity", full.map(Into::into));
        let stalled = self.store.stalled().filter(|age| *age > COMMIT_STALL);
        let stalled = stalled.map(|age| format!("a commit has been waiting for the disk for {} s", age.as_secs()));
        health.set("commit", stalled.map(Into::into));
        let reports = health.reports();
        if reports.is_empty() { Ok(()) } else { Err(reports) }
    }
}

/// A user of a list. What cannot be read of one concerns that user alone.
fn readable((user, state): KnownUser) -> Result<(UserId, UserState), StoreError> {
    match state {
        Ok(state) => Ok((user, state)),
        Err(StoreError::Damaged(_)) => Ok((user, UserState { damaged: true, ..UserState::default() })),
        Err(error) => Err(error),
    }
}

fn of_device(state: &DeviceState) -> DeviceReport {
    let DeviceState { device, pending, seen } = state;
    DeviceReport { device: device.clone(), pending: *pending, last_seen: *seen }
}
