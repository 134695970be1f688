//! Tests limits: age, TTL, quotas and devices. Tests advance the clock by hours instead of waiting.

use std::time::Duration;

use mesa::{
    embedded::Tuning,
    message::{CollapseKey, Seq},
    store::{Append, GapReason, Limits, Overflow, RejectionReason, SessionReport, Store},
};

use crate::support::{
    FLUSH_AT_ONCE, FLUSH_NEVER, HOUR, Location, acknowledge, advance_clock, append, append_one, device, gaps, message,
    open_options, read, reopen, sized, user, wait_until, wait_until_flushed,
};

fn acknowledge_as(store: &dyn Store, id: &str, name: &str, to: Seq) {
    let acknowledged = Some((1, to));
    store.report(&user(id), SessionReport { device: Some(device(name)), acknowledged, ..SessionReport::default() });
}

fn devices(store: &dyn Store, id: &str) -> Vec<String> {
    let devices = store.state(&user(id)).unwrap().devices;
    devices.into_iter().map(|device| device.device.as_str().to_owned()).collect()
}

fn with_ttl(n: u64, ttl: Duration, id: &str) -> Append {
    Append { ttl: Some(ttl), ..Append::new(message(n), vec![user(id)]) }
}

fn with_key(n: u64, key: &str, id: &str) -> Append {
    Append { collapse: Some(CollapseKey::new(key).unwrap()), ..Append::new(message(n), vec![user(id)]) }
}

#[tokio::test]
async fn device_offline_beyond_its_age_is_removed_with_entries_pending_only_for_it() {
    for location in Location::all() {
        let options = open_options(Limits { device_age: Some(24 * HOUR), ..Limits::default() });
        let store = location.open_with(FLUSH_AT_ONCE, &options);
        for name in ["phone", "laptop"] {
            store.attach(&user("a"), Some(&device(name))).unwrap();
        }
        for n in 1..=3 {
            append(&*store, n, &["a"]).await.unwrap();
        }
        acknowledge_as(&*store, "a", "laptop", 3);
        store.detach(&user("a"), Some(&device("phone")));
        wait_until_flushed(&*store, "a").await;
        advance_clock(&options, 23);
        // This append and flush give expiry an occasion to run. It must remove nothing yet.
        append(&*store, 4, &["b"]).await.unwrap();
        wait_until_flushed(&*store, "b").await;
        assert_eq!((devices(&*store, "a").len(), store.state(&user("a")).unwrap().pending), (2, 3));
        advance_clock(&options, 2);
        wait_until("the phone is removed", || devices(&*store, "a") == ["laptop"]).await;
        assert_eq!((read(&*store, "a", 0), store.state(&user("a")).unwrap().pending), (vec![], 0));
        if let Location::Memory(tables) = &location {
            wait_until("its blocks are removed", || tables.blocks_of("a") == 0).await;
        }
        let store = reopen(store, &location, FLUSH_AT_ONCE, &options).await;
        assert_eq!((devices(&*store, "a"), read(&*store, "a", 0)), (vec!["laptop".to_owned()], vec![]));
    }
}

#[tokio::test]
async fn device_online_beyond_its_age_is_not_removed_after_the_server_is_killed() {
    for location in Location::all() {
        let options = open_options(Limits { device_age: Some(24 * HOUR), ..Limits::default() });
        let store = location.open_with(FLUSH_AT_ONCE, &options);
        for name in ["offline", "online", "brief"] {
            store.attach(&user("a"), Some(&device(name))).unwrap();
        }
        store.detach(&user("a"), Some(&device("offline")));
        append(&*store, 1, &["a"]).await.unwrap();
        wait_until_flushed(&*store, "a").await;
        let seen = || {
            let devices = store.state(&user("a")).unwrap().devices;
            devices.into_iter().find(|one| one.device.as_str() == "online").unwrap().seen
        };
        let attached = seen();
        advance_clock(&options, 20);
        wait_until("the time at which the device was seen is stored", || seen() > attached).await;
        store.detach(&user("a"), Some(&device("brief")));
        wait_until_flushed(&*store, "a").await;
        // The device online is not detached. The close differs from a kill only in that it flushes.
        let store = reopen(store, &location, FLUSH_AT_ONCE, &options).await;
        advance_clock(&options, 10);
        wait_until("the device offline is removed", || devices(&*store, "a").len() < 3).await;
        assert_eq!(devices(&*store, "a"), ["online", "brief"]);
    }
}

#[tokio::test]
async fn last_cursor_of_a_user_is_never_removed() {
    for location in Location::all() {
        let options = open_options(Limits { device_age: Some(24 * HOUR), ..Limits::default() });
        let store = location.open_with(FLUSH_AT_ONCE, &options);
        store.attach(&user("a"), Some(&device("phone"))).unwrap();
        for n in 1..=3 {
            append(&*store, n, &["a"]).await.unwrap();
        }
        acknowledge_as(&*store, "a", "phone", 2);
        store.detach(&user("a"), Some(&device("phone")));
        wait_until_flushed(&*store, "a").await;
        // The removal of an old device of user `b` shows that expiry has run.
        for name in ["older", "newer"] {
            store.attach(&user("b"), Some(&device(name))).unwrap();
            store.detach(&user("b"), Some(&device(name)));
            advance_clock(&options, 1);
        }
        append(&*store, 4, &["b"]).await.unwrap();
        wait_until_flushed(&*store, "b").await;
        advance_clock(&options, 1000);
        wait_until("the older device is removed", || devices(&*store, "b") == ["newer"]).await;
        assert_eq!(devices(&*store, "a"), ["phone"], "the only device of a user stays");
        let store = reopen(store, &location, FLUSH_AT_ONCE, &options).await;
        assert_eq!((devices(&*store, "a"), read(&*store, "a", 0)), (vec!["phone".to_owned()], vec![(3, 3)]));
        assert_eq!(devices(&*store, "b"), ["newer"]);
        let attached = store.attach(&user("a"), Some(&device("phone"))).unwrap();
        assert_eq!(attached.acknowledged.through(), 2, "its cursor is unchanged");
    }
}

#[tokio::test]
async fn expired_entries_are_removed_without_a_session() {
    for location in Location::all() {
        let options = open_options(Limits::default());
        let store = location.open_with(FLUSH_AT_ONCE, &options);
        for n in 1..=3 {
            append_one(&*store, with_ttl(n, HOUR, "a")).await;
            append_one(&*store, with_ttl(n, 3 * HOUR, "later")).await;
        }
        append(&*store, 4, &["a"]).await.unwrap();
        wait_until_flushed(&*store, "a").await;
        wait_until_flushed(&*store, "later").await;
        assert_eq!((read(&*store, "a", 0).len(), store.state(&user("a")).unwrap().pending), (4, 4));
        advance_clock(&options, 2);
        assert_eq!(read(&*store, "a", 0), [(4, 4)], "expired entries are hidden");
        wait_until("the expired entries are removed", || store.state(&user("a")).unwrap().pending == 1).await;
        assert_eq!(store.pending_bytes(&user("a")).unwrap(), message(4).as_bytes().len() as u64);
        assert_eq!(gaps(&*store, "a", 1, 3), [(1, 3, GapReason::Expired)]);
        assert_eq!(store.state(&user("later")).unwrap().pending, 3, "the TTL of these has not ended");
        advance_clock(&options, 2);
        wait_until("all entries of the other user are removed", || store.state(&user("later")).unwrap().pending == 0)
            .await;
        if let Location::Memory(tables) = &location {
            wait_until("its blocks are removed", || tables.blocks_of("later") == 0 && tables.blocks_of("a") == 1).await;
        }
        let store = reopen(store, &location, FLUSH_AT_ONCE, &options).await;
        assert_eq!((read(&*store, "a", 0), read(&*store, "later", 0)), (vec![(4, 4)], vec![]));
        assert_eq!(append(&*store, 5, &["a", "later"]).await.unwrap(), [5, 4], "sequences continue");
    }
}

#[tokio::test]
async fn entry_with_age_and_ttl_expires_at_the_earlier_of_both() {
    for location in Location::all() {
        for tuning in [FLUSH_NEVER, FLUSH_AT_ONCE] {
            let options = open_options(Limits { age: Some(10 * HOUR), ..Limits::default() });
            let store = location.open_with(tuning, &options);
            let base = store.state(&user("a")).unwrap().head;
            append(&*store, 1, &["a"]).await.unwrap();
            append_one(&*store, with_ttl(2, 5 * HOUR, "a")).await;
            append_one(&*store, with_ttl(3, 20 * HOUR, "a")).await;
            let shown = || read(&*store, "a", base).into_iter().map(|(_, n)| n).collect::<Vec<_>>();
            advance_clock(&options, 4);
            assert_eq!(shown(), [1, 2, 3]);
            advance_clock(&options, 2);
            assert_eq!(shown(), [1, 3]);
            advance_clock(&options, 5);
            assert_eq!(shown(), [0; 0]);
            append(&*store, 4, &["a"]).await.unwrap();
            assert_eq!(shown(), [4]);
            acknowledge(&*store, "a", 1, base + 4);
            reopen(store, &location, tuning, &options).await.close().await.unwrap();
        }
    }
}

/// Size of most messages in the tests of quotas, in bytes.
const SIZE: usize = 100;
/// Quota of five messages, and of bytes for ten.
const FIVE: Limits = Limits {
    messages: 5,
    bytes: 10 * SIZE as u64,
    age: None,
    overflow: Overflow::DropOldest,
    device_age: None,
    devices: 16,
    ids_window: HOUR,
    ids: 1000,
    store_bytes: None,
    free_bytes: 0,
};

/// Appends messages of `SIZE` bytes; waits until they are flushed, if `flushed`.
async fn fill(store: &dyn Store, numbers: std::ops::RangeInclusive<u64>, flushed: bool) {
    for n in numbers {
        let appended = append_one(store, Append::new(sized(n, SIZE), vec![user("a")])).await;
        assert_eq!((appended.seqs, appended.dropped), (vec![Ok(n)], 0));
    }
    if flushed {
        wait_until_flushed(store, "a").await;
    }
}

// covers: G4
#[tokio::test]
async fn oldest_entries_in_value_log_and_wal_are_evicted_and_reported() {
    for (flushed, unflushed) in [(5, 0), (0, 5), (3, 2)] {
        for location in Location::all() {
            check_eviction(location, flushed, unflushed).await;
        }
    }
}

/// Evicts from five entries, of which `flushed` are in the value log and `unflushed` in the write-ahead log.
async fn check_eviction(location: Location, flushed: u64, unflushed: u64) {
    let options = open_options(FIVE);
    let mut store = location.open_with(FLUSH_AT_ONCE, &options);
    if flushed > 0 {
        fill(&*store, 1..=flushed, true).await;
    }
    store = reopen(store, &location, FLUSH_NEVER, &options).await;
    fill(&*store, flushed + 1..=flushed + unflushed, false).await;
    // Its bytes require the eviction of four.
    let large = append_one(&*store, Append::new(sized(6, 9 * SIZE), vec![user("a")])).await;
    assert_eq!((large.seqs, large.dropped), (vec![Ok(6)], 4), "{flushed} in the value log");
    // The quota of messages requires no eviction; the quota of bytes requires that of the last of the five.
    let next = append_one(&*store, Append::new(sized(7, SIZE), vec![user("a")])).await;
    assert_eq!((next.seqs, next.dropped), (vec![Ok(7)], 1));
    for _ in 0..2 {
        assert_eq!(read(&*store, "a", 0), [(6, 6), (7, 7)]);
        assert_eq!(gaps(&*store, "a", 1, 5), [(1, 5, GapReason::Quota)]);
        assert_eq!(gaps(&*store, "a", 3, 4), [(3, 4, GapReason::Quota)]);
        assert_eq!(store.state(&user("a")).unwrap().pending, 2);
        assert_eq!(store.pending_bytes(&user("a")).unwrap(), 10 * SIZE as u64);
        store = reopen(store, &location, FLUSH_NEVER, &options).await;
    }
}

#[tokio::test]
async fn evicted_acknowledged_entries_are_not_counted_as_dropped() {
    for location in Location::all() {
        for tuning in [FLUSH_NEVER, FLUSH_AT_ONCE] {
            let options = open_options(FIVE);
            let location = location.another();
            let store = location.open_with(tuning, &options);
            fill(&*store, 1..=5, tuning.flush_delay.is_zero()).await;
            acknowledge(&*store, "a", 2, 3);
            let large = append_one(&*store, Append::new(sized(6, 9 * SIZE), vec![user("a")])).await;
            assert_eq!((large.seqs, large.dropped), (vec![Ok(6)], 2), "the first and the fourth are dropped");
            assert_eq!(read(&*store, "a", 0), [(5, 5), (6, 6)]);
        }
    }
}

// covers: G4
#[tokio::test]
async fn message_above_the_quota_is_rejected_until_entries_are_acknowledged() {
    for location in Location::all() {
        for tuning in [FLUSH_NEVER, FLUSH_AT_ONCE] {
            let options = open_options(Limits { overflow: Overflow::Reject, ..FIVE });
            let store = location.open_with(tuning, &options);
            let base = store.state(&user("a")).unwrap().head;
            let send = async |n: u64, bytes: usize| {
                let mut appended = append_one(&*store, Append::new(sized(n, bytes), vec![user("a"), user("b")])).await;
                acknowledge(&*store, "b", 1, Seq::MAX);
                assert!(appended.seqs.pop().unwrap().is_ok(), "the other user is below the quota");
                appended.seqs.pop().unwrap().map(|seq| seq - base)
            };
            for n in 1..=5 {
                assert_eq!(send(n, SIZE).await, Ok(n));
            }
            if tuning.flush_delay.is_zero() {
                wait_until_flushed(&*store, "a").await;
            }
            assert_eq!(send(6, SIZE).await, Err(RejectionReason::Quota), "expected a rejection of the sixth message");
            acknowledge(&*store, "a", 1, base + 1);
            assert_eq!(
                send(6, 6 * SIZE + 1).await,
                Err(RejectionReason::Quota),
                "expected a rejection one byte above the quota"
            );
            assert_eq!(send(6, 6 * SIZE).await, Ok(6));
            assert_eq!(send(7, SIZE).await, Err(RejectionReason::Quota));
            acknowledge(&*store, "a", 1, base + 6);
            assert_eq!(send(7, SIZE).await, Ok(7), "a rejected message is assigned no sequence");
            acknowledge(&*store, "a", 1, base + 7);
            store.close().await.unwrap();
        }
    }
}

#[tokio::test]
async fn newer_message_with_a_collapse_key_replaces_the_pending_one_in_value_log_and_wal() {
    for flushed in [false, true] {
        for location in Location::all() {
            for hold in [None, Some(0)] {
                let location = location.another();
                let options = open_options(Limits::default());
                let mut store = location.open_with(if flushed { FLUSH_AT_ONCE } else { FLUSH_NEVER }, &options);
                append_one(&*store, with_key(1, "state", "a")).await;
                append_one(&*store, with_key(2, "other", "a")).await;
                if flushed {
                    wait_until_flushed(&*store, "a").await;
                }
                store.report(&user("a"), SessionReport { hold, ..SessionReport::default() });
                append_one(&*store, with_key(3, "state", "a")).await;
                for _ in 0..2 {
                    assert_eq!(read(&*store, "a", 0), [(2, 2), (3, 3)], "flushed {flushed}, hold {hold:?}");
                    assert_eq!(gaps(&*store, "a", 1, 1), [(1, 1, GapReason::Collapsed)]);
                    assert_eq!(store.state(&user("a")).unwrap().pending, 2);
                    assert_eq!(store.pending_bytes(&user("a")).unwrap(), 2 * message(1).as_bytes().len() as u64);
                    store = reopen(store, &location, FLUSH_NEVER, &options).await;
                }
                // Collapse keys survive a restart.
                append_one(&*store, with_key(4, "other", "a")).await;
                assert_eq!(read(&*store, "a", 0), [(3, 3), (4, 4)]);
            }
        }
    }
}

#[tokio::test]
async fn acknowledged_entry_held_for_another_session_is_not_collapsed() {
    for location in Location::all() {
        for tuning in [FLUSH_NEVER, FLUSH_AT_ONCE] {
            let options = open_options(Limits::default());
            let store = location.open_with(tuning, &options);
            let base = store.state(&user("a")).unwrap().head;
            append_one(&*store, with_key(1, "state", "a")).await;
            if tuning.flush_delay.is_zero() {
                wait_until_flushed(&*store, "a").await;
            }
            store.report(
                &user("a"),
                SessionReport { acknowledged: Some((1, base + 1)), hold: Some(base), ..SessionReport::default() },
            );
            append_one(&*store, with_key(2, "state", "a")).await;
            assert_eq!(read(&*store, "a", base), [(base + 1, 1), (base + 2, 2)]);
            acknowledge(&*store, "a", 1, base + 2);
            store.close().await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entry_collapsed_during_its_flush_is_not_counted() {
    let location = Location::Memory(mesa::embedded::tables::memory::Memory::default());
    let store = location.open_with(Tuning { idle_seconds: 3600, ..FLUSH_AT_ONCE }, &open_options(Limits::default()));
    // Without this entry, all replaced entries would be at the front of the log, and be trimmed.
    append(&*store, 99, &["a"]).await.unwrap();
    for round in 0..20_u64 {
        let load = (0..3000).map(|n| Append::new(message(n), vec![user(&format!("user-{}", n % 500))]));
        store.append_all([with_key(round, "k", "a")].into_iter().chain(load).collect()).await.unwrap();
        for n in 0..20 {
            append_one(&*store, with_key(n, "k", "a")).await;
        }
    }
    wait_until_flushed(&*store, "a").await;
    assert_eq!(read(&*store, "a", 0).len(), 2);
    assert_eq!(store.state(&user("a")).unwrap().pending, 2);
}
