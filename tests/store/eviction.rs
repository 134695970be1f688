//! Tests eviction from the value log: evicted entries are removed, and none frees space twice.

use mesa::{
    embedded::Tuning,
    store::{Append, Limits, Overflow, SessionReport},
};

use crate::support::{
    FLUSH_AT_ONCE, FLUSH_NEVER, HOUR, Location, advance_clock, append, open_options, read, reopen, sized, user,
    wait_until_flushed,
};

#[tokio::test]
async fn evicted_entry_is_removed_although_it_is_acknowledged_or_cleared_and_held() {
    for (location, cleared) in
        Location::all().into_iter().zip([false; 3]).chain(Location::all().into_iter().zip([true; 3]))
    {
        let limits = Limits { messages: 3, overflow: Overflow::DropOldest, ..Limits::default() };
        let store = location.open_with(FLUSH_AT_ONCE, &open_options(limits));
        store.attach(&user("a"), None).unwrap();
        store.report(&user("a"), SessionReport { hold: Some(0), ..SessionReport::default() });
        for n in 1..=3 {
            append(&*store, n, &["a"]).await.unwrap();
        }
        wait_until_flushed(&*store, "a").await;
        if cleared {
            store.clear(&user("a")).await.unwrap();
        } else {
            let report = SessionReport { acknowledged: Some((1, 3)), hold: Some(0), ..SessionReport::default() };
            store.report(&user("a"), report);
        }
        assert_eq!(read(&*store, "a", 0), [(1, 1), (2, 2), (3, 3)], "entries that a session holds stay");
        append(&*store, 4, &["a"]).await.unwrap();
        append(&*store, 5, &["a"]).await.unwrap();
        assert_eq!(read(&*store, "a", 0), [(3, 3), (4, 4), (5, 5)], "cleared: {cleared}");
    }
}

#[tokio::test]
async fn expired_entry_frees_space_once() {
    for location in Location::all() {
        let limits = Limits { bytes: 600, overflow: Overflow::DropOldest, ..Limits::default() };
        let options = open_options(limits);
        let store = location.open_with(FLUSH_AT_ONCE, &options);
        let sized = |n, bytes| Append::new(sized(n, bytes), vec![user("a")]);
        store.append(Append { ttl: Some(HOUR), ..sized(1, 100) }).await.unwrap();
        for n in 2..=4 {
            store.append(sized(n, 100)).await.unwrap();
        }
        wait_until_flushed(&*store, "a").await;
        // Expiry must not remove it before the append does.
        let tuning = Tuning { expiry_interval: HOUR, ..FLUSH_NEVER };
        let store = reopen(store, &location, tuning, &options).await;
        advance_clock(&options, 2);
        store.append(sized(5, 360)).await.unwrap();
        assert_eq!(read(&*store, "a", 0), [(3, 3), (4, 4), (5, 5)]);
    }
}
