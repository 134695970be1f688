//! All logs that are in memory, in shards, loaded from the table of users when they are first asked for.

use std::{collections::HashMap, hash::BuildHasher, sync::Arc, time::Instant};

use foldhash::fast::RandomState;
use parking_lot::{Mutex, MutexGuard};

use super::{
    StoreError,
    engine::{Engine, Table},
    lapses::Lapses,
    log::Log,
    record::Row,
};
use crate::message::UserId;

/// Enough shards that threads seldom meet, few enough to walk.
const SHARDS: usize = 64;

/// A log that has been of no use for this many seconds, and has nothing that is not in the tables, leaves memory.
pub const IDLE_SECONDS: u32 = 60;

type Shard = HashMap<UserId, Log, RandomState>;

/// The logs in memory.
pub struct Index {
    engine: Arc<dyn Engine>,
    hasher: RandomState,
    shards: Vec<Mutex<Shard>>,
    lapses: Lapses,
    opened: Instant,
}

fn damaged(user: &UserId, why: &str) -> String {
    format!(
        "the row of user {user:?} cannot be read ({why}). Save what is left with `mesa inspect --salvage`, or restore a \
         backup"
    )
}

impl Index {
    pub fn new(engine: Arc<dyn Engine>, lapses: Lapses) -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Self { engine, hasher: RandomState::default(), shards, lapses, opened: Instant::now() }
    }

    /// How many times a crash may have taken back sequences.
    pub fn lapses(&self) -> Lapses {
        self.lapses
    }

    /// Seconds since the store was opened.
    pub fn now(&self) -> u32 {
        u32::try_from(self.opened.elapsed().as_secs()).unwrap_or(u32::MAX)
    }

    fn shard(&self, user: &UserId) -> MutexGuard<'_, Shard> {
        self.shards[self.hasher.hash_one(user) as usize % SHARDS].lock()
    }

    /// Works on a user's log, which is loaded if it has to be.
    pub fn with<T>(&self, user: &UserId, work: impl FnOnce(&mut Log) -> T) -> Result<T, StoreError> {
        let mut shard = self.shard(user);
        if let Some(log) = shard.get_mut(user) {
            return Ok(work(log));
        }
        let mut log = self.load(user)?;
        let result = work(&mut log);
        shard.insert(user.clone(), log);
        Ok(result)
    }

    /// Looks at a user's log, without keeping it in memory where it is not: for lists of many users.
    pub fn look<T>(&self, user: &UserId, work: impl FnOnce(&mut Log) -> T) -> Result<T, StoreError> {
        let mut shard = self.shard(user);
        match shard.get_mut(user) {
            Some(log) => Ok(work(log)),
            None => Ok(work(&mut self.load(user)?)),
        }
    }

    fn load(&self, user: &UserId) -> Result<Log, StoreError> {
        let row =
            self.engine.get(Table::Users, user.as_str().as_bytes()).map_err(|error| StoreError::Failed(error.0))?;
        let row = row.map(|bytes| Row::decode(&bytes)).transpose();
        let row = row.map_err(|error| StoreError::Damaged(damaged(user, &error.to_string()).into()))?;
        let mut log = Log::from_row(row, self.lapses);
        log.touched = self.now();
        Ok(log)
    }

    /// Works on a user's log if it is in memory.
    pub fn with_loaded<T>(&self, user: &UserId, work: impl FnOnce(&mut Log) -> T) -> Option<T> {
        self.shard(user).get_mut(user).map(work)
    }

    /// Takes in a log that recovery has put together.
    pub fn insert(&self, user: UserId, log: Log) {
        self.shard(&user).insert(user, log);
    }

    /// Lets logs go that nobody has needed for a while. `first_record` is the first that is still in the journal.
    pub fn evict(&self, first_record: u64, idle_seconds: u32) {
        let now = self.now();
        for shard in &self.shards {
            let mut shard = shard.lock();
            let before = shard.len();
            shard.retain(|_, log| !(log.is_idle(first_record) && now.saturating_sub(log.touched) >= idle_seconds));
            if shard.len() * 4 < before {
                shard.shrink_to_fit();
            }
        }
    }
}
