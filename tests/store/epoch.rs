//! Tests Redis data that reverts to an older state, which only one of two servers has detected: later entries are
//! delivered.

use std::sync::Arc;

use mesa::{
    message::{DeviceId, Payload, Seq},
    store::{Append, SessionReport, Store},
};

use crate::{
    redis::{RedisNamespace, read_after},
    redis_server::Redis,
    support::{ALL, acknowledge, append, read, user, wait_until},
};

/// Copies the epoch and the log of a user (`copy`), or restores that copy (`restore`), in one atomic step.
fn copy(namespace: &RedisNamespace, id: &str, action: &str) {
    let script = redis::Script::new(
        "for _, key in ipairs(KEYS) do
          local from, to = key, key .. ' copy'
          if ARGV[1] == 'restore' then from, to = to, from end
          if redis.call('EXISTS', from) == 0 then redis.call('DEL', to) else redis.call('COPY', from, to, 'REPLACE') end
        end",
    );
    let mut script = script.prepare_invoke();
    for key in [namespace.epoch_key(), namespace.key("state", id), namespace.key("log", id)] {
        script.key(key);
    }
    script.arg(action).invoke::<()>(&mut *namespace.connection()).unwrap();
}

/// Opens two servers; a session at the first has acknowledged one message.
async fn two_servers(namespace: &RedisNamespace) -> [Arc<dyn Store>; 2] {
    let servers = [namespace.open_default(), namespace.open_default()];
    servers[0].attach(&user("a"), None).unwrap();
    append(&*servers[1], 1, &["a"]).await.unwrap();
    assert_eq!(read_after(&*servers[0], 0), (vec![1], 1));
    acknowledge(&*servers[0], "a", 1, 1);
    wait_until("the entry is acknowledged", || servers[1].state(&user("a")).unwrap().pending == 0).await;
    servers
}

// covers: G4, G5
#[tokio::test]
async fn append_in_an_older_epoch_reaches_sessions_of_a_newer_one() {
    let namespace = RedisNamespace::on(Redis::start());
    let [one, other] = two_servers(&namespace).await;
    copy(&namespace, "a", "copy");
    namespace.change_epoch();
    append(&*one, 2, &["a"]).await.unwrap();
    let (numbers, seen) = read_after(&*one, 1);
    assert_eq!(numbers, [2]);
    // The data reverts to the copy. The second server has seen no other state.
    copy(&namespace, "a", "restore");
    append(&*other, 3, &["a"]).await.unwrap();
    append(&*other, 4, &["a"]).await.unwrap();
    wait_until("the entries of the other server are read", || read_after(&*one, seen).0 == [3, 4]).await;
    let (_, seen) = read_after(&*one, seen);
    append(&*other, 5, &["a"]).await.unwrap();
    assert_eq!(read_after(&*one, seen).0, [5]);
}

// covers: G4, G5
#[tokio::test]
async fn append_to_data_reverted_within_its_epoch_reaches_sessions_that_have_read_more() {
    let namespace = RedisNamespace::on(Redis::start());
    let [one, other] = two_servers(&namespace).await;
    copy(&namespace, "a", "copy");
    for n in 2..=6 {
        append(&*one, n, &["a"]).await.unwrap();
    }
    let (numbers, seen) = read_after(&*one, 1);
    assert_eq!((numbers, seen), ((2..=6).collect(), 6));
    acknowledge(&*one, "a", 1, 4);
    copy(&namespace, "a", "restore");
    append(&*other, 7, &["a"]).await.unwrap();
    append(&*other, 8, &["a"]).await.unwrap();
    wait_until("the entries of the other server are read", || read_after(&*one, seen).0 == [7, 8]).await;
    let (_, seen) = read_after(&*one, seen);
    for (by, n) in [(&one, 9), (&other, 10)] {
        append(&**by, n, &["a"]).await.unwrap();
    }
    assert_eq!(read_after(&*one, seen).0, [9, 10]);
}

/// Entries with new sequences keep their acknowledgements per device, collapse keys, sizes and holds.
// covers: G2, G5
#[tokio::test]
async fn pending_entries_with_new_sequences_keep_order_and_acknowledgements() {
    let namespace = RedisNamespace::on(Redis::start());
    let [one, other] = two_servers(&namespace).await;
    let phone = DeviceId::new("phone").unwrap();
    other.attach(&user("a"), Some(&phone)).unwrap();
    for n in 2..=700 {
        append(&*other, n, &["a"]).await.unwrap();
    }
    other.report(
        &user("a"),
        SessionReport { device: Some(phone.clone()), acknowledged: Some((2, 600)), ..SessionReport::default() },
    );
    wait_until("the acknowledgement of the phone is stored", || {
        let state = other.state(&user("a")).unwrap();
        state.devices.first().is_some_and(|device| device.pending == 100)
    })
    .await;
    copy(&namespace, "a", "copy");
    namespace.change_epoch();
    append(&*one, 1000, &["a"]).await.unwrap();
    let seen = read_after(&*one, 700).1;
    copy(&namespace, "a", "restore");
    append(&*other, 701, &["a"]).await.unwrap();
    let expected: Vec<u64> = (2..=701).collect();
    wait_until("all pending entries are read", || read_after(&*one, seen).0 == expected).await;
    let state = one.state(&user("a")).unwrap();
    assert_eq!((state.pending, state.devices[0].pending), (700, 101));
    let entries = read(&*one, "a", seen);
    acknowledge(&*one, "a", 1, entries[699].0);
    other.report(
        &user("a"),
        SessionReport { device: Some(phone), acknowledged: Some((1, entries[650].0)), ..SessionReport::default() },
    );
    wait_until("entries that all devices acknowledged are removed", || one.state(&user("a")).unwrap().pending == 49)
        .await;
    assert_eq!(read(&*one, "a", seen), entries[651..]);
}

/// One step gives new sequences to at most 8 MB of entries. Older ones keep theirs.
// covers: G2, G4
#[tokio::test]
async fn only_the_newest_of_many_pending_entries_get_new_sequences() {
    let namespace = RedisNamespace::on(Redis::start());
    let [one, other] = two_servers(&namespace).await;
    let large = || Payload::encode(0, Some(&format!("\"{}\"", "x".repeat(60_000))), None).unwrap();
    for _ in 0..20 {
        other.append_all((0..10).map(|_| Append::new(large(), vec![user("a")])).collect()).await.unwrap();
    }
    copy(&namespace, "a", "copy");
    namespace.change_epoch();
    let seen = append(&*one, 1000, &["a"]).await.unwrap()[0];
    assert_eq!(one.read(&user("a"), seen, ALL).unwrap().entries.len(), 0);
    copy(&namespace, "a", "restore");
    other.append(Append::new(large(), vec![user("a")])).await.unwrap();
    let moved = || one.read(&user("a"), seen, ALL).unwrap().entries.len();
    wait_until("the newest entries get new sequences", || moved() > 0).await;
    assert!((100..=145).contains(&moved()), "expected 8 MB of 60 kB each, not {} entries", moved());
    let all: Vec<Seq> = one.read(&user("a"), 1, ALL).unwrap().entries.iter().map(|entry| entry.seq).collect();
    assert_eq!((all.len(), one.state(&user("a")).unwrap().pending), (201, 201));
    let unmoved = 201 - moved();
    assert_eq!(all[..unmoved], (2..2 + unmoved as Seq).collect::<Vec<_>>());
    acknowledge(&*one, "a", 1, all[200]);
    wait_until("all entries are removed", || one.state(&user("a")).unwrap().pending == 0).await;
}
