//! What every engine has to hold.

use std::{
    future::Future,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use mesa::{
    message::{DeviceId, Payload},
    store::{Append, ReadLimit, SessionReport, StoreError},
};

use crate::support::{ALL, AT_ONCE, NEVER, Place, append, message, number, read, receive, until, user};

#[tokio::test]
async fn sequences_are_contiguous_and_reads_are_in_order() {
    for place in Place::all() {
        for tuning in [NEVER, AT_ONCE] {
            let store = place.open(tuning);
            let first = store.state(&user("a")).unwrap().head;
            for n in 1..=20 {
                assert_eq!(append(&*store, n, &["a"]).await.unwrap(), [first + n]);
            }
            let expected: Vec<_> = (1..=20).map(|n| (first + n, n)).collect();
            assert_eq!(read(&*store, "a", first), expected);
            assert_eq!(read(&*store, "a", first + 15), expected[15..]);
            receive(&*store, "a", 1, first + 20);
            store.close().await.unwrap();
        }
    }
}

#[tokio::test]
async fn appends_at_once_are_all_kept_and_each_user_has_them_in_one_order() {
    for place in Place::all() {
        let store = place.open(NEVER);
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
        assert_eq!(a, b, "what came first for one came first for the other");
        assert_eq!(a.iter().map(|(seq, _)| *seq).collect::<Vec<_>>(), (1..=200).collect::<Vec<_>>());
        let mut numbers: Vec<_> = a.iter().map(|(_, n)| *n).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, (0..200).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn ten_thousand_recipients_and_large_messages_fit() {
    for place in Place::all() {
        for tuning in [NEVER, AT_ONCE] {
            let store = place.open(tuning);
            // Where each has a copy of his own, ten thousand large ones would be a matter of memory.
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
async fn a_read_is_bounded_but_never_empty_handed() {
    for place in Place::all() {
        for tuning in [NEVER, AT_ONCE] {
            let store = place.open(tuning);
            let base = store.state(&user("a")).unwrap().head;
            for n in 0..10 {
                append(&*store, n, &["a"]).await.unwrap();
            }
            let count = |limit| store.read(&user("a"), base, limit).unwrap().entries.len();
            assert_eq!(count(ReadLimit { entries: 3, bytes: usize::MAX }), 3);
            assert_eq!(count(ReadLimit { entries: 100, bytes: 1 }), 1);
            assert_eq!(count(ReadLimit { entries: 100, bytes: message(0).as_bytes().len() * 4 }), 4);
            receive(&*store, "a", 1, base + 10);
            store.close().await.unwrap();
        }
    }
}

#[tokio::test]
async fn what_was_received_is_not_read_again_and_what_is_held_still_is() {
    for place in Place::all() {
        for tuning in [NEVER, AT_ONCE] {
            let store = place.open(tuning);
            let base = store.state(&user("a")).unwrap().head;
            for n in 1..=10 {
                append(&*store, n, &["a"]).await.unwrap();
            }
            let seqs = |after| read(&*store, "a", after).into_iter().map(|(seq, _)| seq - base).collect::<Vec<_>>();
            let note = |from, to, hold: Option<u64>| {
                let received = Some((base + from, base + to));
                store.report(
                    &user("a"),
                    SessionReport {
                        acknowledged: received,
                        hold: hold.map(|hold| base + hold),
                        ..SessionReport::default()
                    },
                );
            };
            note(6, 7, None);
            assert_eq!(seqs(base), [1, 2, 3, 4, 5, 8, 9, 10], "an island is not shown again");
            note(1, 4, Some(2));
            assert_eq!(seqs(base), [3, 4, 5, 6, 7, 8, 9, 10], "a session that has read to 2 may have none of these");
            let state = store.state(&user("a")).unwrap();
            assert_eq!((state.acknowledged.through() - base, state.pending), (4, 4));
            note(5, 5, None);
            assert_eq!(seqs(base), [8, 9, 10]);
            note(1, 9_999, None);
            assert_eq!(seqs(base), [0; 0], "received to the end, and not beyond");
            assert_eq!(append(&*store, 11, &["a"]).await.unwrap(), [base + 11]);
            assert_eq!(seqs(base), [11]);
            receive(&*store, "a", 1, base + 11);
            store.close().await.unwrap();
        }
    }
}

#[tokio::test]
async fn clearing_counts_what_it_cleared_and_takes_nothing_that_comes_after() {
    for place in Place::all() {
        let store = place.open(NEVER);
        for n in 1..=5 {
            append(&*store, n, &["a"]).await.unwrap();
        }
        receive(&*store, "a", 1, 2);
        assert_eq!(store.clear(&user("a")).await.unwrap(), 3);
        assert_eq!(store.clear(&user("a")).await.unwrap(), 0);
        assert_eq!(store.clear(&user("nobody")).await.unwrap(), 0);
        append(&*store, 6, &["a"]).await.unwrap();
        assert_eq!(read(&*store, "a", 0), [(6, 6)]);
    }
}

#[tokio::test]
async fn listeners_hear_of_a_commit_when_it_can_be_read() {
    for place in Place::embedded() {
        let store = place.open(NEVER);
        let heard = Arc::new(Mutex::new(Vec::new()));
        let (listening, reading) = (heard.clone(), Arc::downgrade(&store));
        store.on_commit(Arc::new(move |users| {
            let Some(store) = reading.upgrade() else { return };
            for user in users {
                let entries = store.read_cached(user, 0, ALL).unwrap();
                listening.lock().unwrap().push((user.to_string(), entries.entries.last().map(number)));
            }
        }));
        append(&*store, 1, &["b", "a"]).await.unwrap();
        append(&*store, 2, &["a"]).await.unwrap();
        let expected = [("a", 1), ("b", 1), ("a", 2)].map(|(user, n)| (user.to_owned(), Some(n)));
        assert_eq!(*heard.lock().unwrap(), expected);
    }
}

#[tokio::test]
async fn users_are_listed_in_order_page_by_page() {
    for place in Place::all() {
        let store = place.open(NEVER);
        for id in ["b", "a b", "ab", "a", "c"] {
            append(&*store, 1, &[id]).await.unwrap();
        }
        let seen = SystemTime::now();
        store.report(&user("seen"), SessionReport { seen: Some(seen), ..SessionReport::default() });
        until("a user who was only seen to be listed", || store.users(None, 100).unwrap().len() == 6).await;
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
        let apart = state.seen.unwrap().duration_since(seen).unwrap_or_else(|error| error.duration());
        assert!(apart < Duration::from_millis(2), "{apart:?}");
    }
}

#[tokio::test]
async fn pending_bytes_are_those_not_received() {
    for place in Place::all() {
        for tuning in [NEVER, AT_ONCE] {
            let store = place.open(tuning);
            let base = store.state(&user("a")).unwrap().head;
            for n in 1..=9 {
                append(&*store, n, &["a"]).await.unwrap();
            }
            receive(&*store, "a", 1, base + 3);
            let bytes = store.pending_bytes(&user("a")).unwrap();
            assert_eq!(bytes, 6 * message(1).as_bytes().len() as u64);
            receive(&*store, "a", 1, base + 9);
            store.close().await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_closed_store_takes_nothing_and_what_was_taken_is_kept() {
    for place in Place::all() {
        let store = place.open(NEVER);
        let tasks: Vec<_> = (0..50)
            .map(|n| {
                let store = store.clone();
                tokio::spawn(async move { append(&*store, n, &["a"]).await })
            })
            .collect();
        append(&*store, 99, &["b"]).await.unwrap();
        store.close().await.unwrap();
        let mut kept = 0;
        for task in tasks {
            match task.await.unwrap() {
                Ok(_) => kept += 1,
                Err(error) => assert!(matches!(error, StoreError::Closed), "{error}"),
            }
        }
        assert!(matches!(append(&*store, 1, &["a"]).await, Err(StoreError::Closed)));
        assert!(matches!(store.close().await, Err(StoreError::Closed)));
        drop(store);
        let store = place.open(NEVER);
        assert_eq!(read(&*store, "a", 0).len(), kept);
    }
}

#[tokio::test]
async fn an_append_whose_caller_has_gone_is_kept() {
    for place in Place::all() {
        let store = place.open(NEVER);
        let mut append = Box::pin(append(&*store, 1, &["a"]));
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        // On a busy machine it may have been answered by then.
        _ = append.as_mut().poll(&mut cx);
        drop(append);
        until("the append to be read", || read(&*store, "a", 0) == [(1, 1)]).await;
    }
}

/// A cursor that a device took over and one that begins behind it have nothing to do with each other, also when both are
/// read back: what went by the first is not taken for received by the second.
#[tokio::test]
async fn a_cursor_that_begins_anew_does_not_know_what_one_of_that_name_had() {
    for place in Place::all() {
        let store = place.open(NEVER);
        for n in 1..=5 {
            append(&*store, n, &["a"]).await.unwrap();
        }
        receive(&*store, "a", 2, 2);
        append(&*store, 6, &["b"]).await.unwrap();
        let phone = DeviceId::new("phone").unwrap();
        store.attach(&user("a"), Some(&phone)).unwrap();
        store.attach(&user("a"), None).unwrap();
        store.close().await.unwrap();
        drop(store);
        let store = place.open(NEVER);
        let received = |device| store.attach(&user("a"), device).unwrap().acknowledged;
        assert!(received(Some(&phone)).contains(2), "the phone has taken over what was there");
        assert!(!received(None).contains(2), "and clients without a device have begun anew");
        assert_eq!(read(&*store, "a", 0).len(), 5);
        store.close().await.unwrap();
    }
}
