//! One small surface over the store, so that the tests read as tables.

use std::{
    path::Path,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use mesa::{
    message::{Payload, Seq, UserId},
    store::{
        Append, Entry, Limits, Note, ReadLimit, Store, StoreError,
        disk::{self, DiskOptions},
        journal::{Options, Tuning},
        memory::{self, Memory},
    },
};
use tempfile::TempDir;

/// Everything a read can give.
pub const ALL: ReadLimit = ReadLimit { entries: usize::MAX, bytes: usize::MAX };

/// Settles everything as soon as it is committed.
pub const AT_ONCE: Tuning =
    Tuning { settle_after: Duration::ZERO, journal_bytes_max: 64 << 20, idle_seconds: 0, sweep_pause: Duration::ZERO };

/// Settles nothing for as long as a test lasts.
pub const NEVER: Tuning =
    Tuning { settle_after: Duration::from_secs(3600), journal_bytes_max: usize::MAX, idle_seconds: 3600, ..AT_ONCE };

/// What a store is opened with. Cloning shares the clock.
#[derive(Clone, Default)]
pub struct Opening {
    pub limits: Limits,
    pub ahead_ms: Arc<AtomicU64>,
}

/// Where a store is: it can be opened again and again.
pub enum Place {
    Memory(Memory),
    Disk(TempDir),
    /// A namespace of a Redis, or of a Redis Cluster.
    #[cfg(feature = "redis")]
    Redis(crate::redis::Somewhere),
}

impl Place {
    /// One of each engine.
    pub fn all() -> Vec<Self> {
        let all = Self::embedded().into_iter();
        #[cfg(feature = "redis")]
        let all = all
            .chain([Self::Redis(crate::redis::Somewhere::default()), Self::Redis(crate::redis::Somewhere::spread())]);
        all.collect()
    }

    /// One of each that keeps everything itself.
    pub fn embedded() -> Vec<Self> {
        vec![Self::Memory(Memory::default()), Self::disk()]
    }

    /// An empty one on the same engine.
    pub fn another(&self) -> Self {
        match self {
            Self::Memory(_) => Self::Memory(Memory::default()),
            Self::Disk(_) => Self::disk(),
            #[cfg(feature = "redis")]
            Self::Redis(somewhere) => Self::Redis(somewhere.another()),
        }
    }

    pub fn disk() -> Self {
        Self::Disk(tempfile::tempdir().unwrap())
    }

    pub fn path(&self) -> &Path {
        match self {
            Self::Memory(_) => panic!("not on disk"),
            Self::Disk(dir) => dir.path(),
            #[cfg(feature = "redis")]
            Self::Redis(_) => panic!("not on disk"),
        }
    }

    pub fn open(&self, tuning: Tuning) -> Arc<dyn Store> {
        self.open_with(tuning, &Opening::default())
    }

    pub fn open_with(&self, tuning: Tuning, opening: &Opening) -> Arc<dyn Store> {
        let Opening { limits, ahead_ms } = opening.clone();
        match self {
            Self::Memory(tables) => {
                memory::open(tables, Options { tuning, limits, ahead_ms, ..Options::default() }).unwrap()
            }
            Self::Disk(dir) => {
                disk::open(DiskOptions { tuning, limits, ahead_ms, ..DiskOptions::new(dir.path()) }).unwrap()
            }
            #[cfg(feature = "redis")]
            Self::Redis(somewhere) => somewhere.open(limits, ahead_ms),
        }
    }
}

pub fn user(id: &str) -> UserId {
    UserId::new(id).unwrap()
}

pub fn message(n: u64) -> Payload {
    Payload::encode(0, Some(&n.to_string()), Some("N")).unwrap()
}

/// The number in a message.
pub fn number(entry: &Entry) -> u64 {
    let value: serde_json::Value = serde_json::from_slice(entry.payload.as_bytes()).unwrap();
    value["d"].as_u64().unwrap()
}

pub async fn append(store: &dyn Store, n: u64, users: &[&str]) -> Result<Vec<Seq>, StoreError> {
    let recipients = users.iter().map(|id| user(id)).collect();
    let appended = store.append(Append::new(message(n), recipients)).await?;
    Ok(appended.seqs.into_iter().map(|seq| seq.expect("it was taken")).collect())
}

pub fn receive(store: &dyn Store, id: &str, from: Seq, to: Seq) {
    store.note(&user(id), Note { received: Some((from, to)), ..Note::default() });
}

/// Sequence and number of everything above `after`; checks the stamps, and that both ways of reading agree.
pub fn read(store: &dyn Store, id: &str, after: Seq) -> Vec<(Seq, u64)> {
    let whose = user(id);
    let pairs = |entries: &[Entry]| entries.iter().map(|entry| (entry.seq, number(entry))).collect::<Vec<_>>();
    let stored = || {
        let entries = store.read(&whose, after, ALL).unwrap().entries;
        for entry in &entries {
            assert_eq!((&entry.owner[..], entry.namespace), (id.as_bytes(), store.namespace()));
        }
        pairs(&entries)
    };
    let mut before = stored();
    loop {
        let Some(recent) = store.recent(&whose, after, ALL) else { return before };
        // Something may have been committed in between.
        let behind = stored();
        if behind == before {
            assert_eq!(pairs(&recent.entries), before, "what is at hand in memory is what is stored");
            return before;
        }
        before = behind;
    }
}

/// Waits until `done`, or fails after 120 s.
pub async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let waited = tokio::time::timeout(Duration::from_secs(120), async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    });
    assert!(waited.await.is_ok(), "waited in vain for: {what}");
}

/// Appends until the message is taken.
pub async fn until_taken(store: &dyn Store, payload: &Payload, id: &str) {
    let end = std::time::Instant::now() + Duration::from_secs(120);
    while let Err(error) = store.append(Append::new(payload.clone(), vec![user(id)])).await {
        assert!(std::time::Instant::now() < end, "it is never taken: {error}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
