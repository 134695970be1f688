//! Lists of users: a page costs Redis some steps, not some for each user.

use serde_json::Value;

use super::Stage;
use crate::original::redis;

/// Users who are online: one page.
const USERS: usize = 1_000;

/// Scripts that Redis may run for a page. Twenty users share one; the server's own upkeep runs some meanwhile.
const SCRIPTS_MAX: u64 = 200;

/// Scripts that Redis has run so far.
fn scripts(stage: &Stage) -> u64 {
    let statistics = redis(stage, &["INFO", "commandstats"]);
    let calls = |line: &str| line.strip_prefix("cmdstat_evalsha:calls=")?.split(',').next()?.parse::<u64>().ok();
    statistics.lines().find_map(calls).expect("the server runs scripts")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn page_of_online_users_is_read_in_few_steps() {
    let stage = Stage::new(1);
    let script = "for n = 1, ARGV[1] do redis.call('ZADD', KEYS[1], 0, string.format('user-%06d', n)) end";
    redis(&stage, &["EVAL", script, "1", "mesa:{here}:online", &USERS.to_string()]);
    let before = scripts(&stage);
    let (status, page) = stage.ask(0, "GET", &format!("/v1/users?online=true&limit={USERS}"), &Value::Null).await;
    let ran = scripts(&stage) - before;
    let users = page["users"].as_array().expect("users");
    assert_eq!((status, users.len(), &users[USERS - 1]["id"]), (200, USERS, &Value::from("user-001000")));
    assert!(ran < SCRIPTS_MAX, "{ran} scripts");
}
