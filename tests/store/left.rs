//! What the original has left for users (`undelivered_messages`), taken into their logs.

use std::sync::Arc;

use mesa::store::Limits;

use crate::{
    redis::{Somewhere, ask},
    redis_server::Redis,
    support::{append, read, receive, until, user},
};

fn stock(numbers: impl IntoIterator<Item = u64>) -> String {
    let messages: Vec<_> = numbers.into_iter().map(|n| format!(r#"{{"op":0,"d":{n},"t":"N"}}"#)).collect();
    format!("[{}]", messages.join(","))
}

/// What was put aside for a user.
async fn aside(place: &Somewhere, id: &str) -> String {
    let list = format!("undelivered_messages_{}", place.namespace());
    ask(place, &["GET", &format!("mesa:{{{list}}}:aside:{id}")]).await
}

/// Waits until none of these keys is there: a list goes one step after its last message has come.
async fn until_gone(place: &Somewhere, keys: &[&str]) {
    let end = std::time::Instant::now() + std::time::Duration::from_secs(120);
    while ask(place, &[&["EXISTS"], keys].concat()).await != "0" {
        assert!(std::time::Instant::now() < end, "{keys:?} stay");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn what_stock_has_left_and_there_is_no_room_for_comes_as_room_is_made_each_once_and_in_order() {
    let place = Somewhere::on(Redis::start());
    let store = place.open(Limits { messages: 5, ..Limits::default() }, Arc::default());
    let list = format!("undelivered_messages_{}", place.namespace());
    ask(&place, &["HSET", &list, "a", &stock(0..8)]).await;
    store.attach(&user("a"), None).unwrap();
    let numbers = |after| read(&*store, "a", after).into_iter().map(|(_, n)| n).collect::<Vec<_>>();
    assert_eq!(numbers(0), [0, 1, 2, 3, 4]);
    // What comes meanwhile comes behind.
    ask(&place, &["HSET", &list, "a", &stock([100])]).await;
    receive(&*store, "a", 1, 2);
    until("two more to come", || numbers(0) == [2, 3, 4, 5, 6]).await;
    receive(&*store, "a", 3, 7);
    until("the rest to come", || numbers(0) == [7, 100]).await;
    // Nor is it remembered that there was no room at all.
    for n in 0..5 {
        append(&*store, n, &["b"]).await.unwrap();
    }
    ask(&place, &["HSET", &list, "b", &stock([5, 6])]).await;
    store.attach(&user("b"), None).unwrap();
    assert_eq!(read(&*store, "b", 0).len(), 5);
    receive(&*store, "b", 1, 3);
    until("both to come", || read(&*store, "b", 0) == [(4, 3), (5, 4), (6, 5), (7, 6)]).await;
    until_gone(&place, &[&list]).await;
}

#[tokio::test]
async fn a_message_of_stocks_that_cannot_be_sent_is_put_aside_and_holds_up_nothing() {
    let place = Somewhere::on(Redis::start());
    let store = place.server();
    let list = format!("undelivered_messages_{}", place.namespace());
    let odd = r#"[{"op":0,"d":1,"t":"N"},{"t":5},{"op":0,"d":2,"t":"N"}]"#;
    ask(&place, &["HSET", &list, "a", odd, "b", "{no list"]).await;
    for id in ["a", "b"] {
        store.attach(&user(id), None).unwrap();
    }
    assert_eq!(read(&*store, "a", 0), [(1, 1), (2, 2)]);
    ask(&place, &["HSET", &list, "a", &stock([3]), "b", &stock([4])]).await;
    for id in ["a", "b"] {
        store.attach(&user(id), None).unwrap();
    }
    assert_eq!((read(&*store, "a", 2), read(&*store, "b", 0)), (vec![(3, 3)], vec![(1, 4)]));
    assert_eq!(aside(&place, "a").await, "{\"t\":5}\n");
    assert_eq!(aside(&place, "b").await, "{no list\n");
}

/// Several pieces of what a server reads at once.
const LARGE: u64 = 3_000;

/// A list whose messages are as long as this text.
fn long(numbers: std::ops::Range<u64>, filler: &str) -> String {
    let messages: Vec<_> = numbers.map(|n| format!(r#"{{"op":0,"d":{n},"t":"N","o":{{"x":"{filler}"}}}}"#)).collect();
    format!("[{}]", messages.join(" ,\n"))
}

#[tokio::test]
async fn list_of_many_pieces_is_taken_in_order_and_read_on_where_there_was_no_room() {
    let place = Somewhere::on(Redis::start());
    let store = place.open(Limits { messages: 1_000, ..Limits::default() }, Arc::default());
    let list = format!("undelivered_messages_{}", place.namespace());
    ask(&place, &["HSET", &list, "a", &long(0..LARGE, &"y".repeat(1_000))]).await;
    store.attach(&user("a"), None).unwrap();
    let mut next = 0;
    while next < LARGE {
        until("more to come", || !read(&*store, "a", next).is_empty()).await;
        let first = next + 1;
        for (seq, number) in read(&*store, "a", next) {
            assert_eq!((seq, number), (next + 1, next));
            next += 1;
        }
        receive(&*store, "a", first, next);
    }
    assert!(read(&*store, "a", next).is_empty());
    let taken = ["taken-at", "taken"].map(|what| format!("mesa:{{{list}}}:{what}:a"));
    until_gone(&place, &[&list, &taken[0], &taken[1]]).await;
}

/// Also where there is no room for what is behind them.
#[tokio::test]
async fn messages_of_any_size_that_cannot_be_sent_are_put_aside_whole_and_in_order() {
    let place = Somewhere::on(Redis::start());
    let store = place.open(Limits { messages: 2, ..Limits::default() }, Arc::default());
    let list = format!("undelivered_messages_{}", place.namespace());
    let sized = |n: u64, bytes: usize| format!(r#"{{"op":0,"d":[{n},"{}"]}}"#, "x".repeat(bytes));
    let large = [(11, 70_000), (12, 3 << 20), (13, 100_000), (14, 1_500_000), (15, 80_000), (16, 5 << 20)];
    let large = large.map(|(n, bytes)| sized(n, bytes));
    let small = |n: u64| format!(r#"{{"op":0,"d":{n},"t":"N"}}"#);
    let mut elements = vec![small(1)];
    for (n, large) in (2..).zip(&large) {
        elements.extend([large.clone(), small(n)]);
    }
    elements.push(large[5].clone());
    ask(&place, &["HSET", &list, "a", &format!("[{}", elements.join(" ,\n"))]).await;
    store.attach(&user("a"), None).unwrap();
    let mut next = 0;
    while next < 7 {
        until("more to come", || !read(&*store, "a", next).is_empty()).await;
        let first = next + 1;
        for (seq, number) in read(&*store, "a", next) {
            assert_eq!((seq, number), (next + 1, next + 1));
            next += 1;
        }
        receive(&*store, "a", first, next);
    }
    let expected: Vec<&String> = large.iter().chain(&large[5..]).collect();
    let is_all = |text: &str| text.lines().map(str::trim).eq(expected.iter().map(|one| one.as_str()));
    let end = std::time::Instant::now() + std::time::Duration::from_secs(120);
    while !is_all(&aside(&place, "a").await) {
        assert!(
            std::time::Instant::now() < end,
            "{:?}",
            aside(&place, "a").await.lines().map(str::len).collect::<Vec<_>>()
        );
        tokio::task::yield_now().await;
    }
    let taken = ["taken-at", "taken"].map(|what| format!("mesa:{{{list}}}:{what}:a"));
    until_gone(&place, &[&list, &taken[0], &taken[1]]).await;
}

#[tokio::test]
async fn list_that_breaks_off_is_taken_up_to_there_and_the_rest_put_aside() {
    let place = Somewhere::on(Redis::start());
    let store = place.server();
    let list = format!("undelivered_messages_{}", place.namespace());
    let broken = r#"[{"op":0,"d":1,"t":"N"}, {"op":0,"d":2,"t":"N"},{"op":0,"d":3"#;
    ask(&place, &["HSET", &list, "a", broken, "b", "[]"]).await;
    for id in ["a", "b"] {
        store.attach(&user(id), None).unwrap();
    }
    assert_eq!((read(&*store, "a", 0), read(&*store, "b", 0)), (vec![(1, 1), (2, 2)], vec![]));
    assert_eq!(aside(&place, "a").await, "{\"op\":0,\"d\":3\n");
    until_gone(&place, &[&list]).await;
}

#[tokio::test]
async fn list_that_an_older_server_has_taken_is_read_on_under_the_same_ids() {
    let place = Somewhere::on(Redis::start());
    let store = place.server();
    let list = format!("undelivered_messages_{}", place.namespace());
    let taken = |from: &str, numbers| format!("{from}\n{}", stock(numbers));
    ask(&place, &["HSET", &list, "\0mesa:taken:a", &taken("c0ffee", 1..=4), "a", &stock([5])]).await;
    store.attach(&user("a"), None).unwrap();
    assert_eq!(read(&*store, "a", 0), [(1, 1), (2, 2), (3, 3), (4, 4), (5, 5)]);
    // That server has put two of them into the log, and could not say so any more.
    ask(&place, &["HSET", &list, "\0mesa:taken:a", &taken("c0ffee+2", 3..=6)]).await;
    store.attach(&user("a"), None).unwrap();
    assert_eq!(read(&*store, "a", 5), [(6, 5), (7, 6)]);
    until_gone(&place, &[&list]).await;
}
