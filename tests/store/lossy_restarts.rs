//! Tests lossy restarts: the sequences that a log skips, and their gap reason.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use mesa::{
    embedded::{
        Tuning,
        tables::{DiskOptions, open},
    },
    store::{Durability, GapReason, Store},
};

use crate::{
    disk::copy,
    support::{FLUSH_AT_ONCE, FLUSH_NEVER, append, gaps, read, user},
};

/// Number of sequences that a log skips once after lossy restarts.
const SEQUENCE_RESERVE: u64 = 65_536;

fn open_lossy(path: &Path, tuning: Tuning) -> Arc<dyn Store> {
    open(DiskOptions { durability: Durability::Never, tuning, ..DiskOptions::new(path) }).unwrap()
}

/// Copies what a crash leaves of a store to a new directory.
fn copy_after_crash(path: &Path, store: Arc<dyn Store>) -> tempfile::TempDir {
    let copied = tempfile::tempdir().unwrap();
    copy(path, copied.path());
    drop(store);
    copied
}

// covers: G4, G5
#[tokio::test]
async fn consecutive_lossy_restarts_leave_one_gap_with_reason_restart() {
    for tuning in [FLUSH_NEVER, FLUSH_AT_ONCE] {
        let mut location = tempfile::tempdir().unwrap();
        let store = open_lossy(location.path(), tuning);
        append(&*store, 1, &["a", "b"]).await.unwrap();
        location = copy_after_crash(location.path(), store);
        let mut last = 1;
        for run in 2..=5 {
            let store = open_lossy(location.path(), tuning);
            let state = store.state(&user("a")).unwrap();
            assert_eq!((state.head, state.pending), (1 + SEQUENCE_RESERVE, 1), "in run {run}");
            assert_eq!(gaps(&*store, "a", 2, 1 + SEQUENCE_RESERVE), [(2, 1 + SEQUENCE_RESERVE, GapReason::Restart)]);
            assert_eq!(read(&*store, "a", 0), [(1, 1)]);
            // User `a` connects and disconnects, and user `b` receives a message in each run.
            store.attach(&user("a"), None).unwrap();
            store.detach(&user("a"), None);
            let assigned = append(&*store, run, &["b"]).await.unwrap()[0];
            assert_eq!(assigned, last + SEQUENCE_RESERVE + 1, "one gap for each run with an append");
            last = assigned;
            location = copy_after_crash(location.path(), store);
        }
        let store = open_lossy(location.path(), tuning);
        assert_eq!(append(&*store, 6, &["a", "new"]).await.unwrap(), [2 + SEQUENCE_RESERVE, 1]);
        assert_eq!(read(&*store, "a", 0), [(1, 1), (2 + SEQUENCE_RESERVE, 6)]);
        assert_eq!(gaps(&*store, "a", 2, 1 + SEQUENCE_RESERVE), [(2, 1 + SEQUENCE_RESERVE, GapReason::Restart)]);
        store.close().await.unwrap();
        drop(store);
        let store = open_lossy(location.path(), tuning);
        assert_eq!(
            append(&*store, 7, &["a", "new"]).await.unwrap(),
            [3 + SEQUENCE_RESERVE, 2],
            "no gap after a clean close"
        );
    }
}

// covers: G5
#[tokio::test]
async fn first_entry_of_a_log_with_durability_never_is_synced_before_the_result() {
    let location = tempfile::tempdir().unwrap();
    let syncs = Arc::new(AtomicU64::new(0));
    let counter = syncs.clone();
    let sync = move || {
        counter.fetch_add(1, Ordering::SeqCst);
        Ok(())
    };
    let options = DiskOptions {
        durability: Durability::Never,
        tuning: FLUSH_NEVER,
        sync: Some(Arc::new(sync)),
        ..DiskOptions::new(location.path())
    };
    let store = open(options).unwrap();
    for (users, synced) in [(&["a"][..], true), (&["a"], false), (&["a", "b"], true), (&["b", "a"], false)] {
        let before = syncs.load(Ordering::SeqCst);
        append(&*store, 1, users).await.unwrap();
        assert_eq!(syncs.load(Ordering::SeqCst) > before, synced, "{users:?}");
    }
    // All logs of a commit share its sync.
    let before = syncs.load(Ordering::SeqCst);
    let many: Vec<_> = (0..1000).map(|n| format!("many-{n}")).collect();
    append(&*store, 2, &many.iter().map(String::as_str).collect::<Vec<_>>()).await.unwrap();
    assert_eq!(syncs.load(Ordering::SeqCst), before + 1);
}
