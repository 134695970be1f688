//! Tests the contract on every engine.

use std::{
    future::Future,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use mesa::{
    message::{DeviceId, Payload},
    store::{Append, ReadLimit, SessionReport, StoreError},
};

use crate::support::{
    ALL, FLUSH_AT_ONCE, FLUSH_NEVER, Location, acknowledge, append, message, number, read, user, wait_until,
};

// covers: G2
#[tokio::test]
async fn sequences_are_contiguous_and_reads_are_in_order() {
    for location in Location::all() {
        for tuning in [FLUSH_NEVER, FLUSH_AT_ONCE] {
            let store = location.open(tuning);
            let first = store.state(&user("a")).unwrap().head;
            for n in 1..=20 {
                assert_eq!(append(&*store, n, &["a"]).await.unwrap(), [first + n]);
            }
            let expected: Vec<_> = (1..=20).map(|n| (first + n, n)).collect();
            assert_eq!(read(&*store, "a", first), expected);
            assert_eq!(read(&*store, "a", first + 15), expected[15..]);
            acknowledge(&*store, "a", 1, first + 20);
            store.close().await.unwrap();
        }
    }
}

// covers: G2
#[tokio::test]
async fn concurrent_appends_are_all_stored_in_one_order_for_all_recipients() {
    for location in Location::all() {
        let store = location.open(FLUSH_NEVER);
        let tasks: Vec<_> = (0..200)
            .map(|n| {
                let store = store.clone();
                tokio::spawn(async move { append(&*store, n, &["a", "b"]).await.unwrap() })
            })
            .collect();
        for task in tasks {
            assert_eq!(task.await.unwrap().len(), 2);
        }
        let (a, b) = (read(&*store, "a", 0), read(&*store, "b", 0));
        assert_eq!(a, b, "both users have the entries in the same order");
        assert_eq!(a.iter().map(|(seq, _)| *seq).collect::<Vec<_>>(), (1..=200).collect::<Vec<_>>());
        let mut numbers: Vec<_> = a.iter().map(|(_, n)| *n).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, (0..200).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn append_of_a_large_message_to_ten_thousand_recipients_is_stored() {
    for location in Location::all() {
        for tuning in [FLUSH_NEVER, FLUSH_AT_ONCE] {
            let store = location.open(tuning);
            // A remote store has a copy per recipient. Ten thousand large ones would take 650 MB of memory.
            let count = if store.is_remote() { 1_000 } else { 10_000 };
            let recipients: Vec<_> = (0..count).map(|n| user(&format!("user-{n:05}"))).collect();
            let large = format!("\"{}\"", "x".repeat(65_000));
            let payload = Payload::encode(0, Some(&large), None).unwrap();
            for payload in [message(7), payload] {
                let appended = store.append(Append::new(payload.clone(), recipients.clone()));
                let seqs: Vec<_> = appended.await.unwrap().seqs.into_iter().map(Result::unwrap).collect();
                for at in [0, 1, 777, count - 1] {
                    let entries = store.read(&recipients[at], seqs[at] - 1, ALL).unwrap().entries;
                    assert_eq!((entries.len(), entries[0].seq), (1, seqs[at]));
                    assert_eq!(entries[0].payload, payload);
                }
            }
            store.close().await.unwrap();
        }
    }
}

#[tokio::test]
async fn read_with_a_limit_returns_at_most_that_and_at_least_one_entry() {
    for location in Location::all() {
        for tuning in [FLUSH_NEVER, FLUSH_AT_ONCE] {
            let store = location.open(tuning);
            let base = store.state(&user("a")).unwrap().head;
            for n in 0..10 {
                append(&*store, n, &["a"]).await.unwrap();
            }
            let count = |limit| store.read(&user("a"), base, limit).unwrap().entries.len();
            assert_eq!(count(ReadLimit { entries: 3, bytes: usize::MAX }), 3);
            assert_eq!(count(ReadLimit { entries: 100, bytes: 1 }), 1);
            assert_eq!(count(ReadLimit { entries: 100, bytes: message(0).as_bytes().len() * 4 }), 4);
            acknowledge(&*store, "a", 1, base + 10);
            store.close().await.unwrap();
        }
    }
}

#[tokio::test]
async fn acknowledged_entry_is_read_only_while_a_session_holds_it() {
    for location in Location::all() {
        for tuning in [FLUSH_NEVER, FLUSH_AT_ONCE] {
            let store = location.open(tuning);
            let base = store.state(&user("a")).unwrap().head;
            for n in 1..=10 {
                append(&*store, n, &["a"]).await.unwrap();
            }
            let seqs = |after| read(&*store, "a", after).into_iter().map(|(seq, _)| seq - base).collect::<Vec<_>>();
            let report = |from, to, hold: Option<u64>| {
                let acknowledged = Some((base + from, base + to));
                store.report(
                    &user("a"),
                    SessionReport { acknowledged, hold: hold.map(|hold| base + hold), ..SessionReport::default() },
                );
            };
            report(6, 7, None);
            assert_eq!(seqs(base), [1, 2, 3, 4, 5, 8, 9, 10], "an entry acknowledged out of order is not returned");
            report(1, 4, Some(2));
            assert_eq!(
                seqs(base),
                [3, 4, 5, 6, 7, 8, 9, 10],
                "a session that holds 2 may not have received later entries"
            );
            let state = store.state(&user("a")).unwrap();
            assert_eq!((state.acknowledged.through() - base, state.pending), (4, 4));
            report(5, 5, None);
            assert_eq!(seqs(base), [8, 9, 10]);
            report(1, 9_999, None);
            assert_eq!(seqs(base), [0; 0], "an acknowledgement beyond the head covers all entries and none to come");
            assert_eq!(append(&*store, 11, &["a"]).await.unwrap(), [base + 11]);
            assert_eq!(seqs(base), [11]);
            acknowledge(&*store, "a", 1, base + 11);
            store.close().await.unwrap();
        }
    }
}

#[tokio::test]
async fn clear_returns_the_number_of_pending_entries_and_leaves_later_ones() {
    for location in Location::all() {
        let store = location.open(FLUSH_NEVER);
        for n in 1..=5 {
            append(&*store, n, &["a"]).await.unwrap();
        }
        acknowledge(&*store, "a", 1, 2);
        assert_eq!(store.clear(&user("a")).await.unwrap(), 3);
        assert_eq!(store.clear(&user("a")).await.unwrap(), 0);
        assert_eq!(store.clear(&user("unknown")).await.unwrap(), 0);
        append(&*store, 6, &["a"]).await.unwrap();
        assert_eq!(read(&*store, "a", 0), [(6, 6)]);
    }
}

#[tokio::test]
async fn commit_listener_is_called_when_the_entries_can_be_read() {
    for location in Location::embedded() {
        let store = location.open(FLUSH_NEVER);
        let calls = Arc::new(Mutex::new(Vec::new()));
        let (recorder, reading) = (calls.clone(), Arc::downgrade(&store));
        store.on_commit(Arc::new(move |users| {
            let Some(store) = reading.upgrade() else { return };
            for user in users {
                let entries = store.read_cached(user, 0, ALL).unwrap();
                recorder.lock().unwrap().push((user.to_string(), entries.entries.last().map(number)));
            }
        }));
        append(&*store, 1, &["b", "a"]).await.unwrap();
        append(&*store, 2, &["a"]).await.unwrap();
        let expected = [("a", 1), ("b", 1), ("a", 2)].map(|(user, n)| (user.to_owned(), Some(n)));
        assert_eq!(*calls.lock().unwrap(), expected);
    }
}

#[tokio::test]
async fn users_are_listed_in_order_by_page() {
    for location in Location::all() {
        let store = location.open(FLUSH_NEVER);
        for id in ["b", "a b", "ab", "a", "c"] {
            append(&*store, 1, &[id]).await.unwrap();
        }
        let seen = SystemTime::now();
        store.report(&user("seen"), SessionReport { seen: Some(seen), ..SessionReport::default() });
        wait_until("a user without entries is listed once seen", || store.users(None, 100).unwrap().len() == 6).await;
        let page = |after: Option<&str>, limit| {
            let users = store.users(after.map(user).as_ref(), limit).unwrap();
            users.into_iter().map(|(user, _)| user.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(page(None, 100), ["a", "a b", "ab", "b", "c", "seen"]);
        assert_eq!(page(None, 2), ["a", "a b"]);
        assert_eq!(page(Some("a b"), 2), ["ab", "b"]);
        assert_eq!(page(Some("seen"), 2), [""; 0]);
        assert_eq!(page(None, 0), [""; 0]);
        let state = store.state(&user("seen")).unwrap();
        let difference = state.seen.unwrap().duration_since(seen).unwrap_or_else(|error| error.duration());
        assert!(difference < Duration::from_millis(2), "{difference:?}");
    }
}

#[tokio::test]
async fn pending_bytes_exclude_acknowledged_entries() {
    for location in Location::all() {
        for tuning in [FLUSH_NEVER, FLUSH_AT_ONCE] {
            let store = location.open(tuning);
            let base = store.state(&user("a")).unwrap().head;
            for n in 1..=9 {
                append(&*store, n, &["a"]).await.unwrap();
            }
            acknowledge(&*store, "a", 1, base + 3);
            let bytes = store.pending_bytes(&user("a")).unwrap();
            assert_eq!(bytes, 6 * message(1).as_bytes().len() as u64);
            acknowledge(&*store, "a", 1, base + 9);
            store.close().await.unwrap();
        }
    }
}

// covers: G1
#[tokio::test]
async fn closed_store_rejects_appends_and_has_every_answered_one() {
    for location in Location::all() {
        let store = location.open(FLUSH_NEVER);
        let tasks: Vec<_> = (0..50)
            .map(|n| {
                let store = store.clone();
                tokio::spawn(async move { append(&*store, n, &["a"]).await })
            })
            .collect();
        append(&*store, 99, &["b"]).await.unwrap();
        store.close().await.unwrap();
        let mut accepted = 0;
        for task in tasks {
            match task.await.unwrap() {
                Ok(_) => accepted += 1,
                Err(error) => assert!(matches!(error, StoreError::Closed), "{error}"),
            }
        }
        assert!(matches!(append(&*store, 1, &["a"]).await, Err(StoreError::Closed)));
        assert!(matches!(store.close().await, Err(StoreError::Closed)));
        drop(store);
        let store = location.open(FLUSH_NEVER);
        assert_eq!(read(&*store, "a", 0).len(), accepted);
    }
}

#[tokio::test]
async fn append_with_a_dropped_future_is_stored() {
    for location in Location::all() {
        let store = location.open(FLUSH_NEVER);
        let mut append = Box::pin(append(&*store, 1, &["a"]));
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        // On a busy machine the first poll may already return the result.
        _ = append.as_mut().poll(&mut cx);
        drop(append);
        wait_until("the entry is read", || read(&*store, "a", 0) == [(1, 1)]).await;
    }
}

/// The first device of a user takes over the shared cursor. The shared cursor that is created after that must not
/// inherit its acknowledgements, also after both are read from the store.
#[tokio::test]
async fn shared_cursor_created_after_a_device_took_it_over_has_no_acknowledgements() {
    for location in Location::all() {
        let store = location.open(FLUSH_NEVER);
        for n in 1..=5 {
            append(&*store, n, &["a"]).await.unwrap();
        }
        acknowledge(&*store, "a", 2, 2);
        append(&*store, 6, &["b"]).await.unwrap();
        let phone = DeviceId::new("phone").unwrap();
        store.attach(&user("a"), Some(&phone)).unwrap();
        store.attach(&user("a"), None).unwrap();
        store.close().await.unwrap();
        drop(store);
        let store = location.open(FLUSH_NEVER);
        let acknowledged = |device| store.attach(&user("a"), device).unwrap().acknowledged;
        assert!(acknowledged(Some(&phone)).contains(2), "the phone has the acknowledgements of the shared cursor");
        assert!(!acknowledged(None).contains(2), "the new shared cursor has no acknowledgement of 2");
        assert_eq!(read(&*store, "a", 0).len(), 5);
        store.close().await.unwrap();
    }
}
