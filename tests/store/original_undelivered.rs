//! Tests the import of messages that servers of the original stored for users (`undelivered_messages`).

use std::{sync::Arc, time::Instant};

use mesa::store::Limits;

use crate::{
    redis::{RedisNamespace, run_command},
    redis_server::Redis,
    support::{acknowledge, append, read, user, wait_until},
    wait::WAIT_TIMEOUT,
};

/// Creates a list of messages as the original stores it.
fn undelivered_list(numbers: impl IntoIterator<Item = u64>) -> String {
    let messages: Vec<_> = numbers.into_iter().map(|n| format!(r#"{{"op":0,"d":{n},"t":"N"}}"#)).collect();
    format!("[{}]", messages.join(","))
}

/// Returns the messages of a user that were set aside.
async fn set_aside(namespace: &RedisNamespace, id: &str) -> String {
    let list = format!("undelivered_messages_{}", namespace.name());
    run_command(namespace, &["GET", &format!("mesa:{{{list}}}:unsendable:{id}")]).await
}

/// Waits until none of these keys exists: a list is deleted one step after its last message is appended.
async fn wait_until_deleted(namespace: &RedisNamespace, keys: &[&str]) {
    let end = Instant::now() + WAIT_TIMEOUT;
    while run_command(namespace, &[&["EXISTS"], keys].concat()).await != "0" {
        assert!(Instant::now() < end, "expected the deletion of {keys:?} within {WAIT_TIMEOUT:?}");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn list_above_the_quota_is_imported_in_order_as_entries_are_acknowledged() {
    let namespace = RedisNamespace::on(Redis::start());
    let store = namespace.open(Limits { messages: 5, ..Limits::default() }, Arc::default());
    let list = format!("undelivered_messages_{}", namespace.name());
    run_command(&namespace, &["HSET", &list, "a", &undelivered_list(0..8)]).await;
    store.attach(&user("a"), None).unwrap();
    let numbers = |after| read(&*store, "a", after).into_iter().map(|(_, n)| n).collect::<Vec<_>>();
    assert_eq!(numbers(0), [0, 1, 2, 3, 4]);
    // A message that is added meanwhile follows.
    run_command(&namespace, &["HSET", &list, "a", &undelivered_list([100])]).await;
    acknowledge(&*store, "a", 1, 2);
    wait_until("two more messages are imported", || numbers(0) == [2, 3, 4, 5, 6]).await;
    acknowledge(&*store, "a", 3, 7);
    wait_until("the remaining messages are imported", || numbers(0) == [7, 100]).await;
    // The same if the quota has no space for even one message.
    for n in 0..5 {
        append(&*store, n, &["b"]).await.unwrap();
    }
    run_command(&namespace, &["HSET", &list, "b", &undelivered_list([5, 6])]).await;
    store.attach(&user("b"), None).unwrap();
    assert_eq!(read(&*store, "b", 0).len(), 5);
    acknowledge(&*store, "b", 1, 3);
    wait_until("both messages are imported", || read(&*store, "b", 0) == [(4, 3), (5, 4), (6, 5), (7, 6)]).await;
    wait_until_deleted(&namespace, &[&list]).await;
}

#[tokio::test]
async fn invalid_message_is_set_aside_and_later_ones_are_imported() {
    let namespace = RedisNamespace::on(Redis::start());
    let store = namespace.open_default();
    let list = format!("undelivered_messages_{}", namespace.name());
    let with_invalid = r#"[{"op":0,"d":1,"t":"N"},{"t":5},{"op":0,"d":2,"t":"N"}]"#;
    run_command(&namespace, &["HSET", &list, "a", with_invalid, "b", "{no list"]).await;
    for id in ["a", "b"] {
        store.attach(&user(id), None).unwrap();
    }
    assert_eq!(read(&*store, "a", 0), [(1, 1), (2, 2)]);
    run_command(&namespace, &["HSET", &list, "a", &undelivered_list([3]), "b", &undelivered_list([4])]).await;
    for id in ["a", "b"] {
        store.attach(&user(id), None).unwrap();
    }
    assert_eq!((read(&*store, "a", 2), read(&*store, "b", 0)), (vec![(3, 3)], vec![(1, 4)]));
    assert_eq!(set_aside(&namespace, "a").await, "{\"t\":5}\n");
    assert_eq!(set_aside(&namespace, "b").await, "{no list\n");
}

/// Number of messages in a list that a server reads in several chunks.
const LARGE: u64 = 3_000;

/// Creates a list whose messages contain this text.
fn long_list(numbers: std::ops::Range<u64>, filler: &str) -> String {
    let messages: Vec<_> = numbers.map(|n| format!(r#"{{"op":0,"d":{n},"t":"N","o":{{"x":"{filler}"}}}}"#)).collect();
    format!("[{}]", messages.join(" ,\n"))
}

#[tokio::test]
async fn list_of_many_chunks_is_imported_in_order_and_resumed_at_the_quota() {
    let namespace = RedisNamespace::on(Redis::start());
    let store = namespace.open(Limits { messages: 1_000, ..Limits::default() }, Arc::default());
    let list = format!("undelivered_messages_{}", namespace.name());
    run_command(&namespace, &["HSET", &list, "a", &long_list(0..LARGE, &"y".repeat(1_000))]).await;
    store.attach(&user("a"), None).unwrap();
    let mut next = 0;
    while next < LARGE {
        wait_until("more messages are imported", || !read(&*store, "a", next).is_empty()).await;
        let first = next + 1;
        for (seq, number) in read(&*store, "a", next) {
            assert_eq!((seq, number), (next + 1, next));
            next += 1;
        }
        acknowledge(&*store, "a", first, next);
    }
    assert!(read(&*store, "a", next).is_empty());
    let taken = ["taken-position", "taken"].map(|kind| format!("mesa:{{{list}}}:{kind}:a"));
    wait_until_deleted(&namespace, &[&list, &taken[0], &taken[1]]).await;
}

/// Also if the quota has no space for the messages after them.
#[tokio::test]
async fn invalid_messages_of_any_size_are_set_aside_whole_and_in_order() {
    let namespace = RedisNamespace::on(Redis::start());
    let store = namespace.open(Limits { messages: 2, ..Limits::default() }, Arc::default());
    let list = format!("undelivered_messages_{}", namespace.name());
    let sized = |n: u64, bytes: usize| format!(r#"{{"op":0,"d":[{n},"{}"]}}"#, "x".repeat(bytes));
    let large = [(11, 70_000), (12, 3 << 20), (13, 100_000), (14, 1_500_000), (15, 80_000), (16, 5 << 20)];
    let large = large.map(|(n, bytes)| sized(n, bytes));
    let small = |n: u64| format!(r#"{{"op":0,"d":{n},"t":"N"}}"#);
    let mut elements = vec![small(1)];
    for (n, large) in (2..).zip(&large) {
        elements.extend([large.clone(), small(n)]);
    }
    elements.push(large[5].clone());
    run_command(&namespace, &["HSET", &list, "a", &format!("[{}", elements.join(" ,\n"))]).await;
    store.attach(&user("a"), None).unwrap();
    let mut next = 0;
    while next < 7 {
        wait_until("more messages are imported", || !read(&*store, "a", next).is_empty()).await;
        let first = next + 1;
        for (seq, number) in read(&*store, "a", next) {
            assert_eq!((seq, number), (next + 1, next + 1));
            next += 1;
        }
        acknowledge(&*store, "a", first, next);
    }
    let expected: Vec<&String> = large.iter().chain(&large[5..]).collect();
    let is_all = |text: &str| text.lines().map(str::trim).eq(expected.iter().map(|one| one.as_str()));
    let end = Instant::now() + WAIT_TIMEOUT;
    while !is_all(&set_aside(&namespace, "a").await) {
        assert!(
            Instant::now() < end,
            "expected {} messages set aside within {WAIT_TIMEOUT:?}, not these lengths: {:?}",
            expected.len(),
            set_aside(&namespace, "a").await.lines().map(str::len).collect::<Vec<_>>()
        );
        tokio::task::yield_now().await;
    }
    let taken = ["taken-position", "taken"].map(|kind| format!("mesa:{{{list}}}:{kind}:a"));
    wait_until_deleted(&namespace, &[&list, &taken[0], &taken[1]]).await;
}

#[tokio::test]
async fn truncated_list_is_imported_up_to_the_last_whole_message_and_the_rest_is_set_aside() {
    let namespace = RedisNamespace::on(Redis::start());
    let store = namespace.open_default();
    let list = format!("undelivered_messages_{}", namespace.name());
    let broken = r#"[{"op":0,"d":1,"t":"N"}, {"op":0,"d":2,"t":"N"},{"op":0,"d":3"#;
    run_command(&namespace, &["HSET", &list, "a", broken, "b", "[]"]).await;
    for id in ["a", "b"] {
        store.attach(&user(id), None).unwrap();
    }
    assert_eq!((read(&*store, "a", 0), read(&*store, "b", 0)), (vec![(1, 1), (2, 2)], vec![]));
    assert_eq!(set_aside(&namespace, "a").await, "{\"op\":0,\"d\":3\n");
    wait_until_deleted(&namespace, &[&list]).await;
}

#[tokio::test]
async fn list_taken_by_an_older_server_is_resumed_under_the_same_ids() {
    let namespace = RedisNamespace::on(Redis::start());
    let store = namespace.open_default();
    let list = format!("undelivered_messages_{}", namespace.name());
    let taken = |from: &str, numbers| format!("{from}\n{}", undelivered_list(numbers));
    run_command(&namespace, &["HSET", &list, "\0mesa:taken:a", &taken("c0ffee", 1..=4), "a", &undelivered_list([5])])
        .await;
    store.attach(&user("a"), None).unwrap();
    assert_eq!(read(&*store, "a", 0), [(1, 1), (2, 2), (3, 3), (4, 4), (5, 5)]);
    // That server has appended two of them, and ended before it could record that.
    run_command(&namespace, &["HSET", &list, "\0mesa:taken:a", &taken("c0ffee+2", 3..=6)]).await;
    store.attach(&user("a"), None).unwrap();
    assert_eq!(read(&*store, "a", 5), [(6, 5), (7, 6)]);
    wait_until_deleted(&namespace, &[&list]).await;
}
