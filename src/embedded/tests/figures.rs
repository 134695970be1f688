//! Tests of the figures for monitoring: they agree with the users' logs, in the WAL, after the flush and after a restart.

use std::{path::Path, sync::Arc, time::Duration};

use super::wait::until;
use crate::{
    embedded::{
        self,
        options::{Options, Tuning},
        tables::{DiskOptions, open::open_engine},
    },
    message::{Payload, UserId},
    store::{Append, Limits, SessionReport, Store},
};

/// Number of users, and messages for each.
const USERS: usize = 3;
const MESSAGES: u64 = 40;

fn user(n: usize) -> UserId {
    UserId::new(&format!("user-{n}")).unwrap()
}

/// A body of this size is stored once for all users. It counts for each of them.
fn payload() -> Payload {
    Payload::encode(0, Some(&format!("\"{}\"", "x".repeat(20_000))), None).unwrap()
}

fn open(path: &Path, flush_delay: Duration) -> Arc<dyn Store> {
    let tuning = Tuning { flush_delay, ..Tuning::default() };
    let limits = Limits { free_bytes: 0, ..Limits::default() };
    let engine = Arc::new(open_engine(&DiskOptions::new(path)).unwrap());
    embedded::open(engine, Options { limits, tuning, ..Options::default() }).unwrap()
}

fn pending(store: &dyn Store) -> (u64, u64) {
    let figures = store.figures().unwrap();
    (figures.pending_messages, figures.pending_bytes)
}

fn acknowledge(store: &dyn Store, user: &UserId, through: u64) {
    store.report(user, SessionReport { acknowledged: Some((1, through)), ..SessionReport::default() });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pending_figures_agree_with_logs_in_wal_after_flush_after_restart_and_after_acknowledgements() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("store");
    let all = (USERS as u64 * MESSAGES, USERS as u64 * MESSAGES * payload().as_bytes().len() as u64);
    let store = open(&path, Duration::from_secs(3600));
    assert_eq!(pending(&*store), (0, 0));
    for _ in 0..MESSAGES {
        store.append(Append::new(payload(), (0..USERS).map(user).collect())).await.unwrap();
    }
    assert_eq!(pending(&*store), all, "in the WAL");
    until("the figures of the WAL", || store.figures().unwrap().wal_bytes > 20_000 * MESSAGES).await;
    let figures = store.figures().unwrap();
    assert!(figures.memory_bytes > 0 && figures.flush_lag > Duration::ZERO, "{figures:?}");
    let (used, free) = figures.disk.expect("a store on disk");
    assert!(used > figures.wal_bytes && free > 0, "{figures:?}");
    assert_eq!(figures.commit_latency.count(), MESSAGES);
    let recent = figures.commit_latency.recent();
    assert!(0 < recent.p50 && recent.p50 <= recent.p99 && recent.p99 <= recent.max, "{recent:?}");
    store.close().await.unwrap();
    drop(store);

    let store = open(&path, Duration::ZERO);
    until("the flush", || store.figures().unwrap().wal_bytes == 0).await;
    until("all messages in blocks", || pending(&*store) == all).await;
    assert_eq!(store.figures().unwrap().flush_lag, Duration::ZERO);
    store.close().await.unwrap();
    drop(store);

    let store = open(&path, Duration::ZERO);
    until("the count after opening", || pending(&*store) == all).await;
    // Both while messages of earlier starts are replaced by new ones, and after it.
    let mut left = all;
    for n in 0..USERS {
        store.append(Append::new(payload(), vec![user(n)])).await.unwrap();
        acknowledge(&*store, &user(n), MESSAGES);
        let bytes = all.1 / all.0;
        left = (left.0 + 1 - MESSAGES, left.1 + bytes - MESSAGES * bytes);
        until("the removal of acknowledged messages", || pending(&*store) == left).await;
    }
    (0..USERS).for_each(|n| acknowledge(&*store, &user(n), MESSAGES + 1));
    until("no message", || pending(&*store) == (0, 0)).await;
    store.append(Append::new(payload(), vec![user(0)])).await.unwrap();
    store.erase(&user(0)).await.unwrap();
    until("no message after an erasure", || pending(&*store) == (0, 0)).await;
    store.close().await.unwrap();
}
