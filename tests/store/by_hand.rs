//! What a person or an eviction policy does to the keys of one log under running servers: what is appended after that is delivered.

use std::sync::Arc;

use mesa::{
    message::Seq,
    store::{Append, Limits, SessionReport, Store},
};

use crate::{
    redis::{Somewhere, ask},
    redis_server::Redis,
    support::{append, message, read, receive, until, user},
};

/// What happens to the two keys of a log.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Done {
    Deleted,
    StateDeleted,
    StreamDeleted,
    PutBack,
    StatePutBack,
    StreamPutBack,
}

use Done::*;

const ALL: [Done; 6] = [Deleted, StateDeleted, StreamDeleted, PutBack, StatePutBack, StreamPutBack];

impl Done {
    /// The keys that are deleted, and those that are replaced by an older copy.
    fn keys(self) -> (&'static [&'static str], &'static [&'static str]) {
        match self {
            Deleted => (&["state", "log"], &[]),
            StateDeleted => (&["state"], &[]),
            StreamDeleted => (&["log"], &[]),
            PutBack => (&[], &["state", "log"]),
            StatePutBack => (&[], &["state"]),
            StreamPutBack => (&[], &["log"]),
        }
    }

    async fn happen(self, place: &Somewhere) {
        let (deleted, put_back) = self.keys();
        for what in deleted {
            ask(place, &["DEL", &place.key(what, "a")]).await;
        }
        for what in put_back {
            let key = place.key(what, "a");
            assert_eq!(ask(place, &["COPY", &format!("{key} kept"), &key, "REPLACE"]).await, "1");
        }
    }
}

/// Appends these numbers at one server; the last sequence.
async fn append_all(store: &dyn Store, numbers: std::ops::RangeInclusive<u64>) -> Seq {
    let mut last = 0;
    for n in numbers {
        let seq = append(store, n, &["a"]).await.unwrap()[0];
        assert!(seq > last, "{seq} behind {last}");
        last = seq;
    }
    last
}

/// Two servers and a log with ten messages, of which an older copy is kept; a session at the first has read all of them.
async fn ten_messages(place: &Somewhere) -> [Arc<dyn Store>; 2] {
    let servers = [place.server(), place.server()];
    let [one, other] = &servers;
    one.attach(&user("a"), None).unwrap();
    append_all(&**other, 1..=5).await;
    assert_eq!(read(&**one, "a", 0).len(), 5);
    one.report(&user("a"), SessionReport { acknowledged: Some((1, 2)), hold: Some(2), ..SessionReport::default() });
    until("it to be acknowledged", || other.state(&user("a")).unwrap().pending == 3).await;
    for what in ["state", "log"] {
        let key = place.key(what, "a");
        assert_eq!(ask(place, &["COPY", &key, &format!("{key} kept")]).await, "1");
    }
    append_all(&**other, 6..=10).await;
    assert_eq!(read(&**one, "a", 5).len(), 5);
    one.report(&user("a"), SessionReport { acknowledged: Some((3, 8)), hold: Some(8), ..SessionReport::default() });
    until("it to be acknowledged", || other.state(&user("a")).unwrap().pending == 2).await;
    servers
}

/// Numbers and the last sequence behind `after`.
fn behind(store: &dyn Store, after: Seq) -> (Vec<u64>, Seq) {
    let found = read(store, "a", after);
    assert!(found.is_sorted_by(|one, other| one.0 < other.0) && found.iter().all(|(seq, _)| *seq > after), "{found:?}");
    (found.iter().map(|(_, n)| *n).collect(), found.last().map_or(after, |(seq, _)| *seq))
}

/// What comes behind `after` ends with 11 to `last`, and nothing stays pending once it is acknowledged.
async fn goes_on(case: &str, store: &dyn Store, after: Seq, last: u64) {
    let expected: Vec<u64> = (11..=last).collect();
    let (got, seen) = behind(store, after);
    assert!(got.ends_with(&expected), "{case}: {got:?} behind {after}");
    store.report(
        &user("a"),
        SessionReport { acknowledged: Some((1, seen)), hold: Some(seen), ..SessionReport::default() },
    );
    until(&format!("{case}: all to be acknowledged"), || store.state(&user("a")).unwrap().pending == 0).await;
    append_all(store, last + 1..=last + 1).await;
    assert_eq!(behind(store, seen).0, [last + 1], "{case}");
}

fn places() -> [Somewhere; 2] {
    [Somewhere::on(Redis::start()), Somewhere::spread()]
}

// covers: G4, G5
#[tokio::test]
async fn log_changed_by_hand_under_a_session_delivers_what_comes_after_it() {
    for place in places() {
        for done in ALL {
            let (place, case) = (place.another(), format!("{done:?}, spread: {}", place.is_spread()));
            let [one, other] = ten_messages(&place).await;
            done.happen(&place).await;
            append_all(&*other, 11..=30).await;
            goes_on(&case, &*one, 10, 30).await;
        }
    }
}

/// The session notices it before anything is appended, by its own acknowledgement or by looking into the log.
// covers: G4, G5
#[tokio::test]
async fn log_changed_by_hand_before_a_session_looks_delivers_what_comes_after_it() {
    for place in places() {
        for done in ALL {
            for acknowledges in [false, true] {
                let case = format!("{done:?}, spread: {}, acknowledges: {acknowledges}", place.is_spread());
                let place = place.another();
                let [one, other] = ten_messages(&place).await;
                done.happen(&place).await;
                if acknowledges {
                    receive(&*one, "a", 9, 10);
                    one.state(&user("a")).unwrap();
                } else {
                    behind(&*one, 10);
                }
                let again = behind(&*one, 10).1;
                append_all(&*other, 11..=13).await;
                goes_on(&case, &*one, again, 13).await;
            }
        }
    }
}

/// A client that resumes keeps its sequence. An older copy of both keys is not noticed then, nor in a Cluster that both are gone.
// covers: G4, G5
#[tokio::test]
async fn log_changed_by_hand_while_nobody_is_connected_delivers_what_comes_after_it() {
    for place in places() {
        let noticed = |done: &Done| *done != PutBack && (*done != Deleted || !place.is_spread());
        for done in ALL.into_iter().filter(noticed) {
            let (place, case) = (place.another(), format!("{done:?}, spread: {}", place.is_spread()));
            let [one, other] = ten_messages(&place).await;
            one.detach(&user("a"), None);
            one.report(&user("a"), SessionReport::default());
            one.close().await.unwrap();
            done.happen(&place).await;
            append_all(&*other, 11..=30).await;
            let attached = other.attach(&user("a"), None).unwrap();
            assert!(attached.head > 10, "{case}: {attached:?}");
            goes_on(&case, &*other, 10, 30).await;
        }
    }
}

/// Where everything of a user is gone, what was pending is told as lost, counts no more, and takes no room.
// covers: G4
#[tokio::test]
async fn stream_deleted_by_hand_leaves_no_quota_in_use() {
    for place in places() {
        let store = place.open(Limits { messages: 5, ..Limits::default() }, Arc::default());
        append_all(&*store, 1..=5).await;
        StreamDeleted.happen(&place).await;
        assert_eq!(append(&*store, 6, &["a"]).await.unwrap(), [6]);
        assert_eq!(store.state(&user("a")).unwrap().pending, 1);
        let missed = store.explain_gaps(&user("a"), None, 1, 5).unwrap();
        assert_eq!(
            missed.iter().map(|one| (one.from, one.to, one.reason.as_str())).collect::<Vec<_>>(),
            [(1, 5, "lost")]
        );
        assert_eq!(read(&*store, "a", 0), [(6, 6)]);
    }
}

/// What is pending in a stream is delivered, though the state that counted it is gone.
// covers: G4
#[tokio::test]
async fn state_deleted_by_hand_keeps_what_is_pending() {
    for place in places() {
        let store = place.server();
        append_all(&*store, 1..=5).await;
        receive(&*store, "a", 1, 2);
        until("it to be acknowledged", || store.state(&user("a")).unwrap().pending == 3).await;
        StateDeleted.happen(&place).await;
        let last = append_all(&*store, 6..=6).await;
        assert!(last > 6, "{last}");
        assert_eq!(read(&*store, "a", 0), [(3, 3), (4, 4), (5, 5), (last, 6)]);
        receive(&*store, "a", 1, last);
        until("it to be acknowledged", || store.state(&user("a")).unwrap().pending == 0).await;
    }
}

/// A stream without entries knows the last sequence still, though its state is gone.
// covers: G5
#[tokio::test]
async fn state_deleted_by_hand_beside_an_empty_stream_gives_no_sequence_twice() {
    for place in places() {
        let store = place.server();
        append_all(&*store, 1..=3).await;
        let log = place.key("log", "a");
        assert_eq!(ask(&place, &["XDEL", &log, "1-0", "2-0", "3-0"]).await, "3");
        StateDeleted.happen(&place).await;
        let seq = append_all(&*store, 4..=4).await;
        assert!(seq > 3, "{seq}");
        assert_eq!(read(&*store, "a", 0), [(seq, 4)]);
    }
}

/// What was trimmed from a stream is told, and what is left is counted.
// covers: G4
#[tokio::test]
async fn stream_trimmed_by_hand_is_counted_anew() {
    for place in places() {
        let store = place.open(Limits { messages: 6, ..Limits::default() }, Arc::default());
        append_all(&*store, 1..=6).await;
        assert_eq!(ask(&place, &["XDEL", &place.key("log", "a"), "1-0", "2-0", "5-0"]).await, "3");
        append_all(&*store, 7..=9).await;
        assert_eq!(read(&*store, "a", 0), [(3, 3), (4, 4), (6, 6), (7, 7), (8, 8), (9, 9)]);
        let missed = store.explain_gaps(&user("a"), None, 1, 6).unwrap();
        let lost: Vec<_> =
            missed.iter().filter(|one| one.reason.as_str() == "lost").map(|one| (one.from, one.to)).collect();
        assert_eq!(lost, [(1, 2), (5, 5)]);
        assert_eq!(store.state(&user("a")).unwrap().pending, 6);
        receive(&*store, "a", 1, 9);
        until("it to be acknowledged", || store.state(&user("a")).unwrap().pending == 0).await;
    }
}

/// Within a moment more entries come than milliseconds pass, and the next server has seen none of them.
// covers: G5
#[tokio::test]
async fn log_deleted_again_and_again_gives_no_sequence_twice() {
    let place = Somewhere::on(Redis::start());
    let servers = [place.server(), place.server()];
    let mut last = 0;
    for round in 0..6 {
        let appends = (0..2_000).map(|n| Append::new(message(n), vec![user("a")])).collect();
        for made in servers[round % 2].append_all(appends).await.unwrap() {
            let seq = made.seqs[0].unwrap();
            assert!(seq > last, "round {round}: {seq} behind {last}");
            last = seq;
        }
        Deleted.happen(&place).await;
    }
}
