//! What is dropped to make room, where it stands in an inbox: nothing of it stays, and nothing makes room twice.

use mesa::{
    embedded::Tuning,
    store::{Append, Limits, Overflow, SessionReport},
};

use crate::{
    limits::{HOUR, again, in_the_inbox, later, opening, sized},
    support::{AT_ONCE, NEVER, Place, append, read, user},
};

#[tokio::test]
async fn what_is_dropped_is_gone_also_where_everybody_has_it_and_somebody_holds_it() {
    for (place, cleared) in Place::all().into_iter().zip([false; 3]).chain(Place::all().into_iter().zip([true; 3])) {
        let limits = Limits { messages: 3, overflow: Overflow::DropOldest, ..Limits::default() };
        let store = place.open_with(AT_ONCE, &opening(limits));
        store.attach(&user("a"), None).unwrap();
        store.report(&user("a"), SessionReport { hold: Some(0), ..SessionReport::default() });
        for n in 1..=3 {
            append(&*store, n, &["a"]).await.unwrap();
        }
        in_the_inbox(&*store, "a").await;
        if cleared {
            store.clear(&user("a")).await.unwrap();
        } else {
            let note = SessionReport { acknowledged: Some((1, 3)), hold: Some(0), ..SessionReport::default() };
            store.report(&user("a"), note);
        }
        assert_eq!(read(&*store, "a", 0), [(1, 1), (2, 2), (3, 3)], "held");
        append(&*store, 4, &["a"]).await.unwrap();
        append(&*store, 5, &["a"]).await.unwrap();
        assert_eq!(read(&*store, "a", 0), [(3, 3), (4, 4), (5, 5)], "cleared: {cleared}");
    }
}

#[tokio::test]
async fn what_has_expired_makes_room_once() {
    for place in Place::all() {
        let limits = Limits { bytes: 600, overflow: Overflow::DropOldest, ..Limits::default() };
        let opening = opening(limits);
        let store = place.open_with(AT_ONCE, &opening);
        let sized = |n, bytes| Append::new(sized(n, bytes), vec![user("a")]);
        store.append(Append { ttl: Some(HOUR), ..sized(1, 100) }).await.unwrap();
        for n in 2..=4 {
            store.append(sized(n, 100)).await.unwrap();
        }
        in_the_inbox(&*store, "a").await;
        // Nobody takes it out before.
        let tuning = Tuning { expiry_interval: HOUR, ..NEVER };
        let store = again(store, &place, tuning, &opening).await;
        later(&opening, 2);
        store.append(sized(5, 360)).await.unwrap();
        assert_eq!(read(&*store, "a", 0), [(3, 3), (4, 4), (5, 5)]);
    }
}
