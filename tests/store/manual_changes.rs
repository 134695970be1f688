//! Tests changes to the keys of a log by an operator or an eviction policy under running servers: later entries are
//! delivered.

use std::sync::Arc;

use mesa::{
    message::{DispatchId, Seq},
    store::{Append, Idempotency, Limits, SessionReport, Store},
};

use crate::{
    redis::{RedisNamespace, read_after, run_command},
    redis_server::Redis,
    support::{acknowledge, append, message, read, user, wait_until},
};

/// Change to the two keys of a log: its state and its stream.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Change {
    Deleted,
    StateDeleted,
    StreamDeleted,
    Restored,
    StateRestored,
    StreamRestored,
}

use Change::*;

const ALL: [Change; 6] = [Deleted, StateDeleted, StreamDeleted, Restored, StateRestored, StreamRestored];

impl Change {
    /// Returns the keys that are deleted, and those that an older copy replaces.
    fn keys(self) -> (&'static [&'static str], &'static [&'static str]) {
        match self {
            Deleted => (&["state", "log"], &[]),
            StateDeleted => (&["state"], &[]),
            StreamDeleted => (&["log"], &[]),
            Restored => (&[], &["state", "log"]),
            StateRestored => (&[], &["state"]),
            StreamRestored => (&[], &["log"]),
        }
    }

    async fn apply(self, namespace: &RedisNamespace) {
        let (deleted, restored) = self.keys();
        for kind in deleted {
            run_command(namespace, &["DEL", &namespace.key(kind, "a")]).await;
        }
        for kind in restored {
            let key = namespace.key(kind, "a");
            assert_eq!(run_command(namespace, &["COPY", &format!("{key} copy"), &key, "REPLACE"]).await, "1");
        }
    }
}

/// Appends these numbers at one server; returns the last sequence.
async fn append_all(store: &dyn Store, numbers: std::ops::RangeInclusive<u64>) -> Seq {
    let mut last = 0;
    for n in numbers {
        let seq = append(store, n, &["a"]).await.unwrap()[0];
        assert!(seq > last, "{seq} after {last}");
        last = seq;
    }
    last
}

/// Opens two servers and fills a log with ten messages, of which a session at the first has read all.
///
/// A copy of both keys is stored after the fifth.
async fn ten_messages(namespace: &RedisNamespace) -> [Arc<dyn Store>; 2] {
    let servers = [namespace.open_default(), namespace.open_default()];
    let [one, other] = &servers;
    one.attach(&user("a"), None).unwrap();
    append_all(&**other, 1..=5).await;
    assert_eq!(read(&**one, "a", 0).len(), 5);
    one.report(&user("a"), SessionReport { acknowledged: Some((1, 2)), hold: Some(2), ..SessionReport::default() });
    wait_until("the entries are acknowledged", || other.state(&user("a")).unwrap().pending == 3).await;
    for kind in ["state", "log"] {
        let key = namespace.key(kind, "a");
        assert_eq!(run_command(namespace, &["COPY", &key, &format!("{key} copy")]).await, "1");
    }
    append_all(&**other, 6..=10).await;
    assert_eq!(read(&**one, "a", 5).len(), 5);
    one.report(&user("a"), SessionReport { acknowledged: Some((3, 8)), hold: Some(8), ..SessionReport::default() });
    wait_until("the entries are acknowledged", || other.state(&user("a")).unwrap().pending == 2).await;
    servers
}

/// Checks that the entries after `after` end with 11 to `last`, and that none stays pending once acknowledged.
async fn assert_delivery_continues(case: &str, store: &dyn Store, after: Seq, last: u64) {
    let expected: Vec<u64> = (11..=last).collect();
    let (numbers, seen) = read_after(store, after);
    assert!(numbers.ends_with(&expected), "{case}: expected {expected:?} at the end of {numbers:?}, after {after}");
    store.report(
        &user("a"),
        SessionReport { acknowledged: Some((1, seen)), hold: Some(seen), ..SessionReport::default() },
    );
    wait_until(&format!("{case}: all entries are acknowledged"), || store.state(&user("a")).unwrap().pending == 0)
        .await;
    append_all(store, last + 1..=last + 1).await;
    assert_eq!(read_after(store, seen).0, [last + 1], "{case}");
}

fn namespaces() -> [RedisNamespace; 2] {
    [RedisNamespace::on(Redis::start()), RedisNamespace::in_cluster()]
}

// covers: G4, G5
#[tokio::test]
async fn log_changed_manually_during_a_session_delivers_later_entries() {
    for namespace in namespaces() {
        for change in ALL {
            let (namespace, case) = (namespace.another(), format!("{change:?}, cluster: {}", namespace.is_cluster()));
            let [one, other] = ten_messages(&namespace).await;
            change.apply(&namespace).await;
            append_all(&*other, 11..=30).await;
            assert_delivery_continues(&case, &*one, 10, 30).await;
        }
    }
}

/// The session detects the change before an append: by its own acknowledgement, or by a read.
// covers: G4, G5
#[tokio::test]
async fn log_changed_manually_and_read_before_an_append_delivers_later_entries() {
    for namespace in namespaces() {
        for change in ALL {
            for acknowledges in [false, true] {
                let case = format!("{change:?}, cluster: {}, acknowledges: {acknowledges}", namespace.is_cluster());
                let namespace = namespace.another();
                let [one, other] = ten_messages(&namespace).await;
                change.apply(&namespace).await;
                if acknowledges {
                    acknowledge(&*one, "a", 9, 10);
                    one.state(&user("a")).unwrap();
                } else {
                    read_after(&*one, 10);
                }
                let seen = read_after(&*one, 10).1;
                append_all(&*other, 11..=13).await;
                assert_delivery_continues(&case, &*one, seen, 13).await;
            }
        }
    }
}

/// A client that resumes keeps its sequence. Without a session the store does not detect an older copy of both keys,
/// nor, in a Redis Cluster, that both are deleted.
// covers: G4, G5
#[tokio::test]
async fn log_changed_manually_without_a_session_delivers_later_entries() {
    for namespace in namespaces() {
        let is_detected = |change: &Change| *change != Restored && (*change != Deleted || !namespace.is_cluster());
        for change in ALL.into_iter().filter(is_detected) {
            let (namespace, case) = (namespace.another(), format!("{change:?}, cluster: {}", namespace.is_cluster()));
            let [one, other] = ten_messages(&namespace).await;
            one.detach(&user("a"), None);
            one.report(&user("a"), SessionReport::default());
            one.close().await.unwrap();
            change.apply(&namespace).await;
            append_all(&*other, 11..=30).await;
            let attached = other.attach(&user("a"), None).unwrap();
            assert!(attached.head > 10, "{case}: {attached:?}");
            assert_delivery_continues(&case, &*other, 10, 30).await;
        }
    }
}

/// Entries that were pending in a deleted stream are reported as lost, and no longer count towards quotas.
// covers: G4
#[tokio::test]
async fn stream_deleted_manually_leaves_no_quota_in_use() {
    for namespace in namespaces() {
        let store = namespace.open(Limits { messages: 5, ..Limits::default() }, Arc::default());
        append_all(&*store, 1..=5).await;
        StreamDeleted.apply(&namespace).await;
        assert_eq!(append(&*store, 6, &["a"]).await.unwrap(), [6]);
        assert_eq!(store.state(&user("a")).unwrap().pending, 1);
        let gaps = store.explain_gaps(&user("a"), None, 1, 5).unwrap();
        assert_eq!(
            gaps.iter().map(|one| (one.from, one.to, one.reason.as_str())).collect::<Vec<_>>(),
            [(1, 5, "lost")]
        );
        assert_eq!(read(&*store, "a", 0), [(6, 6)]);
    }
}

/// Entries pending in a stream are delivered, although the state that counted them is deleted.
// covers: G4
#[tokio::test]
async fn state_deleted_manually_keeps_pending_entries() {
    for namespace in namespaces() {
        let store = namespace.open_default();
        append_all(&*store, 1..=5).await;
        acknowledge(&*store, "a", 1, 2);
        wait_until("the entries are acknowledged", || store.state(&user("a")).unwrap().pending == 3).await;
        StateDeleted.apply(&namespace).await;
        let last = append_all(&*store, 6..=6).await;
        assert!(last > 6, "{last}");
        assert_eq!(read(&*store, "a", 0), [(3, 3), (4, 4), (5, 5), (last, 6)]);
        acknowledge(&*store, "a", 1, last);
        wait_until("the entries are acknowledged", || store.state(&user("a")).unwrap().pending == 0).await;
    }
}

/// A stream without entries still has the last sequence, although its state is deleted.
// covers: G5
#[tokio::test]
async fn state_deleted_manually_with_an_empty_stream_reuses_no_sequence() {
    for namespace in namespaces() {
        let store = namespace.open_default();
        append_all(&*store, 1..=3).await;
        let log = namespace.key("log", "a");
        assert_eq!(run_command(&namespace, &["XDEL", &log, "1-0", "2-0", "3-0"]).await, "3");
        StateDeleted.apply(&namespace).await;
        let seq = append_all(&*store, 4..=4).await;
        assert!(seq > 3, "{seq}");
        assert_eq!(read(&*store, "a", 0), [(seq, 4)]);
    }
}

/// Entries that were trimmed from a stream are reported as lost, and the remaining ones are counted.
// covers: G4
#[tokio::test]
async fn stream_trimmed_manually_is_counted_again() {
    for namespace in namespaces() {
        let store = namespace.open(Limits { messages: 6, ..Limits::default() }, Arc::default());
        append_all(&*store, 1..=6).await;
        assert_eq!(run_command(&namespace, &["XDEL", &namespace.key("log", "a"), "1-0", "2-0", "5-0"]).await, "3");
        append_all(&*store, 7..=9).await;
        assert_eq!(read(&*store, "a", 0), [(3, 3), (4, 4), (6, 6), (7, 7), (8, 8), (9, 9)]);
        let gaps = store.explain_gaps(&user("a"), None, 1, 6).unwrap();
        let lost: Vec<_> =
            gaps.iter().filter(|one| one.reason.as_str() == "lost").map(|one| (one.from, one.to)).collect();
        assert_eq!(lost, [(1, 2), (5, 5)]);
        assert_eq!(store.state(&user("a")).unwrap().pending, 6);
        acknowledge(&*store, "a", 1, 9);
        wait_until("the entries are acknowledged", || store.state(&user("a")).unwrap().pending == 0).await;
    }
}

/// More entries are appended per deletion than milliseconds pass, and the next server has seen none of them.
// covers: G5
#[tokio::test]
async fn log_deleted_repeatedly_reuses_no_sequence() {
    let namespace = RedisNamespace::on(Redis::start());
    let servers = [namespace.open_default(), namespace.open_default()];
    let mut last = 0;
    for round in 0..6 {
        let appends = (0..2_000).map(|n| Append::new(message(n), vec![user("a")])).collect();
        for result in servers[round % 2].append_all(appends).await.unwrap() {
            let seq = result.seqs[0].unwrap();
            assert!(seq > last, "round {round}: {seq} after {last}");
            last = seq;
        }
        Deleted.apply(&namespace).await;
    }
}

/// The key of the result of an id has another type, so Redis rejects that append only.
// covers: G4
#[tokio::test]
async fn append_that_redis_rejects_fails_alone_in_its_batch() {
    for namespace in namespaces() {
        let store = namespace.open_default();
        let key = format!("mesa:result_{}/order", namespace.name());
        assert_eq!(run_command(&namespace, &["SADD", &key, "x"]).await, "1");
        let append = |n: u64, id: Option<&str>| {
            let id = id.map(|id| DispatchId::new(id).unwrap());
            let idempotency = id.map(|id| Idempotency { id, online: vec![false], rejected: Vec::new() });
            Append { idempotency, ..Append::new(message(n), vec![user("a")]) }
        };
        let appends = vec![append(1, None), append(2, Some("order")), append(3, None), append(4, Some("other"))];
        let results = store.append_each(appends).await;
        assert_eq!(results.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false, true, true], "{results:?}");
        assert_eq!(read(&*store, "a", 0), [(1, 1), (2, 3), (3, 4)]);
    }
}
