//! Tests the number of Redis scripts that a page of users costs.

use serde_json::Value;

use super::ServerGroup;

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
