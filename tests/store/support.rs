//! Helpers of the store tests: locations of stores, and short forms of the store's methods.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use mesa::{
    embedded::{
        Options, Tuning,
        tables::{
            DiskOptions,
            memory::{self, Memory},
        },
    },
    message::{DeviceId, Payload, Seq, UserId},
    store::{Append, AppendResult, Entry, Gap, GapReason, Limits, ReadLimit, SessionReport, Store, StoreError},
};
use tempfile::TempDir;

use crate::wait::WAIT_TIMEOUT;

/// Limit that bounds no read.
pub const ALL: ReadLimit = ReadLimit { entries: usize::MAX, bytes: usize::MAX };

pub const HOUR: Duration = Duration::from_secs(3600);

/// Flushes each entry as soon as it is committed.
pub const FLUSH_AT_ONCE: Tuning = Tuning {
    flush_delay: Duration::ZERO,
    wal_bytes_max: 64 << 20,
    memory_bytes_max: usize::MAX,
    busy_timeout: Duration::from_secs(60),
    idle_seconds: 0,
    expiry_interval: Duration::ZERO,
};

/// Flushes nothing for the duration of a test.
pub const FLUSH_NEVER: Tuning =
    Tuning { flush_delay: Duration::from_secs(3600), wal_bytes_max: usize::MAX, idle_seconds: 3600, ..FLUSH_AT_ONCE };

/// Flushes only what exceeds the size limit of the write-ahead log.
pub const FLUSH_AT_LIMIT: Tuning = Tuning { wal_bytes_max: 64 << 20, ..FLUSH_NEVER };

/// Options of a store. Clones share the clock.
#[derive(Clone, Default)]
pub struct OpenOptions {
    pub limits: Limits,
    pub ahead_ms: Arc<AtomicU64>,
}

/// Location of a store, which can be opened repeatedly.
pub enum Location {
    Memory(Memory),
    Disk(TempDir),
    /// A namespace of a Redis, or of a Redis Cluster.
    #[cfg(feature = "redis")]
    Redis(crate::redis::RedisNamespace),
}

impl Location {
    /// Creates one location per engine.
    pub fn all() -> Vec<Self> {
        let all = Self::embedded().into_iter();
        #[cfg(feature = "redis")]
        let all = all.chain([
            Self::Redis(crate::redis::RedisNamespace::default()),
            Self::Redis(crate::redis::RedisNamespace::in_cluster()),
        ]);
        all.collect()
    }

    /// Creates one location per embedded engine.
    pub fn embedded() -> Vec<Self> {
        vec![Self::Memory(Memory::default()), Self::disk()]
    }

    /// Creates an empty location on the same engine.
    pub fn another(&self) -> Self {
        match self {
            Self::Memory(_) => Self::Memory(Memory::default()),
            Self::Disk(_) => Self::disk(),
            #[cfg(feature = "redis")]
            Self::Redis(namespace) => Self::Redis(namespace.another()),
        }
    }

    pub fn disk() -> Self {
        Self::Disk(tempfile::tempdir().unwrap())
    }

    pub fn path(&self) -> &Path {
        match self {
            Self::Memory(_) => panic!("expected a location on disk"),
            Self::Disk(dir) => dir.path(),
            #[cfg(feature = "redis")]
            Self::Redis(_) => panic!("expected a location on disk"),
        }
    }

    pub fn open(&self, tuning: Tuning) -> Arc<dyn Store> {
        self.open_with(tuning, &OpenOptions::default())
    }

    pub fn open_with(&self, tuning: Tuning, options: &OpenOptions) -> Arc<dyn Store> {
        let OpenOptions { limits, ahead_ms } = options.clone();
        match self {
            Self::Memory(tables) => {
                memory::open(tables, Options { tuning, limits, ahead_ms, ..Options::default() }).unwrap()
            }
            Self::Disk(dir) => {
                mesa::embedded::tables::open(DiskOptions { tuning, limits, ahead_ms, ..DiskOptions::new(dir.path()) })
                    .unwrap()
            }
            #[cfg(feature = "redis")]
            Self::Redis(namespace) => namespace.open(limits, ahead_ms),
        }
    }
}

pub fn user(id: &str) -> UserId {
    UserId::new(id).unwrap()
}

pub fn message(n: u64) -> Payload {
    Payload::encode(0, Some(&n.to_string()), Some("N")).unwrap()
}

/// Returns the number in a message.
pub fn number(entry: &Entry) -> u64 {
    let value: serde_json::Value = serde_json::from_slice(entry.payload.as_bytes()).unwrap();
    value["d"].as_u64().unwrap()
}

pub async fn append(store: &dyn Store, n: u64, users: &[&str]) -> Result<Vec<Seq>, StoreError> {
    let recipients = users.iter().map(|id| user(id)).collect();
    let appended = store.append(Append::new(message(n), recipients)).await?;
    Ok(appended.seqs.into_iter().map(|seq| seq.expect("an accepted recipient")).collect())
}

pub fn acknowledge(store: &dyn Store, id: &str, from: Seq, to: Seq) {
    store.report(&user(id), SessionReport { acknowledged: Some((from, to)), ..SessionReport::default() });
}

/// Returns sequence and number of each entry after `after`. Checks namespace and owner, and that both reading methods
/// agree.
pub fn read(store: &dyn Store, id: &str, after: Seq) -> Vec<(Seq, u64)> {
    let owner = user(id);
    let pairs = |entries: &[Entry]| entries.iter().map(|entry| (entry.seq, number(entry))).collect::<Vec<_>>();
    let stored = || {
        let entries = store.read(&owner, after, ALL).unwrap().entries;
        for entry in &entries {
            assert_eq!((&entry.owner[..], entry.namespace), (id.as_bytes(), store.namespace()));
        }
        pairs(&entries)
    };
    let mut before = stored();
    loop {
        let Some(cached) = store.read_cached(&owner, after, ALL) else { return before };
        // A commit may have happened between the two reads.
        let later = stored();
        if later == before {
            assert_eq!(pairs(&cached.entries), before, "the cached entries equal the stored ones");
            return before;
        }
        before = later;
    }
}

/// Waits until a condition holds, polled every 2 ms. Panics after [`WAIT_TIMEOUT`].
pub async fn wait_until(condition: &str, mut holds: impl FnMut() -> bool) {
    let waited = tokio::time::timeout(WAIT_TIMEOUT, async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    });
    assert!(waited.await.is_ok(), "expected within {WAIT_TIMEOUT:?}: {condition}");
}

/// Appends repeatedly until the message is accepted. Panics after [`WAIT_TIMEOUT`].
pub async fn append_when_accepted(store: &dyn Store, payload: &Payload, id: &str) {
    let end = std::time::Instant::now() + WAIT_TIMEOUT;
    while let Err(error) = store.append(Append::new(payload.clone(), vec![user(id)])).await {
        assert!(std::time::Instant::now() < end, "expected acceptance within {WAIT_TIMEOUT:?}: {error}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Creates options with these limits and no reserve of free disk space.
pub fn open_options(limits: Limits) -> OpenOptions {
    // The disk of the test machine may have less free space than the default requires.
    OpenOptions { limits: Limits { free_bytes: 0, ..limits }, ..OpenOptions::default() }
}

pub fn advance_clock(options: &OpenOptions, hours: u32) {
    options.ahead_ms.fetch_add((HOUR * hours).as_millis() as u64, Ordering::Relaxed);
}

/// Closes a store and opens it again. The store continues its stored clock, so the advance is reset.
pub async fn reopen(
    store: Arc<dyn Store>,
    location: &Location,
    tuning: Tuning,
    options: &OpenOptions,
) -> Arc<dyn Store> {
    store.close().await.unwrap();
    drop(store);
    options.ahead_ms.store(0, Ordering::Relaxed);
    location.open_with(tuning, options)
}

/// Waits until all entries of a user are flushed.
pub async fn wait_until_flushed(store: &dyn Store, id: &str) {
    wait_until("the entries are flushed", || store.read_cached(&user(id), 0, ALL).is_none()).await;
    // On Redis, session reports are written before the next query. That must happen before the test advances the clock.
    store.state(&user(id)).unwrap();
}

pub fn device(name: &str) -> DeviceId {
    DeviceId::new(name).unwrap()
}

/// Creates a message of exactly `bytes` bytes.
pub fn sized(n: u64, bytes: usize) -> Payload {
    let encode = |padding: usize| Payload::encode(0, Some(&n.to_string()), Some(&"x".repeat(padding))).unwrap();
    let payload = encode(bytes - encode(0).as_bytes().len());
    assert_eq!(payload.as_bytes().len(), bytes);
    payload
}

pub async fn append_one(store: &dyn Store, append: Append) -> AppendResult {
    store.append(append).await.unwrap()
}

/// Returns the gaps of a client without a device that misses `from..=to`.
pub fn gaps(store: &dyn Store, id: &str, from: Seq, to: Seq) -> Vec<(Seq, Seq, GapReason)> {
    let gaps = store.explain_gaps(&user(id), None, from, to).unwrap();
    gaps.into_iter().map(|Gap { from, to, reason }| (from, to, reason)).collect()
}
