//! Restarts that may have lost sequences: what a log passes over, and what is said of it.

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
    store::{Durability, Gap, GapReason, Store},
};

use crate::{
    disk::copy,
    support::{AT_ONCE, NEVER, append, read, user},
};

/// What a log passes over once after lossy restarts.
const RESERVE: u64 = 65_536;

fn lossy(path: &Path, tuning: Tuning) -> Arc<dyn Store> {
    open(DiskOptions { durability: Durability::Never, tuning, ..DiskOptions::new(path) }).unwrap()
}

fn reasons(store: &dyn Store, from: u64, to: u64) -> Vec<(u64, u64, GapReason)> {
    let missed = store.explain_gaps(&user("a"), None, from, to).unwrap();
    missed.into_iter().map(|Gap { from, to, reason }| (from, to, reason)).collect()
}

/// What a crash leaves of a store, as a store of its own.
fn crashed(path: &Path, store: Arc<dyn Store>) -> tempfile::TempDir {
    let left = tempfile::tempdir().unwrap();
    copy(path, left.path());
    drop(store);
    left
}

#[tokio::test]
async fn lossy_restarts_in_a_row_leave_one_gap_with_a_reason_of_its_own() {
    for tuning in [NEVER, AT_ONCE] {
        let mut place = tempfile::tempdir().unwrap();
        let store = lossy(place.path(), tuning);
        append(&*store, 1, &["a", "b"]).await.unwrap();
        place = crashed(place.path(), store);
        let mut last = 1;
        for life in 2..=5 {
            let store = lossy(place.path(), tuning);
            let state = store.state(&user("a")).unwrap();
            assert_eq!((state.head, state.pending), (1 + RESERVE, 1), "in life {life}");
            assert_eq!(reasons(&*store, 2, 1 + RESERVE), [(2, 1 + RESERVE, GapReason::Restart)]);
            assert_eq!(read(&*store, "a", 0), [(1, 1)]);
            // This user comes and goes, and another gets a message in each life.
            store.attach(&user("a"), None).unwrap();
            store.detach(&user("a"), None);
            let given = append(&*store, life, &["b"]).await.unwrap()[0];
            assert_eq!(given, last + RESERVE + 1, "one gap for each life in which something was appended");
            last = given;
            place = crashed(place.path(), store);
        }
        let store = lossy(place.path(), tuning);
        assert_eq!(append(&*store, 6, &["a", "new"]).await.unwrap(), [2 + RESERVE, 1]);
        assert_eq!(read(&*store, "a", 0), [(1, 1), (2 + RESERVE, 6)]);
        assert_eq!(reasons(&*store, 2, 1 + RESERVE), [(2, 1 + RESERVE, GapReason::Restart)]);
        store.close().await.unwrap();
        drop(store);
        let store = lossy(place.path(), tuning);
        assert_eq!(append(&*store, 7, &["a", "new"]).await.unwrap(), [3 + RESERVE, 2], "closed in order: no gap");
    }
}

#[tokio::test]
async fn first_entry_of_a_log_is_synced_before_it_is_answered_whatever_the_durability() {
    let place = tempfile::tempdir().unwrap();
    let syncs = Arc::new(AtomicU64::new(0));
    let counted = syncs.clone();
    let sync = move || {
        counted.fetch_add(1, Ordering::SeqCst);
        Ok(())
    };
    let options = DiskOptions {
        durability: Durability::Never,
        tuning: NEVER,
        sync: Some(Arc::new(sync)),
        ..DiskOptions::new(place.path())
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
