//! Tests of what a flush writes, and of users that no flush has written yet.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;

use super::{intercept::Intercept, wait::until};
use crate::{
    embedded::{
        self,
        options::{Options, Tuning},
        tables::{
            contract::{EngineError, Table, Tables},
            memory::{self, Memory},
        },
        wal::contract::Wal,
    },
    message::{Payload, UserId},
    store::{Append, Limits, Store},
};

type Keys = Vec<(Table, Vec<u8>)>;

/// Engine in memory that records the keys of all puts.
#[derive(Clone, Default)]
struct Puts {
    tables: Memory,
    keys: Arc<Mutex<Keys>>,
}

impl Puts {
    /// Takes the keys that were put into a table, in the order of the puts.
    fn of(&self, table: Table) -> Vec<Vec<u8>> {
        let keys = self.keys.lock();
        keys.iter().filter(|(of, _)| *of == table).map(|(_, key)| key.clone()).collect()
    }
}

impl Intercept for Puts {
    fn memory(&self) -> &Memory {
        &self.tables
    }

    fn on_put(&self, table: Table, key: &[u8], value: &[u8]) -> Result<(), EngineError> {
        self.keys.lock().push((table, key.to_vec()));
        self.tables.put(table, key, value)
    }
}

fn options(flush_delay: Duration) -> Options {
    let tuning = Tuning { flush_delay, ..Tuning::default() };
    Options { tuning, limits: Limits { free_bytes: 0, ..Limits::default() }, ..Options::default() }
}

fn append(id: &str) -> Append {
    let payload = Payload::encode(0, Some("1"), None).unwrap();
    Append::new(payload, vec![UserId::new(id).unwrap()])
}

fn listed(store: &dyn Store, after: Option<&str>, limit: usize) -> Vec<String> {
    let after = after.map(|id| UserId::new(id).unwrap());
    let users = store.users(after.as_ref(), limit).unwrap();
    assert!(users.iter().all(|(_, state)| state.as_ref().unwrap().known));
    users.into_iter().map(|(user, _)| user.as_str().to_owned()).collect()
}

/// Consecutive keys are in the same pages of sled, and each put costs several microseconds of CPU.
#[tokio::test]
async fn flush_of_new_users_puts_each_block_and_row_once_in_order() {
    let puts = Puts::default();
    let store = embedded::open(Arc::new(puts.clone()), options(Duration::ZERO)).unwrap();
    // In the order of a multiplication, which is not that of the ids.
    let ids: Vec<String> = (1..=300).map(|n| format!("user-{:03}", n * 7 % 307)).collect();
    let appends = ids.iter().map(|id| append(id)).collect();
    store.append_all(appends).await.unwrap();
    until("the flush", || puts.tables.record_numbers().is_none()).await;
    for table in [Table::Log, Table::Users] {
        let keys = puts.of(table);
        assert_eq!(keys.len(), ids.len(), "{table:?}");
        assert!(keys.is_sorted(), "{table:?}");
    }
    store.close().await.unwrap();
}

#[tokio::test]
async fn new_users_are_listed_before_their_first_flush_and_after_a_crash() {
    let tables = Memory::default();
    let store = memory::open(&tables, options(Duration::ZERO)).unwrap();
    for id in ["b", "d"] {
        store.append(append(id)).await.unwrap();
    }
    until("the flush", || tables.record_numbers().is_none()).await;
    store.close().await.unwrap();
    drop(store);
    let store = memory::open(&tables, options(Duration::from_secs(3600))).unwrap();
    for id in ["e", "b", "a", "c"] {
        store.append(append(id)).await.unwrap();
    }
    assert_eq!(listed(&*store, None, 10), ["a", "b", "c", "d", "e"]);
    assert_eq!(listed(&*store, None, 2), ["a", "b"]);
    assert_eq!(listed(&*store, Some("b"), 2), ["c", "d"]);
    assert_eq!(listed(&*store, Some("d"), 2), ["e"]);
    store.erase(&UserId::new("c").unwrap()).await.unwrap();
    assert_eq!(listed(&*store, None, 10), ["a", "b", "d", "e"]);
    // Nothing but the WAL has "a" and "e" in this copy.
    let killed = tables.deep_clone();
    store.close().await.unwrap();
    drop(store);
    let store = memory::open(&killed, options(Duration::from_secs(3600))).unwrap();
    assert_eq!(listed(&*store, None, 10), ["a", "b", "d", "e"]);
    store.close().await.unwrap();
}
