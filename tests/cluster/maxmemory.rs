//! Tests a Redis that has reached `maxmemory`: leases, presence and delivery go on, and dispatches are rejected.

use serde_json::{Value, json};

use crate::{Redis, ServerGroup, next_data, wait_until};

/// Bytes of one message.
const MESSAGE_BYTES: usize = 50_000;

fn message(n: u64) -> Value {
    json!({ "message": { "op": 0, "d": [n, "x".repeat(MESSAGE_BYTES)], "t": "N" }, "recipients": ["bob"] })
}

/// Returns the ends of the leases in milliseconds, the earliest first.
fn lease_ends(group: &ServerGroup) -> Vec<f64> {
    let nodes = group.redis().cli(&["ZRANGE", "mesa:{cluster}:servers", "0", "-1", "WITHSCORES"]);
    nodes.lines().skip(1).step_by(2).map(|score| score.parse().expect("a score")).collect()
}

fn is_online(users: &Value, name: &str) -> bool {
    users["users"].as_array().is_some_and(|all| all.iter().any(|user| user["id"] == name))
}

// covers: G4
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_redis_rejects_dispatches_keeps_presence_and_accepts_after_acknowledgements() {
    let redis_server = Redis::start_with(&["--maxmemory", "8mb", "--maxmemory-policy", "noeviction"]);
    let group = ServerGroup::start_on(&format!("redis: '{}', ", redis_server.url()), 2);
    let group = ServerGroup { redis: Some(redis_server), ..group };
    let alice = group.client(0, "alice").await;
    group.wait_until("alice is online", 1, "/v1/users?online=true", |users| is_online(users, "alice")).await;
    let mut accepted = 0;
    let (status, response) = loop {
        let (status, response) = group.call(0, "POST", "/v1/dispatch", &message(accepted + 1)).await;
        if status != 200 {
            break (status, response);
        }
        accepted += 1;
    };
    assert_eq!((status, &response["error"]["code"]), (507, &json!("full")), "{response}");
    // The limit goes 500 kB below the memory in use, so that a released buffer does not end the condition.
    let memory = group.redis().cli(&["INFO", "memory"]);
    let used = memory.lines().find_map(|line| line.trim().strip_prefix("used_memory:")?.parse::<u64>().ok());
    group.redis().cli(&["CONFIG", "SET", "maxmemory", &(used.expect("used_memory") - 500_000).to_string()]);
    assert_eq!(group.call(0, "POST", "/v1/dispatch", &message(0)).await.0, 507);
    assert_eq!(group.call(0, "GET", "/readyz", &Value::Null).await.0, 503);
    let before = lease_ends(&group);
    assert_eq!(before.len(), 2);
    wait_until("both leases are renewed twice", async || {
        let now = lease_ends(&group);
        now.len() == 2 && now[0] > before[1] && now[0] - before[0] > 3_000.0
    })
    .await;
    // Connects and disconnects still reach the other server.
    let carol = group.client(1, "carol").await;
    group.wait_until("carol is online", 0, "/v1/users?online=true", |users| is_online(users, "carol")).await;
    drop(alice);
    group
        .wait_until("alice is offline", 1, "/v1/users?online=true", |users| {
            is_online(users, "carol") && !is_online(users, "alice")
        })
        .await;
    assert_eq!(group.call(0, "POST", "/v1/dispatch", &message(0)).await.0, 507, "Redis is still full");
    let mut bob = group.client(1, "bob").await;
    for n in 1..=accepted {
        assert_eq!(next_data(&mut bob).await[0], n);
    }
    // The server becomes ready without a dispatch: backends send none to a server that is not ready.
    let ready = async {
        wait_until("the server is ready without a dispatch", async || {
            group.call(0, "GET", "/readyz", &Value::Null).await.0 == 200
        })
        .await;
    };
    let mut next = Box::pin(next_data(&mut bob));
    tokio::select! {
        () = ready => {}
        data = &mut next => panic!("bob receives a message that was not dispatched: {data}"),
    }
    group.dispatch(0, &message(accepted + 1)).await;
    assert_eq!(next.await[0], accepted + 1);
    drop(carol);
}
