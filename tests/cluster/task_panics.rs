//! Tests that a panicking task of the cluster is reported and restarted. Needs `--features failpoints`.

use std::fs;

use serde_json::Value;

use super::{Home, Redis, Server, ServerGroup, message, next_data, wait_until};

/// Names of all tasks that a server runs for its Redis.
const TASKS: [&str; 15] = [
    "cluster_broadcast",
    "cluster_lease",
    "cluster_original_marks",
    "cluster_original_messages",
    "cluster_portal_events",
    "cluster_portal_reader",
    "cluster_portal_subscriber",
    "cluster_portal_writer",
    "cluster_presence_reader",
    "cluster_presence_writer",
    "cluster_subscriber",
    "redis_acknowledgements",
    "redis_appends",
    "redis_expiry",
    "redis_undelivered",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn panicking_cluster_task_is_named_in_readyz_and_restarted() {
    let redis = Redis::start();
    let settings = format!("redis: '{}', portal: {{ enabled: true }},", redis.url());
    let mut homes: Vec<Home> = (0..2).map(|_| Home::with_settings(&settings)).collect();
    let file = homes[0].path("panic");
    homes[0].set_variable("MESA_FAILPOINT_PANIC", &TASKS.join(","));
    homes[0].set_variable("MESA_FAILPOINT_PANIC_WHILE", file.to_str().expect("a UTF-8 path"));
    let servers: Vec<Server> = homes.iter().map(Home::start).collect();
    let group = ServerGroup { redis: Some(redis), homes, servers };
    let readiness = async || {
        let mut http = group.http(0);
        let request = tokio::task::spawn_blocking(move || http.call("GET", "/readyz", "").expect("a response"));
        let (status, text) = request.await.expect("the request does not panic");
        (status, String::from_utf8(text).expect("UTF-8 text"))
    };
    fs::write(&file, "").expect("a new file");
    wait_until("/readyz names every task", async || {
        let (status, text) = readiness().await;
        status == 503 && TASKS.iter().all(|task| text.contains(&format!("{task}: ")))
    })
    .await;
    fs::remove_file(&file).expect("an existing file");
    wait_until("the server is ready", async || readiness().await.0 == 200).await;
    let mut alice = group.client(0, "alice").await;
    group.wait_until("alice is online", 1, "/v1/users?online=true", |users| users["users"][0]["id"] == "alice").await;
    for (n, server) in [(1, 0), (2, 1)] {
        group.dispatch(server, &message(n, &["alice", "bob"])).await;
        assert_eq!(next_data(&mut alice).await, n);
    }
    let mut bob = group.client(1, "bob").await;
    for n in [1, 2] {
        assert_eq!(next_data(&mut bob).await, n);
    }
    let (status, _) = group.call(0, "GET", "/readyz", &Value::Null).await;
    assert_eq!(status, 200, "{}", group.homes[0].log());
}
