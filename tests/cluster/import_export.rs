//! Tests `mesa import` from, and `mesa export` to, the `undelivered_messages` lists of the original (`@cryb/mesa`).

use serde_json::{Value, json};

use crate::{
    redis_server::Redis,
    support::{
        command::{output_text, run_mesa, utf8},
        server::Home,
    },
};

/// Runs a command that must succeed, and returns what it printed.
fn run_successfully(arguments: &[&str]) -> String {
    let output = run_mesa(arguments);
    assert!(output.status.success(), "{}", output_text(&output));
    output_text(&output)
}

/// Returns a list of undelivered messages as the original stores it.
fn original_list(numbers: std::ops::RangeInclusive<u64>) -> String {
    json!(numbers.map(|n| json!({ "op": 0, "d": { "n": n }, "t": "N" })).collect::<Vec<_>>()).to_string()
}

/// Returns the numbers in a list of undelivered messages.
fn numbers(list: &str) -> Vec<u64> {
    let list: Vec<Value> = serde_json::from_str(list).expect("a JSON list");
    list.iter().map(|message| message["d"]["n"].as_u64().expect("a number")).collect()
}

#[test]
fn repeated_import_and_export_copy_each_message_once() {
    let (from, home, to) = (Redis::start(), Home::new(), Redis::start());
    let store = home.store();
    let store = utf8(&store);
    let set = |user: &str, list: &str| from.cli(&["HSET", "undelivered_messages_shop", user, list]);
    set("alice", &original_list(1..=300));
    set("bob", &original_list(1..=2));
    set("carol", "[]");
    let url = from.url();
    let import = || run_successfully(&["import", &url, "--namespace", "shop", "--store-path", store]);
    assert!(import().starts_with("2 users, 302 messages copied to "));
    assert!(import().contains("2 users, 0 messages copied to "), "a repeated import copies nothing");
    // A later import copies only new messages. A list with another beginning is a new list.
    set("alice", &original_list(1..=310));
    set("bob", &original_list(7..=9));
    assert!(import().contains("2 users, 13 messages copied to "));
    let target = to.url();
    to.cli(&["HSET", "undelivered_messages_shop", "bob", &original_list(1000..=1001)]);
    let export = || run_successfully(&["export", &target, "--namespace", "shop", "--store-path", store]);
    assert!(export().starts_with("2 users, 315 messages copied to Redis"));
    assert!(export().starts_with("2 users, 0 messages copied to Redis, and verified; 315 copied before"));
    let get = |user: &str| numbers(&to.cli(&["HGET", "undelivered_messages_shop", user]));
    assert_eq!(get("alice"), (1..=310).collect::<Vec<_>>());
    assert_eq!(get("bob"), [1000, 1001, 1, 2, 7, 8, 9]);
    // A server may have taken a list without appending it to a log. Import copies that list before the later one.
    let taken = format!("a-name\n{}", original_list(400..=401));
    from.cli(&[
        "EVAL",
        "redis.call('HSET', KEYS[1], '\\0mesa:taken:carol', ARGV[1])",
        "1",
        "undelivered_messages_shop",
        &taken,
    ]);
    set("carol", &original_list(402..=402));
    assert!(import().starts_with("3 users, 3 messages copied to "));
    assert!(export().starts_with("3 users, 3 messages copied to Redis"));
    assert_eq!(get("carol"), (400..=402).collect::<Vec<_>>());
    // A new store at the same path is another store, although its entries have the same sequences.
    std::fs::remove_dir_all(store).expect("the store is deleted");
    from.cli(&["DEL", "undelivered_messages_shop"]);
    set("alice", &original_list(2001..=2002));
    assert!(import().starts_with("1 user, 2 messages copied to "));
    assert!(export().starts_with("1 user, 2 messages copied to Redis"));
    assert_eq!(get("alice"), (1..=310).chain(2001..=2002).collect::<Vec<_>>());
}

#[test]
fn import_of_malformed_list_fails_by_user_and_leaves_the_list() {
    let (from, home) = (Redis::start(), Home::new());
    from.cli(&["HSET", "undelivered_messages", "alice", "{not a list"]);
    let store = home.store();
    let output = run_mesa(&["import", &from.url(), "--store-path", utf8(&store)]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1));
    assert!(text.contains("alice") && text.contains("malformed"), "{text}");
    assert_eq!(from.cli(&["HGET", "undelivered_messages", "alice"]), "{not a list");
}

/// The lists are longer than one batch of appends, and than one batch of reads.
#[test]
fn import_and_export_of_several_batches_copy_each_message_once() {
    let (from, home, to) = (Redis::start(), Home::new(), Redis::start());
    let (store, url, target) = (home.store(), from.url(), to.url());
    let store = utf8(&store);
    for (last, new) in [(2_500, "2500"), (2_500, "0"), (4_100, "1600")] {
        from.cli(&["HSET", "undelivered_messages", "alice", &original_list(1..=last)]);
        let text = run_successfully(&["import", &url, "--store-path", store]);
        assert!(text.starts_with(&format!("1 user, {new} messages copied to ")), "{text}");
    }
    run_successfully(&["export", &target, "--store-path", store]);
    let exported = numbers(&to.cli(&["HGET", "undelivered_messages", "alice"]));
    assert_eq!(exported, (1..=4_100).collect::<Vec<_>>());
}
