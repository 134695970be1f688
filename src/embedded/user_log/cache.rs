//! Caches user logs in memory. A log is loaded from the table of users on first use.

use std::{
    collections::{BTreeSet, HashMap},
    hash::BuildHasher,
    ops::Bound,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use foldhash::fast::RandomState;
use parking_lot::{Mutex, MutexGuard};

use super::{LOG_BYTES, Usage, UserLog, WalSlot, lossy_restarts::LossyRestarts};
use crate::{
    embedded::{
        tables::{
            contract::{Table, Tables},
            schema::StoredLog,
        },
        unreadable::damaged,
        writer::cost::Cost,
    },
    message::{Seq, UserId},
    store::StoreError,
};

/// Number of shards. With fewer, threads wait for each other more often; with more, an iteration takes longer.
pub const SHARDS: usize = 64;

/// Logs are boxed, because a table of them would have up to twice their size, and be copied when it grows.
type Shard = HashMap<UserId, Box<UserLog>, RandomState>;

/// Caches user logs in shards, each with a lock.
pub struct LogCache {
    tables: Arc<dyn Tables>,
    hasher: RandomState,
    shards: Vec<Mutex<Shard>>,
    lossy_restarts: LossyRestarts,
    /// Sequence at which a log without a row starts.
    floor: AtomicU64,
    opened: Instant,
    /// Bytes that unflushed entries will take on the disk. Each change of a log updates it, on any thread.
    reserved_bytes: AtomicU64,
    /// Memory of the logs with unflushed entries, in bytes. Each change of a log updates it, on any thread.
    pinned_bytes: AtomicU64,
    /// Number of unflushed entries, and their bytes of payload. Each change of a log updates them, on any thread.
    unflushed: (AtomicU64, AtomicU64),
    /// Number of logs in memory.
    loaded: AtomicU64,
    /// Users whose logs are in memory and have no row yet ([`UserLog::lacks_row`]).
    without_row: Mutex<BTreeSet<UserId>>,
}

/// The entries of one log in the WAL.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Unflushed {
    entries: u64,
    /// Bytes of payload.
    bytes: u64,
    /// Bytes of payload that their flush will write.
    reserved: u64,
}

impl Unflushed {
    fn of(log: &UserLog) -> Self {
        let Usage { entries, bytes } = log.in_wal();
        Self { entries, bytes, reserved: log.unflushed().bytes }
    }
}

impl LogCache {
    pub fn new(tables: Arc<dyn Tables>, lossy_restarts: LossyRestarts, floor: Seq) -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Self {
            tables,
            hasher: RandomState::default(),
            shards,
            lossy_restarts,
            floor: AtomicU64::new(floor),
            opened: Instant::now(),
            reserved_bytes: AtomicU64::new(0),
            pinned_bytes: AtomicU64::new(0),
            unflushed: Default::default(),
            loaded: AtomicU64::new(0),
            without_row: Mutex::default(),
        }
    }

    /// Lists a user although the table has no row of this user yet. Call this while the log is locked.
    pub fn set_without_row(&self, user: &UserId, log: &mut UserLog) {
        log.lacks_row = true;
        self.without_row.lock().insert(user.clone());
    }

    /// Records that the row of a user was written.
    pub fn set_row_written(&self, user: &UserId) {
        self.without_row.lock().remove(user);
    }

    /// Lists users above `after` that have no row yet, at most `limit`, in the order of their ids.
    pub fn users_without_row(&self, after: Option<&UserId>, limit: usize) -> Vec<UserId> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.without_row.lock().range::<UserId, _>((from, Bound::Unbounded)).take(limit).cloned().collect()
    }

    /// Returns the bytes that unflushed entries will take on the disk.
    pub fn reserved_bytes(&self) -> u64 {
        self.reserved_bytes.load(Ordering::Relaxed)
    }

    /// Returns the estimated memory of the logs with unflushed entries, in bytes. They cannot leave memory.
    pub fn pinned_bytes(&self) -> u64 {
        self.pinned_bytes.load(Ordering::Relaxed)
    }

    /// Returns the number of unflushed entries, and their bytes of payload.
    pub fn unflushed(&self) -> Usage {
        let (entries, bytes) = &self.unflushed;
        Usage { entries: entries.load(Ordering::Relaxed), bytes: bytes.load(Ordering::Relaxed) }
    }

    /// Returns the estimated memory of all logs, in bytes.
    pub fn loaded_bytes(&self) -> u64 {
        self.loaded.load(Ordering::Relaxed) * LOG_BYTES
    }

    /// Runs `work` on a log, and counts the change of its unflushed entries.
    fn update<T>(&self, user: &UserId, log: &mut UserLog, work: impl FnOnce(&mut UserLog) -> T) -> T {
        let before = Unflushed::of(log);
        let result = work(log);
        let after = Unflushed::of(log);
        if before != after {
            self.count_unflushed(user, before, after);
        }
        result
    }

    /// Adds the change of a log's unflushed entries to the counters.
    fn count_unflushed(&self, user: &UserId, before: Unflushed, after: Unflushed) {
        let cost = |log: Unflushed| Cost::of_entries(user, log.entries, log.reserved);
        // Each thread subtracts only what was added under the same lock, so no counter goes below zero.
        self.reserved_bytes.fetch_add(cost(after).wrapping_sub(cost(before)), Ordering::Relaxed);
        let pinned =
            |log: Unflushed| log.entries * size_of::<WalSlot>() as u64 + u64::from(log.entries > 0) * LOG_BYTES;
        self.pinned_bytes.fetch_add(pinned(after).wrapping_sub(pinned(before)), Ordering::Relaxed);
        self.unflushed.0.fetch_add(after.entries.wrapping_sub(before.entries), Ordering::Relaxed);
        self.unflushed.1.fetch_add(after.bytes.wrapping_sub(before.bytes), Ordering::Relaxed);
    }

    /// Returns the lossy restarts of the store.
    pub fn lossy_restarts(&self) -> LossyRestarts {
        self.lossy_restarts
    }

    /// Returns the sequence at which a log without a row starts.
    pub fn floor(&self) -> Seq {
        self.floor.load(Ordering::SeqCst)
    }

    /// Raises the sequence at which a log without a row starts.
    pub fn raise_floor(&self, floor: Seq) {
        self.floor.fetch_max(floor, Ordering::SeqCst);
    }

    /// Returns the seconds since the store was opened.
    pub fn now(&self) -> u32 {
        u32::try_from(self.opened.elapsed().as_secs()).unwrap_or(u32::MAX)
    }

    fn shard(&self, user: &UserId) -> MutexGuard<'_, Shard> {
        self.shard_of(user).lock()
    }

    fn shard_of(&self, user: &UserId) -> &Mutex<Shard> {
        &self.shards[self.hasher.hash_one(user) as usize % SHARDS]
    }

    /// Runs `work` on a user's log, and loads the log first if necessary.
    pub fn with<T>(&self, user: &UserId, work: impl FnOnce(&mut UserLog) -> T) -> Result<T, StoreError> {
        let mut shard = self.shard(user);
        if let Some(log) = shard.get_mut(user) {
            return Ok(self.update(user, log, work));
        }
        let mut log = self.load(user)?;
        let result = self.update(user, &mut log, work);
        shard.insert(user.clone(), Box::new(log));
        self.loaded.fetch_add(1, Ordering::Relaxed);
        Ok(result)
    }

    /// Runs `work` on a user's log without adding the log to the cache.
    ///
    /// Lists of many users use it.
    pub fn peek<T>(&self, user: &UserId, work: impl FnOnce(&mut UserLog) -> T) -> Result<T, StoreError> {
        let mut shard = self.shard(user);
        match shard.get_mut(user) {
            Some(log) => Ok(self.update(user, log, work)),
            None => Ok(work(&mut self.load(user)?)),
        }
    }

    fn load(&self, user: &UserId) -> Result<UserLog, StoreError> {
        let row = self.tables.get(Table::Users, user.as_str().as_bytes())?;
        let row = row.map(|bytes| StoredLog::decode(&bytes)).transpose();
        let row = row.map_err(|error| damaged(format!("the row of user {user:?} cannot be read ({error})")))?;
        let mut log = UserLog::from_row(row, self.lossy_restarts, self.floor());
        log.used_s = self.now();
        Ok(log)
    }

    /// Runs `work` on a user's log if it is in memory.
    pub fn with_loaded<T>(&self, user: &UserId, work: impl FnOnce(&mut UserLog) -> T) -> Option<T> {
        self.shard(user).get_mut(user).map(|log| self.update(user, log, work))
    }

    /// Runs `work` on a user's log if it is in memory and no other thread has the lock of its shard. Never waits.
    ///
    /// The lock may be held during a read from the disk, for the log of another user of the shard.
    pub fn try_with_loaded<T>(&self, user: &UserId, work: impl FnOnce(&mut UserLog) -> T) -> Option<T> {
        let mut shard = self.shard_of(user).try_lock()?;
        shard.get_mut(user).map(|log| self.update(user, log, work))
    }

    /// Inserts a log that recovery has assembled.
    pub fn insert(&self, user: UserId, log: UserLog) {
        self.count_unflushed(&user, Unflushed::default(), Unflushed::of(&log));
        if self.shard(&user).insert(user, Box::new(log)).is_none() {
            self.loaded.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Removes a log from memory, with its changes.
    pub fn remove(&self, user: &UserId) -> Option<UserLog> {
        let mut shard = self.shard(user);
        let log = shard.remove(user)?;
        if log.lacks_row {
            self.set_row_written(user);
        }
        self.loaded.fetch_sub(1, Ordering::Relaxed);
        self.count_unflushed(user, Unflushed::of(&log), Unflushed::default());
        Some(*log)
    }

    /// Evicts a log that was idle for `idle_seconds`, unless an attach is about to use it. `first_record` is the first
    /// record in the WAL.
    pub fn evict_idle(&self, user: &UserId, first_record: u64, idle_seconds: u32) {
        let now = self.now();
        let mut shard = self.shard(user);
        let is_unused = |log: &UserLog| now.checked_sub(log.used_s).is_some_and(|idle| idle >= idle_seconds);
        if shard.get(user).is_some_and(|log| log.is_idle(first_record) && is_unused(log)) {
            shard.remove(user);
            self.loaded.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Evicts logs of one shard that were idle for `idle_seconds`. `first_record` is the first record in the WAL.
    pub fn evict(&self, shard: usize, first_record: u64, idle_seconds: u32) {
        let now = self.now();
        let mut shard = self.shards[shard % SHARDS].lock();
        let before = shard.len();
        shard.retain(|_, log| !(log.is_idle(first_record) && now.saturating_sub(log.used_s) >= idle_seconds));
        self.loaded.fetch_sub((before - shard.len()) as u64, Ordering::Relaxed);
        if shard.capacity() > 4 * shard.len() {
            shard.shrink_to_fit();
        }
    }
}
