//! `mesa import` and `mesa export`.

use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::{redis_server::Redis, support::server::Home};

fn mesa(words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_mesa")).args(words).output().expect("it runs")
}

fn said(output: &Output) -> String {
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{text}");
    text
}

fn redis(redis: &Redis, words: &[&str]) -> String {
    let port = redis.address().port().to_string();
    let output = Command::new("redis-cli").args(["-p", &port]).args(words).output().expect("redis-cli runs");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Messages as stock leaves them.
fn left(numbers: std::ops::RangeInclusive<u64>) -> String {
    json!(numbers.map(|n| json!({ "op": 0, "d": { "n": n }, "t": "N" })).collect::<Vec<_>>()).to_string()
}

fn numbers(list: &str) -> Vec<u64> {
    let list: Vec<Value> = serde_json::from_str(list).expect("a list");
    list.iter().map(|one| one["d"]["n"].as_u64().expect("a number")).collect()
}

#[test]
fn what_waits_in_a_stock_set_up_is_brought_over_and_back_and_nothing_twice() {
    let (from, home, to) = (Redis::start(), Home::new(), Redis::start());
    let store = home.store();
    let store = store.to_str().expect("a path that is text");
    let set = |user: &str, list: &str| redis(&from, &["HSET", "undelivered_messages_shop", user, list]);
    set("alice", &left(1..=300));
    set("bob", &left(1..=2));
    set("carol", "[]");
    let url = from.url();
    let import = || said(&mesa(&["import", &url, "--namespace", "shop", "--store-path", store]));
    assert!(import().starts_with("2 users, 302 messages in "));
    assert!(import().contains("2 users, 0 messages in "), "said again it brings nothing");
    // What has come since is brought, and only that; and a list that began anew is another.
    set("alice", &left(1..=310));
    set("bob", &left(7..=9));
    assert!(import().contains("2 users, 13 messages in "));
    let there = to.url();
    redis(&to, &["HSET", "undelivered_messages_shop", "bob", &left(1000..=1001)]);
    let export = || said(&mesa(&["export", &there, "--namespace", "shop", "--store-path", store]));
    assert!(export().starts_with("2 users, 315 messages in Redis"));
    assert!(export().starts_with("2 users, 0 messages copied to Redis, and verified; 315 copied before"));
    let get = |user: &str| numbers(&redis(&to, &["HGET", "undelivered_messages_shop", user]));
    assert_eq!(get("alice"), (1..=310).collect::<Vec<_>>());
    assert_eq!(get("bob"), [1000, 1001, 1, 2, 7, 8, 9]);
    // What a server had taken and could not put into a log is brought before what came later.
    let taken = format!("a-name\n{}", left(400..=401));
    redis(
        &from,
        &[
            "EVAL",
            "redis.call('HSET', KEYS[1], '\\0mesa:taken:carol', ARGV[1])",
            "1",
            "undelivered_messages_shop",
            &taken,
        ],
    );
    set("carol", &left(402..=402));
    assert!(import().starts_with("3 users, 3 messages in "));
    assert!(export().starts_with("3 users, 3 messages in Redis"));
    assert_eq!(get("carol"), (400..=402).collect::<Vec<_>>());
    // Another store in the same place is another, though its messages have the numbers that those had.
    std::fs::remove_dir_all(store).expect("the store goes");
    redis(&from, &["DEL", "undelivered_messages_shop"]);
    set("alice", &left(2001..=2002));
    assert!(import().starts_with("1 user, 2 messages in "));
    assert!(export().starts_with("1 user, 2 messages in Redis"));
    assert_eq!(get("alice"), (1..=310).chain(2001..=2002).collect::<Vec<_>>());
}

#[test]
fn what_cannot_be_understood_is_said_and_left_alone() {
    let (from, home) = (Redis::start(), Home::new());
    redis(&from, &["HSET", "undelivered_messages", "alice", "{not a list"]);
    let store = home.store();
    let words = ["import", &from.url(), "--store-path", store.to_str().expect("a path that is text")];
    let output = mesa(&words);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1));
    assert!(text.contains("alice") && text.contains("malformed"), "{text}");
    assert_eq!(redis(&from, &["HGET", "undelivered_messages", "alice"]), "{not a list");
}

/// More than is appended and read again at once.
#[test]
fn list_of_several_batches_is_brought_whole_and_once() {
    let (from, home, to) = (Redis::start(), Home::new(), Redis::start());
    let (store, url, there) = (home.store(), from.url(), to.url());
    let store = store.to_str().expect("a path that is text");
    for (last, new) in [(2_500, "2500"), (2_500, "0"), (4_100, "1600")] {
        redis(&from, &["HSET", "undelivered_messages", "alice", &left(1..=last)]);
        let text = said(&mesa(&["import", &url, "--store-path", store]));
        assert!(text.starts_with(&format!("1 user, {new} messages in ")), "{text}");
    }
    said(&mesa(&["export", &there, "--store-path", store]));
    let brought = numbers(&redis(&to, &["HGET", "undelivered_messages", "alice"]));
    assert_eq!(brought, (1..=4_100).collect::<Vec<_>>());
}
