//! Tests that lists of users count pending messages without reading message bodies.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;

use super::{intercept::Intercept, wait::until};
use crate::{
    embedded::{
        self,
        options::{Options, Tuning},
        tables::{contract::Table, memory::Memory},
    },
    message::{Payload, Seq, UserId},
    store::{Append, ReadLimit, SessionReport, Store},
};

/// Bytes of payload of one message; the JSON around it has 25 more.
const DATA_BYTES: usize = 1000;

/// Tables in memory that count the bytes of blocks that are read.
#[derive(Clone, Default)]
struct ReadCounter {
    tables: Memory,
    read: Arc<AtomicU64>,
}

impl ReadCounter {
    /// Returns the bytes read since the last call.
    fn take(&self) -> u64 {
        self.read.swap(0, Ordering::Relaxed)
    }
}

impl Intercept for ReadCounter {
    fn memory(&self) -> &Memory {
        &self.tables
    }

    fn on_read(&self, table: Table, value: &Bytes) {
        if table == Table::Log {
            self.read.fetch_add(value.len() as u64, Ordering::Relaxed);
        }
    }
}

fn user(id: &str) -> UserId {
    UserId::new(id).unwrap()
}

/// Opens a store in which each user has `count` flushed messages. Returns also the bytes of one message.
async fn filled(tables: &ReadCounter, users: &[&str], count: usize) -> (Arc<dyn Store>, u64) {
    let tuning = Tuning { flush_delay: Duration::ZERO, ..Tuning::default() };
    let store = embedded::open(Arc::new(tables.clone()), Options { tuning, ..Options::default() }).unwrap();
    let payload = Payload::encode(0, Some(&format!("\"{}\"", "x".repeat(DATA_BYTES))), Some("N")).unwrap();
    let bytes = payload.as_bytes().len() as u64;
    let append = Append::new(payload, users.iter().map(|id| user(id)).collect());
    store.append_all(vec![append; count]).await.unwrap();
    let last = ReadLimit { entries: 1, bytes: 1 };
    until("flush", || users.iter().all(|id| store.read_cached(&user(id), 0, last).is_none())).await;
    tables.take();
    (store, bytes)
}

#[tokio::test]
async fn users_and_pending_bytes_are_counted_without_reading_messages() {
    let tables = ReadCounter::default();
    let (store, bytes) = filled(&tables, &["a", "b", "c"], 300).await;
    let listed = store.users(None, 10).unwrap();
    assert_eq!(listed.len(), 3);
    for (user, state) in &listed {
        let state = state.as_ref().unwrap();
        assert_eq!((state.pending, state.pending_bytes, state.damaged), (300, 300 * bytes, false));
        assert_eq!(store.pending_bytes(user).unwrap(), 300 * bytes);
        assert_eq!(store.state(user).unwrap().pending_bytes, 300 * bytes);
    }
    assert_eq!(tables.take(), 0, "no block is read to count messages");

    // Acknowledging all messages reads no body either.
    store.report(&user("a"), SessionReport { acknowledged: Some((1, Seq::MAX)), ..SessionReport::default() });
    let state = store.state(&user("a")).unwrap();
    assert_eq!((state.pending, state.pending_bytes), (0, 0));
    until("trim", || tables.tables.blocks_of("a") == 0).await;
    assert_eq!(tables.take(), 0, "no block is read to remove it");
    store.close().await.unwrap();
}

#[tokio::test]
async fn pending_bytes_after_out_of_order_acknowledgement_are_exact_below_limit_and_estimated_above() {
    for (count, exact) in [(300, true), (3000, false)] {
        let tables = ReadCounter::default();
        let (store, bytes) = filled(&tables, &["a"], count).await;
        store.report(&user("a"), SessionReport { acknowledged: Some((101, 200)), ..SessionReport::default() });
        let left = (count as u64 - 100) * bytes;
        let found = store.pending_bytes(&user("a")).unwrap();
        assert!(
            if exact { found == left } else { found.abs_diff(left) < bytes },
            "{found} bytes, and {left} are pending"
        );
        let read = tables.take();
        assert!(read <= 2 << 20, "at most 2 MiB are read, not {read} bytes");
        let listed = store.users(None, 10).unwrap();
        assert!(listed[0].1.as_ref().unwrap().pending_bytes.abs_diff(left) < bytes);
        assert_eq!(tables.take(), 0, "no block is read for a list");
        store.close().await.unwrap();
    }
}
