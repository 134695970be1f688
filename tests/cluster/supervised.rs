//! Tasks of the cluster that panic. Only builds with seeded panics have them (`--features failpoints`).

use std::fs;

use serde_json::Value;

use super::{Home, Redis, Server, Stage, message, next, until};

/// Every task that a server runs for its Redis.
const PARTS: [&str; 15] = [
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
async fn task_of_the_cluster_that_panics_is_not_ready_by_name_and_starts_again() {
    let redis = Redis::start();
    let settings = format!("redis: '{}', portal: {{ enabled: true }},", redis.url());
    let mut homes: Vec<Home> = (0..2).map(|_| Home::with(&settings)).collect();
    let file = homes[0].path("panic");
    homes[0].set_variable("MESA_FAILPOINT_PANIC", &PARTS.join(","));
    homes[0].set_variable("MESA_FAILPOINT_PANIC_WHILE", file.to_str().expect("a path of the test's"));
    let servers: Vec<Server> = homes.iter().map(Home::start).collect();
    let stage = Stage { redis: Some(redis), homes, servers };
    let readiness = async || {
        let mut http = stage.http(0);
        let asked = tokio::task::spawn_blocking(move || http.call("GET", "/readyz", "").expect("an answer"));
        let (status, text) = asked.await.expect("it asks");
        (status, String::from_utf8(text).expect("text"))
    };
    fs::write(&file, "").expect("a file");
    until("every task to be named", async || {
        let (status, text) = readiness().await;
        status == 503 && PARTS.iter().all(|part| text.contains(&format!("{part}: ")))
    })
    .await;
    fs::remove_file(&file).expect("a file");
    until("the server to be ready", async || readiness().await.0 == 200).await;
    let mut alice = stage.client(0, "alice").await;
    stage.until("alice to be seen", 1, "/v1/users?online=true", |users| users["users"][0]["id"] == "alice").await;
    for (n, at) in [(1, 0), (2, 1)] {
        stage.dispatch(at, &message(n, &["alice", "bob"])).await;
        assert_eq!(next(&mut alice).await, n);
    }
    let mut bob = stage.client(1, "bob").await;
    for n in [1, 2] {
        assert_eq!(next(&mut bob).await, n);
    }
    let (status, _) = stage.ask(0, "GET", "/readyz", &Value::Null).await;
    assert_eq!(status, 200, "{}", stage.homes[0].log());
}
