//! The store alone: appending durably, reading, trimming, opening.
#![allow(missing_docs)]

mod support;

use std::{sync::Arc, time::Instant};

use criterion::{BenchmarkId, Criterion, Throughput};
use futures_util::future::join_all;
use mesa::store::{
    Append, Note, ReadLimit, Store,
    disk::{DiskOptions, open},
};
use support::{payload, user};
use tempfile::TempDir;

const USERS: usize = 1_000;

fn store() -> (TempDir, Arc<dyn Store>) {
    let directory = tempfile::tempdir().expect("a directory");
    let store = open(DiskOptions::new(directory.path())).expect("a store");
    (directory, store)
}

async fn append(store: &dyn Store, n: usize) {
    let append = Append::new(payload(), vec![user(n % USERS)]);
    store.append(append).await.expect("it is kept");
}

/// As many callers as named, each waiting for its own message to be durable.
fn appending(c: &mut Criterion) {
    let runtime = support::runtime();
    let mut group = c.benchmark_group("store_append_durably");
    for callers in [1, 50, 1000] {
        let (_directory, store) = runtime.block_on(async { store() });
        group.throughput(Throughput::Elements(callers as u64));
        group.bench_function(BenchmarkId::from_parameter(format!("{callers}_at_once")), |b| {
            b.to_async(&runtime).iter(|| join_all((0..callers).map(|n| append(&*store, n))));
        });
    }
    let (_directory, store) = runtime.block_on(async { store() });
    let recipients: Vec<_> = (0..10_000).map(user).collect();
    group.throughput(Throughput::Elements(10_000));
    group.bench_function("one_message_to_10000_users", |b| {
        b.to_async(&runtime).iter(|| async {
            let append = Append::new(payload(), recipients.clone());
            store.append(append).await.expect("it is kept")
        });
    });
    group.finish();
}

fn reading(c: &mut Criterion) {
    let runtime = support::runtime();
    let (_directory, store) = runtime.block_on(async { store() });
    runtime.block_on(async {
        for _ in 0..100 {
            join_all((0..USERS).map(|n| append(&*store, n))).await;
        }
    });
    let mut group = c.benchmark_group("store_read");
    group.throughput(Throughput::Elements(100));
    let limit = ReadLimit { entries: 100, bytes: usize::MAX };
    let mut n = 0;
    group.bench_function("100_entries_of_one_of_1000_users", |b| {
        b.iter(|| {
            n += 1;
            let entries = store.read(&user(n % USERS), 0, limit).expect("it is read");
            assert_eq!(entries.entries.len(), 100);
        });
    });
    group.finish();
}

/// What a receipt costs, with the trimming that follows it.
fn trimming(c: &mut Criterion) {
    let runtime = support::runtime();
    let (_directory, store) = runtime.block_on(async { store() });
    let mut group = c.benchmark_group("store_receive");
    group.throughput(Throughput::Elements(1));
    let mut n = 0;
    group.bench_function("a_receipt", |b| {
        b.iter_custom(|rounds| {
            let recipient = user(n % USERS);
            n += 1;
            let head = runtime.block_on(async {
                let rounds = usize::try_from(rounds).expect("few");
                for _ in 0..rounds.div_ceil(1000) {
                    join_all((0..1000).map(|_| append(&*store, n - 1))).await;
                }
                store.state(&recipient).expect("a state").head
            });
            let first = head - rounds;
            let start = Instant::now();
            for seq in first..first + rounds {
                let received = Some((seq + 1, seq + 1));
                store.note(&recipient, Note { received, ..Note::default() });
            }
            let took = start.elapsed();
            store.note(&recipient, Note { received: Some((1, head)), ..Note::default() });
            took
        });
    });
    group.finish();
}

fn opening(c: &mut Criterion) {
    let runtime = support::runtime();
    let (directory, store) = runtime.block_on(async { store() });
    runtime.block_on(async {
        for _ in 0..100 {
            join_all((0..USERS).map(|n| append(&*store, n))).await;
        }
        store.close().await.expect("it closes");
    });
    drop(store);
    let mut group = c.benchmark_group("store_open");
    group.sample_size(10);
    group.bench_function("with_100000_pending_in_the_journal", |b| {
        b.iter(|| {
            let store = open(DiskOptions::new(directory.path())).expect("a store");
            assert_eq!(store.state(&user(7)).expect("a state").pending, 100);
            runtime.block_on(store.close()).expect("it closes");
        });
    });
    group.finish();
}

fn main() {
    let mut criterion = support::criterion();
    appending(&mut criterion);
    reading(&mut criterion);
    trimming(&mut criterion);
    opening(&mut criterion);
    criterion.final_summary();
    support::table(&["store_append_durably", "store_read", "store_receive", "store_open"]);
}
