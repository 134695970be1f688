//! Tests that the WAL and its memory are bounded while no flush makes room.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::FutureExt;

use super::intercept::Intercept;
use crate::{
    embedded::{
        self,
        options::{Options, Tuning},
        tables::{
            contract::{Cause, EngineError, Table, Tables},
            memory::Memory,
        },
    },
    message::{Payload, UserId},
    store::{Append, ReadLimit, Store, StoreError},
};

/// Engine whose value log cannot be written for the time being, as without file descriptors.
#[derive(Default)]
struct Held {
    tables: Memory,
    is_held: AtomicBool,
}

impl Intercept for Held {
    fn memory(&self) -> &Memory {
        &self.tables
    }

    fn on_put(&self, table: Table, key: &[u8], value: &[u8]) -> Result<(), EngineError> {
        if table == Table::Log && self.is_held.load(Ordering::Relaxed) {
            return Err(EngineError { cause: Cause::Exhausted, what: "no descriptor is free".into() });
        }
        self.tables.put(table, key, value)
    }
}

fn user_id(user: usize) -> UserId {
    UserId::new(&format!("user-{user}")).unwrap()
}

fn append(user: usize, bytes: usize) -> Append {
    let payload = Payload::from_stored(Bytes::from(vec![b'x'; bytes]));
    Append::new(payload, vec![user_id(user)])
}

/// Fills the store until it is busy, and then makes room. Returns the number of accepted appends.
async fn fill(tuning: Tuning, bytes: usize) -> usize {
    const APPENDS_MAX: usize = 1000;
    let engine = Arc::new(Held::default());
    engine.is_held.store(true, Ordering::Relaxed);
    let options = Options { tuning, ..Options::default() };
    let store: Arc<dyn Store> = embedded::open(engine.clone(), options).unwrap();
    let mut accepted = 0;
    let error = loop {
        assert!(accepted < APPENDS_MAX, "the store is never busy");
        match store.append(append(accepted, bytes)).await {
            Ok(_) => accepted += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, StoreError::Busy(_)), "{error}");
    assert!(error.to_string().contains("Retry"), "{error}");
    let clear = store.clear(&user_id(0)).await.unwrap_err();
    assert!(matches!(clear, StoreError::Busy(_)), "{clear}");
    engine.is_held.store(false, Ordering::Relaxed);
    // Waits for the flush, and is accepted.
    let mut late = store.append(append(APPENDS_MAX, bytes)).await;
    while matches!(late, Err(StoreError::Busy(_))) {
        late = store.append(append(APPENDS_MAX, bytes)).await;
    }
    late.unwrap();
    let limit = ReadLimit { entries: 10, bytes: 1 << 20 };
    for user in (0..accepted).chain([APPENDS_MAX]) {
        let read = store.read(&user_id(user), 0, limit).unwrap();
        assert_eq!(read.entries.len(), 1, "user {user}");
    }
    store.close().await.unwrap();
    accepted
}

fn tuning() -> Tuning {
    let busy_timeout = Duration::from_millis(20);
    Tuning { flush_delay: Duration::from_secs(3600), busy_timeout, ..Tuning::default() }
}

#[tokio::test]
async fn appends_are_busy_at_twice_the_bound_of_the_wal_and_later_accepted() {
    let accepted = fill(Tuning { wal_bytes_max: 50_000, ..tuning() }, 1000).await;
    assert!((90..=100).contains(&accepted), "{accepted} records of somewhat more than 1000 bytes");
}

#[tokio::test]
async fn appends_are_busy_at_twice_the_bound_of_memory_and_later_accepted() {
    let accepted = fill(Tuning { memory_bytes_max: 40_000, ..tuning() }, 1).await;
    assert!((40..200).contains(&accepted), "{accepted} logs of some hundred bytes");
}

#[tokio::test]
async fn store_at_its_bound_commits_queued_appends_when_it_is_closed() {
    let engine = Arc::new(Held::default());
    engine.is_held.store(true, Ordering::Relaxed);
    let busy_timeout = Duration::from_secs(3600);
    let tuning = Tuning { wal_bytes_max: 1000, busy_timeout, ..tuning() };
    let store: Arc<dyn Store> = embedded::open(engine.clone(), Options { tuning, ..Options::default() }).unwrap();
    store.append(append(0, 3000)).await.unwrap();
    let mut waiting = store.append(append(1, 3000));
    // Queues the append, which waits for a flush.
    assert!((&mut waiting).now_or_never().is_none());
    store.close().await.unwrap();
    waiting.await.unwrap();
}

#[tokio::test]
async fn unused_logs_leave_memory_with_the_flush_if_there_are_many() {
    let tuning = Tuning { memory_bytes_max: 20_000, busy_timeout: Duration::from_secs(60), ..tuning() };
    let store = embedded::EmbeddedStore::open(Arc::new(Memory::default()), Options { tuning, ..Options::default() });
    let store = store.unwrap();
    for user in 0..2000 {
        store.append(append(user, 1)).await.unwrap();
    }
    let loaded = || store.shared.logs.loaded_bytes();
    let all = 2000 * crate::embedded::user_log::LOG_BYTES;
    assert!(loaded() < all, "{} of {all} bytes", loaded());
}
