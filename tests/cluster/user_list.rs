//! Tests what the HTTP API tells of users on a shared Redis, and how many scripts a page of users costs.

use serde_json::{Value, json};

use super::{ServerGroup, message, receive_through, support::socket::Socket};

/// Number of online users, all in one page.
const USERS: usize = 1_000;

/// Maximum number of scripts during the request for a page. Twenty users share one; the server's maintenance runs
/// others.
const SCRIPTS_MAX: u64 = 200;

/// Returns the number of scripts that Redis has run.
fn scripts_run(group: &ServerGroup) -> u64 {
    let statistics = group.redis().cli(&["INFO", "commandstats"]);
    let calls = |line: &str| line.strip_prefix("cmdstat_evalsha:calls=")?.split(',').next()?.parse::<u64>().ok();
    statistics.lines().find_map(calls).expect("a count of EVALSHA")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn page_of_1000_online_users_runs_less_than_200_redis_scripts() {
    let group = ServerGroup::start(1);
    let script = "for n = 1, ARGV[1] do redis.call('ZADD', KEYS[1], 0, string.format('user-%06d', n)) end";
    group.redis().cli(&["EVAL", script, "1", "mesa:{cluster}:online", &USERS.to_string()]);
    let before = scripts_run(&group);
    let (status, page) = group.call(0, "GET", &format!("/v1/users?online=true&limit={USERS}"), &Value::Null).await;
    let scripts = scripts_run(&group) - before;
    let users = page["users"].as_array().expect("a list of users");
    assert_eq!((status, users.len(), &users[USERS - 1]["id"]), (200, USERS, &Value::from("user-001000")));
    assert!(scripts < SCRIPTS_MAX, "less than {SCRIPTS_MAX} scripts are expected, not {scripts}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_server_reports_acknowledged_positions_and_gaps_of_a_user() {
    let group = ServerGroup::start(2);
    let phone = Socket::connect_as(group.servers[0].address, "alice", Some(0), Some("phone"));
    let mut phone = phone.await.expect("a connected client");
    for n in 1..=4 {
        group.dispatch(n as usize % 2, &message(n, &["alice"])).await;
    }
    receive_through(&mut phone, 4).await;
    let (_, alice) = group.call(1, "GET", "/v1/users/alice", &Value::Null).await;
    let last = alice["lastSequence"].as_u64().expect("a sequence");
    phone.acknowledge_through(last - 2).await.expect("an open connection");
    for server in 0..2 {
        let is_reported = |alice: &Value| {
            (&alice["acknowledged"], &alice["pending"], &alice["gaps"]) == (&json!(last - 2), &json!(2), &json!([]))
                && alice["devices"][0]["device"] == "phone"
                && (&alice["devices"][0]["acknowledged"], &alice["devices"][0]["pending"])
                    == (&json!(last - 2), &json!(2))
        };
        group.wait_until("the position of the phone", server, "/v1/users/alice", is_reported).await;
    }

    let (status, cleared) = group.call(1, "DELETE", "/v1/users/alice/messages", &Value::Null).await;
    assert_eq!((status, &cleared["cleared"]), (200, &json!(2)));
    let gaps = json!([{ "from": last - 1, "to": last, "reason": "cleared" }]);
    for server in 0..2 {
        let is_reported = |alice: &Value| {
            (&alice["acknowledged"], &alice["pending"], &alice["gaps"]) == (&json!(last), &json!(0), &gaps)
        };
        group.wait_until("the gap", server, "/v1/users/alice", is_reported).await;
        let (_, page) = group.call(server, "GET", "/v1/users", &Value::Null).await;
        assert_eq!((&page["users"][0]["id"], &page["users"][0]["gaps"]), (&json!("alice"), &Value::Null));
    }
}
