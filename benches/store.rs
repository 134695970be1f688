//! The store alone: appending durably, reading, trimming, opening.
#![allow(missing_docs)]

mod support;

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use criterion::{BenchmarkId, Criterion, Throughput};
use futures_util::future::join_all;
use mesa::{
    embedded::{
        Tuning,
        tables::{DiskOptions, open},
    },
    store::{Append, Limits, ReadLimit, SessionReport, Store},
};
use support::{payload, user};
use tempfile::TempDir;
use tokio::runtime::Runtime;

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

/// What is pending in the journal, or in inboxes: a hundred messages for each of a thousand users, by turns.
fn read_from(runtime: &Runtime, path: &Path, flush_delay: Duration, cache_bytes: u64) -> Arc<dyn Store> {
    runtime.block_on(async {
        let tuning = Tuning { flush_delay, ..Tuning::default() };
        let store = open(DiskOptions { tuning, cache_bytes, ..options(path) }).expect("a store");
        if store.state(&user(0)).expect("a state").head == 0 {
            for _ in 0..100 {
                join_all((0..USERS).map(|n| append(&*store, n))).await;
            }
        }
        store
    })
}

fn reading(c: &mut Criterion) {
    let runtime = support::runtime();
    let mut group = c.benchmark_group("store_read");
    let mut read = |name: &str, store: &dyn Store, after: u64, entries: usize, users: usize| {
        let limit = ReadLimit { entries, bytes: usize::MAX };
        let mut n = 0;
        group.throughput(Throughput::Elements(entries as u64));
        group.bench_function(name, |b| {
            b.iter(|| {
                n += 1;
                let found = store.read(&user(n % users), after, limit).expect("it is read");
                assert_eq!(found.entries.len(), entries);
            });
        });
    };
    let (never, cache) = (Duration::from_secs(3600), DiskOptions::new("").cache_bytes);
    let directory = tempfile::tempdir().expect("a directory");
    let store = read_from(&runtime, directory.path(), never, cache);
    read("100_entries_of_one_of_1000_users", &*store, 0, 100, USERS);
    read("1_entry_of_one_of_1000_users", &*store, 50, 1, USERS);
    runtime.block_on(store.close()).expect("closed");
    drop(store);
    let store = read_from(&runtime, directory.path(), never, cache);
    read("100_entries_of_one_of_1000_users_after_a_start", &*store, 0, 100, USERS);
    runtime.block_on(store.close()).expect("closed");
    drop(store);
    // The cache has room for next to nothing.
    let store = read_from(&runtime, directory.path(), never, 1 << 20);
    read("100_entries_of_one_of_1000_users_from_files", &*store, 0, 100, USERS);
    read("1_entry_of_one_of_1000_users_from_files", &*store, 50, 1, USERS);
    drop(store);
    let directory = tempfile::tempdir().expect("a directory");
    let store = read_from(&runtime, directory.path(), Duration::ZERO, cache);
    wait_until_settled(&*store, USERS, 99);
    read("100_entries_of_one_of_1000_users_from_inboxes", &*store, 0, 100, USERS);
    read("1_entry_of_one_of_1000_users_from_inboxes", &*store, 50, 1, USERS);
    drop(store);
    let directory = tempfile::tempdir().expect("a directory");
    let tuning = Tuning { flush_delay: never, ..Tuning::default() };
    let store = runtime.block_on(async {
        let store = open(DiskOptions { tuning, cache_bytes: 1 << 20, ..options(directory.path()) }).expect("a store");
        for _ in 0..4000 {
            append(&*store, 0).await;
        }
        store
    });
    read("100_entries_of_100_commits_from_files", &*store, 0, 100, 1);
    group.finish();
}

/// Reads come from memory until it is settled; `last` is the last but one entry that each user has.
fn wait_until_settled(store: &dyn Store, users: usize, last: u64) {
    let limit = ReadLimit { entries: 1, bytes: usize::MAX };
    while (0..users).any(|n| store.read_cached(&user(n), last, limit).is_some()) {
        std::thread::sleep(Duration::from_millis(10));
    }
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
                store.report(&recipient, SessionReport { acknowledged: received, ..SessionReport::default() });
            }
            let took = start.elapsed();
            store.report(&recipient, SessionReport { acknowledged: Some((1, head)), ..SessionReport::default() });
            took
        });
    });
    group.finish();
}

/// What is pending, over all users.
const PENDING: usize = 100_000;

/// A store with that much pending for so many users, as a kill leaves it.
fn killed(runtime: &Runtime, users: usize, flush_delay: Duration) -> TempDir {
    let (directory, image) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
    let settles = flush_delay.is_zero();
    let store = runtime.block_on(async {
        let tuning = Tuning { flush_delay, ..Tuning::default() };
        let store = open(DiskOptions { tuning, ..options(directory.path()) }).expect("a store");
        for first in (0..PENDING).step_by(1000) {
            let append = |n: usize| Append::new(payload(), vec![user(n % users)]);
            store.append_all((first..first + 1000).map(append).collect()).await.expect("they are kept");
        }
        store
    });
    if settles {
        wait_until_settled(&*store, users, (PENDING / users) as u64 - 1);
    }
    copy(directory.path(), image.path());
    image
}

fn options(path: &Path) -> DiskOptions {
    let limits = Limits { messages: 2 * PENDING as u64, free_bytes: 0, ..Limits::default() };
    DiskOptions { limits, ..DiskOptions::new(path) }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a directory");
    // What was written last is copied first, so that nothing is missing that something else tells of.
    let mut files: Vec<_> = std::fs::read_dir(from).expect("files").map(|file| file.expect("a file").path()).collect();
    files.sort_by_key(|file| file.file_name().is_none_or(|name| name != "mark"));
    for file in files {
        let target = to.join(file.file_name().expect("a name"));
        if file.is_dir() { copy(&file, &target) } else { _ = std::fs::copy(file, target).expect("copied") }
    }
}

/// Opening after a kill, with what is pending in the journal and in the inboxes.
fn opening(c: &mut Criterion) {
    let runtime = support::runtime();
    let mut group = c.benchmark_group("store_open");
    group.sample_size(10);
    for users in [1, 100] {
        for (place, flush_delay) in [("journal", Duration::from_secs(3600)), ("inboxes", Duration::ZERO)] {
            let image = killed(&runtime, users, flush_delay);
            group.bench_function(format!("after_a_kill_100000_pending_of_{users}_in_{place}"), |b| {
                b.iter_custom(|rounds| {
                    let mut took = Duration::ZERO;
                    for _ in 0..rounds {
                        let directory = tempfile::tempdir().expect("a directory");
                        copy(image.path(), directory.path());
                        let start = Instant::now();
                        let store = open(options(directory.path())).expect("a store");
                        took += start.elapsed();
                        assert_eq!(store.state(&user(0)).expect("a state").pending, (PENDING / users) as u64);
                    }
                    took
                });
            });
        }
    }
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
