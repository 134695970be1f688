//! Measures the embedded store alone: durable appends, reads, acknowledgements, and opening after a kill.
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
    store.append(append).await.expect("a commit");
}

/// Measures durable appends: by 1, 50 and 1,000 concurrent callers, and of one message to 10,000 users.
fn bench_append(c: &mut Criterion) {
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
            store.append(append).await.expect("a commit")
        });
    });
    group.finish();
}

/// Opens a store with 100 messages for each of 1,000 users, in turns; creates them in a new store.
///
/// `flush_delay` decides whether they are in the write-ahead log or in the value log.
fn open_with_backlogs(runtime: &Runtime, path: &Path, flush_delay: Duration, cache_bytes: u64) -> Arc<dyn Store> {
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

/// Measures reads from memory, from files of the write-ahead log, and from the value log.
fn bench_read(c: &mut Criterion) {
    let runtime = support::runtime();
    let mut group = c.benchmark_group("store_read");
    let mut read = |name: &str, store: &dyn Store, after: u64, entries: usize, users: usize| {
        let limit = ReadLimit { entries, bytes: usize::MAX };
        let mut n = 0;
        group.throughput(Throughput::Elements(entries as u64));
        group.bench_function(name, |b| {
            b.iter(|| {
                n += 1;
                let result = store.read(&user(n % users), after, limit).expect("a read without error");
                assert_eq!(result.entries.len(), entries);
            });
        });
    };
    let (no_flush, cache) = (Duration::from_secs(3600), DiskOptions::new("").cache_bytes);
    let directory = tempfile::tempdir().expect("a directory");
    let store = open_with_backlogs(&runtime, directory.path(), no_flush, cache);
    read("100_entries_of_one_of_1000_users", &*store, 0, 100, USERS);
    read("1_entry_of_one_of_1000_users", &*store, 50, 1, USERS);
    runtime.block_on(store.close()).expect("a close without error");
    drop(store);
    let store = open_with_backlogs(&runtime, directory.path(), no_flush, cache);
    read("100_entries_of_one_of_1000_users_after_a_start", &*store, 0, 100, USERS);
    runtime.block_on(store.close()).expect("a close without error");
    drop(store);
    // With the smallest cache, nearly all reads use files.
    let store = open_with_backlogs(&runtime, directory.path(), no_flush, 1 << 20);
    read("100_entries_of_one_of_1000_users_from_files", &*store, 0, 100, USERS);
    read("1_entry_of_one_of_1000_users_from_files", &*store, 50, 1, USERS);
    drop(store);
    let directory = tempfile::tempdir().expect("a directory");
    let store = open_with_backlogs(&runtime, directory.path(), Duration::ZERO, cache);
    wait_for_flush(&*store, USERS, 99);
    read("100_entries_of_one_of_1000_users_from_value_log", &*store, 0, 100, USERS);
    read("1_entry_of_one_of_1000_users_from_value_log", &*store, 50, 1, USERS);
    drop(store);
    let directory = tempfile::tempdir().expect("a directory");
    let tuning = Tuning { flush_delay: no_flush, ..Tuning::default() };
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

/// Waits until reads no longer come from memory, which is the case after the flush.
///
/// `after` is the sequence before the last entry of each user.
fn wait_for_flush(store: &dyn Store, users: usize, after: u64) {
    let limit = ReadLimit { entries: 1, bytes: usize::MAX };
    while (0..users).any(|n| store.read_cached(&user(n), after, limit).is_some()) {
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Measures one acknowledgement, with the trimming that follows it.
fn bench_acknowledge(c: &mut Criterion) {
    let runtime = support::runtime();
    let (_directory, store) = runtime.block_on(async { store() });
    let mut group = c.benchmark_group("store_acknowledge");
    group.throughput(Throughput::Elements(1));
    let mut n = 0;
    group.bench_function("one_acknowledgement", |b| {
        b.iter_custom(|rounds| {
            let recipient = user(n % USERS);
            n += 1;
            let head = runtime.block_on(async {
                let rounds = usize::try_from(rounds).expect("fits usize");
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
            let elapsed = start.elapsed();
            store.report(&recipient, SessionReport { acknowledged: Some((1, head)), ..SessionReport::default() });
            elapsed
        });
    });
    group.finish();
}

/// Pending messages of all users together.
const PENDING: usize = 100_000;

/// Creates the files of a killed store with [`PENDING`] messages of `users` users.
fn killed_store(runtime: &Runtime, users: usize, flush_delay: Duration) -> TempDir {
    let (directory, image) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
    let flushes = flush_delay.is_zero();
    let store = runtime.block_on(async {
        let tuning = Tuning { flush_delay, ..Tuning::default() };
        let store = open(DiskOptions { tuning, ..options(directory.path()) }).expect("a store");
        for first in (0..PENDING).step_by(1000) {
            let append = |n: usize| Append::new(payload(), vec![user(n % users)]);
            store.append_all((first..first + 1000).map(append).collect()).await.expect("a commit");
        }
        store
    });
    if flushes {
        wait_for_flush(&*store, users, (PENDING / users) as u64 - 1);
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
    // The sync watermark (`mark`) is written last, so it is copied first: the copy has all data that it refers to.
    let mut files: Vec<_> = std::fs::read_dir(from).expect("files").map(|file| file.expect("a file").path()).collect();
    files.sort_by_key(|file| file.file_name().is_none_or(|name| name != "mark"));
    for file in files {
        let target = to.join(file.file_name().expect("a name"));
        if file.is_dir() { copy(&file, &target) } else { _ = std::fs::copy(file, target).expect("copied") }
    }
}

/// Measures opening after a kill, with pending messages in the write-ahead log or in the value log.
fn bench_open(c: &mut Criterion) {
    let runtime = support::runtime();
    let mut group = c.benchmark_group("store_open");
    group.sample_size(10);
    for users in [1, 100] {
        for (place, flush_delay) in [("wal", Duration::from_secs(3600)), ("value_log", Duration::ZERO)] {
            let image = killed_store(&runtime, users, flush_delay);
            group.bench_function(format!("after_a_kill_100000_pending_of_{users}_in_{place}"), |b| {
                b.iter_custom(|rounds| {
                    let mut elapsed = Duration::ZERO;
                    for _ in 0..rounds {
                        let directory = tempfile::tempdir().expect("a directory");
                        copy(image.path(), directory.path());
                        let start = Instant::now();
                        let store = open(options(directory.path())).expect("a store");
                        elapsed += start.elapsed();
                        assert_eq!(store.state(&user(0)).expect("a state").pending, (PENDING / users) as u64);
                    }
                    elapsed
                });
            });
        }
    }
    group.finish();
}

fn main() {
    let mut criterion = support::criterion();
    bench_append(&mut criterion);
    bench_read(&mut criterion);
    bench_acknowledge(&mut criterion);
    bench_open(&mut criterion);
    criterion.final_summary();
    support::table(&["store_append_durably", "store_read", "store_acknowledge", "store_open"]);
}
