//! Measures how much background work on a log of 64 MiB delays durable appends to other users.
#![allow(missing_docs)]

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use mesa::{
    embedded::{
        Tuning,
        tables::{DiskOptions, open},
    },
    message::{CollapseKey, Payload, UserId},
    store::{Append, Limits, Overflow, ReadLimit, SessionReport, Store},
};
use support::{payload, user};
use tempfile::TempDir;

/// Allocator of the binary.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Bytes of data in each message of a long log.
const DATA_BYTES: usize = 1_000;
/// Messages in a long log: 64 MiB.
const MESSAGES: usize = (64 << 20) / DATA_BYTES;
/// Users to whom the measured messages are appended.
const OTHERS: usize = 100;
/// Users whose messages expire at once.
const EXPIRING: usize = 256;
/// Time of a measurement of work that begins once.
const ONCE: Duration = Duration::from_secs(1);
/// Time of a measurement of continuous work.
const CONTINUOUS: Duration = Duration::from_secs(5);
const HOUR: Duration = Duration::from_secs(3600);

/// A store in a temporary directory, and the options with which it was opened.
struct TestStore {
    store: Arc<dyn Store>,
    options: DiskOptions,
    _directory: TempDir,
}

fn heavy() -> UserId {
    UserId::new("heavy").expect("an id")
}

fn message() -> Payload {
    Payload::encode(0, Some(&format!("\"{}\"", "x".repeat(DATA_BYTES))), Some("N")).expect("a payload")
}

impl TestStore {
    /// Opens a store and fills it. With `flush`, waits until the messages are in the value log.
    async fn new(limits: Limits, users: &[UserId], count: usize, ttl: Option<Duration>, flush: bool) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let flush_delay = if flush { Duration::ZERO } else { HOUR };
        let tuning = Tuning { flush_delay, wal_bytes_max: 256 << 20, ..Tuning::default() };
        let options = DiskOptions { tuning, limits, ..DiskOptions::new(directory.path()) };
        let store = open(options.clone()).expect("a store");
        for from in (0..count).step_by(500) {
            let append = Append { ttl, ..Append::new(message(), users.to_vec()) };
            let appends = vec![append; 500.min(count - from)];
            store.append_all(appends).await.expect("a commit");
        }
        let limit = ReadLimit { entries: 1, bytes: 1 };
        while flush && users.iter().any(|user| store.read_cached(user, count as u64 - 1, limit).is_some()) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let delay = if flush { Tuning::default().flush_delay } else { HOUR };
        Self { store, options, _directory: directory }.reopen(delay).await
    }

    async fn reopen(mut self, flush_delay: Duration) -> Self {
        self.store.close().await.expect("a close without error");
        drop(self.store);
        self.options.tuning = Tuning { flush_delay, expiry_interval: Duration::from_millis(10), ..self.options.tuning };
        Self { store: open(self.options.clone()).expect("a store"), ..self }
    }

    /// Appends messages to other users for a time, one after the other. Returns the latencies, sorted.
    async fn measure(&self, time: Duration) -> Vec<Duration> {
        let end = Instant::now() + time;
        let mut latencies = Vec::new();
        for n in (0..OTHERS).cycle() {
            let began = Instant::now();
            if began > end {
                break;
            }
            self.store.append(Append::new(payload(), vec![user(n)])).await.expect("a commit");
            latencies.push(began.elapsed());
        }
        latencies.sort_unstable();
        latencies
    }

    /// Measures while messages are appended to the long log, every second one with this key.
    async fn measure_during_appends(&self, key: Option<CollapseKey>) -> Vec<Duration> {
        let (stop, store) = (Arc::new(AtomicBool::new(false)), self.store.clone());
        let stopped = stop.clone();
        let appends = tokio::spawn(async move {
            for n in 0_u64.. {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                let collapse = key.clone().filter(|_| n.is_multiple_of(2));
                let append = Append { collapse, ..Append::new(message(), vec![heavy()]) };
                store.append(append).await.expect("a commit");
            }
        });
        let latencies = self.measure(CONTINUOUS).await;
        stop.store(true, Ordering::Relaxed);
        appends.await.expect("no panic");
        latencies
    }
}

fn print_row(name: &str, latencies: &[Duration]) {
    let at = |percent: usize| latencies[(latencies.len() - 1) * percent / 100].as_secs_f64() * 1e3;
    println!("{name:<46}{:>8}{:>11.2} ms{:>11.2} ms{:>11.2} ms", latencies.len(), at(50), at(99), at(100));
}

async fn run() {
    let unlimited = Limits { messages: u64::MAX, bytes: u64::MAX, free_bytes: 0, ..Limits::default() };
    let long = async || TestStore::new(unlimited, &[heavy()], MESSAGES, None, true).await;
    println!("{:<46}{:>8}{:>14}{:>14}{:>14}", "appends to other users during", "count", "p50", "p99", "max");

    let test = long().await;
    print_row("no other work", &test.measure(ONCE).await);
    print_row("replaced messages (collapse)", &test.measure_during_appends(CollapseKey::new("state").ok()).await);
    print_row("messages to the long log, without a quota", &test.measure_during_appends(None).await);
    test.store.clear(&heavy()).await.expect("a clear");
    print_row("a clear", &test.measure(ONCE).await);

    let test = long().await;
    let acknowledge = |to| SessionReport { acknowledged: Some((1, to)), ..SessionReport::default() };
    test.store.report(&heavy(), acknowledge(MESSAGES as u64 - 10));
    print_row("a trim after one acknowledgement", &test.measure(ONCE).await);

    let quota = Limits { messages: MESSAGES as u64, overflow: Overflow::DropOldest, ..unlimited };
    let test = TestStore::new(quota, &[heavy()], MESSAGES, None, true).await;
    print_row("messages above the quota (dropOldest)", &test.measure_during_appends(None).await);

    let test = TestStore::new(unlimited, &[heavy()], MESSAGES, None, false).await;
    let test = test.reopen(Duration::ZERO).await;
    print_row("a flush", &test.measure(ONCE).await);

    let users: Vec<UserId> = (0..EXPIRING).map(|n| UserId::new(&format!("expiring-{n}")).expect("an id")).collect();
    let test = TestStore::new(unlimited, &users, MESSAGES / EXPIRING, Some(HOUR), true).await;
    test.options.ahead_ms.fetch_add(2 * 3_600_000, Ordering::Relaxed);
    print_row("expiry of the messages of 256 users", &test.measure(ONCE).await);

    let live = UserId::new("live").expect("an id");
    let test = TestStore::new(unlimited, &[heavy(), live], MESSAGES, None, true).await;
    test.store.report(&heavy(), acknowledge(MESSAGES as u64));
    test.store.report(&UserId::new("live").expect("an id"), acknowledge(MESSAGES as u64 / 8));
    print_row("compaction", &test.measure(CONTINUOUS).await);
}

fn main() {
    support::runtime().block_on(run());
}
