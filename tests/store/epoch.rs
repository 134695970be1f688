//! Data of a Redis that goes back while one server knows it and another does not: what the other appends meanwhile is delivered.

use std::sync::Arc;

use mesa::{
    message::{DeviceId, Payload, Seq},
    store::{Append, SessionReport, Store},
};

use crate::{
    redis::Somewhere,
    redis_server::Redis,
    support::{ALL, append, read, receive, until, user},
};

/// Keeps a copy of the epoch and of the log of a user, or brings it back, in one step.
fn copy(place: &Somewhere, id: &str, what: &str) {
    let script = redis::Script::new(
        "for _, key in ipairs(KEYS) do
          local from, to = key, key .. ' kept'
          if ARGV[1] == 'back' then from, to = to, from end
          if redis.call('EXISTS', from) == 0 then redis.call('DEL', to) else redis.call('COPY', from, to, 'REPLACE') end
        end",
    );
    let mut script = script.prepare_invoke();
    for key in [place.era(), place.key("state", id), place.key("log", id)] {
        script.key(key);
    }
    script.arg(what).invoke::<()>(&mut *place.line()).unwrap();
}

fn failover(place: &Somewhere) {
    let another = "redis.call('HSET', KEYS[1], 'history', 'another', 'kept', '0')";
    redis::Script::new(another).key(place.era()).invoke::<()>(&mut *place.line()).unwrap();
}

/// The messages behind `after`, with the last sequence.
fn behind(store: &dyn Store, after: Seq) -> (Vec<u64>, Seq) {
    let found = read(store, "a", after);
    assert!(found.is_sorted_by(|one, other| one.0 < other.0) && found.iter().all(|(seq, _)| *seq > after), "{found:?}");
    (found.iter().map(|(_, n)| *n).collect(), found.last().map_or(after, |(seq, _)| *seq))
}

/// Two servers, with a session of one user at the first, which has received one message.
async fn two_servers(place: &Somewhere) -> [Arc<dyn Store>; 2] {
    let servers = [place.server(), place.server()];
    servers[0].attach(&user("a"), None).unwrap();
    append(&*servers[1], 1, &["a"]).await.unwrap();
    assert_eq!(behind(&*servers[0], 0), (vec![1], 1));
    receive(&*servers[0], "a", 1, 1);
    until("it to be acknowledged", || servers[1].state(&user("a")).unwrap().pending == 0).await;
    servers
}

// covers: G4, G5
#[tokio::test]
async fn append_in_an_older_epoch_reaches_sessions_that_know_of_a_newer_one() {
    let place = Somewhere::on(Redis::start());
    let [one, other] = two_servers(&place).await;
    copy(&place, "a", "keep");
    failover(&place);
    append(&*one, 2, &["a"]).await.unwrap();
    let (got, seen) = behind(&*one, 1);
    assert_eq!(got, [2]);
    // Both come back to what the first has left, and the second has not seen anything else.
    copy(&place, "a", "back");
    append(&*other, 3, &["a"]).await.unwrap();
    append(&*other, 4, &["a"]).await.unwrap();
    until("what was appended meanwhile", || behind(&*one, seen).0 == [3, 4]).await;
    let (_, seen) = behind(&*one, seen);
    append(&*other, 5, &["a"]).await.unwrap();
    assert_eq!(behind(&*one, seen).0, [5]);
}

// covers: G4, G5
#[tokio::test]
async fn append_to_data_that_went_back_within_its_epoch_reaches_sessions_that_have_read_more() {
    let place = Somewhere::on(Redis::start());
    let [one, other] = two_servers(&place).await;
    copy(&place, "a", "keep");
    for n in 2..=6 {
        append(&*one, n, &["a"]).await.unwrap();
    }
    let (got, seen) = behind(&*one, 1);
    assert_eq!((got, seen), ((2..=6).collect(), 6));
    receive(&*one, "a", 1, 4);
    copy(&place, "a", "back");
    append(&*other, 7, &["a"]).await.unwrap();
    append(&*other, 8, &["a"]).await.unwrap();
    until("what was appended meanwhile", || behind(&*one, seen).0 == [7, 8]).await;
    let (_, seen) = behind(&*one, seen);
    for (by, n) in [(&one, 9), (&other, 10)] {
        append(&**by, n, &["a"]).await.unwrap();
    }
    assert_eq!(behind(&*one, seen).0, [9, 10]);
}

/// New sequences for what is pending keep who has received what, collapse keys, sizes, and what is held.
// covers: G2, G5
#[tokio::test]
async fn pending_entries_that_get_new_sequences_keep_their_order_and_who_has_received_them() {
    let place = Somewhere::on(Redis::start());
    let [one, other] = two_servers(&place).await;
    let phone = DeviceId::new("phone").unwrap();
    other.attach(&user("a"), Some(&phone)).unwrap();
    for n in 2..=700 {
        append(&*other, n, &["a"]).await.unwrap();
    }
    other.report(
        &user("a"),
        SessionReport { device: Some(phone.clone()), acknowledged: Some((2, 600)), ..SessionReport::default() },
    );
    until("the phone to have its own", || {
        let state = other.state(&user("a")).unwrap();
        state.devices.first().is_some_and(|device| device.pending == 100)
    })
    .await;
    copy(&place, "a", "keep");
    failover(&place);
    append(&*one, 1000, &["a"]).await.unwrap();
    let seen = behind(&*one, 700).1;
    copy(&place, "a", "back");
    append(&*other, 701, &["a"]).await.unwrap();
    let expected: Vec<u64> = (2..=701).collect();
    until("all that is pending", || behind(&*one, seen).0 == expected).await;
    let state = one.state(&user("a")).unwrap();
    assert_eq!((state.pending, state.devices[0].pending), (700, 101));
    let entries = read(&*one, "a", seen);
    receive(&*one, "a", 1, entries[699].0);
    other.report(
        &user("a"),
        SessionReport { device: Some(phone), acknowledged: Some((1, entries[650].0)), ..SessionReport::default() },
    );
    until("what all have received to go", || one.state(&user("a")).unwrap().pending == 49).await;
    assert_eq!(read(&*one, "a", seen), entries[651..]);
}

/// Only so much is moved in one step; what is older stays where it is.
// covers: G2, G4
#[tokio::test]
async fn very_many_pending_entries_keep_their_sequences_but_for_the_newest() {
    let place = Somewhere::on(Redis::start());
    let [one, other] = two_servers(&place).await;
    let large = || Payload::encode(0, Some(&format!("\"{}\"", "x".repeat(60_000))), None).unwrap();
    for _ in 0..20 {
        other.append_all((0..10).map(|_| Append::new(large(), vec![user("a")])).collect()).await.unwrap();
    }
    copy(&place, "a", "keep");
    failover(&place);
    let seen = append(&*one, 1000, &["a"]).await.unwrap()[0];
    assert_eq!(one.read(&user("a"), seen, ALL).unwrap().entries.len(), 0);
    copy(&place, "a", "back");
    other.append(Append::new(large(), vec![user("a")])).await.unwrap();
    let moved = || one.read(&user("a"), seen, ALL).unwrap().entries.len();
    until("the newest to get new sequences", || moved() > 0).await;
    assert!((100..=145).contains(&moved()), "8 MB of 60 kB each: {}", moved());
    let all: Vec<Seq> = one.read(&user("a"), 1, ALL).unwrap().entries.iter().map(|entry| entry.seq).collect();
    assert_eq!((all.len(), one.state(&user("a")).unwrap().pending), (201, 201));
    let stay = 201 - moved();
    assert_eq!(all[..stay], (2..2 + stay as Seq).collect::<Vec<_>>());
    receive(&*one, "a", 1, all[200]);
    until("all to go", || one.state(&user("a")).unwrap().pending == 0).await;
}
