//! A Redis that has no room (`maxmemory`): nobody is lost for it, and whoever waits can come and make some.

use serde_json::{Value, json};

use crate::{Redis, Stage, next, original::redis, until};

/// Of a message.
const BYTES: usize = 50_000;

fn message(n: u64) -> Value {
    json!({ "message": { "op": 0, "d": [n, "x".repeat(BYTES)], "t": "N" }, "recipients": ["bob"] })
}

/// Until when the leases hold, the earliest first.
fn leases(stage: &Stage) -> Vec<f64> {
    let said = redis(stage, &["ZRANGE", "mesa:{here}:nodes", "0", "-1", "WITHSCORES"]);
    said.lines().skip(1).step_by(2).map(|score| score.parse().expect("a score")).collect()
}

fn is_online(users: &Value, name: &str) -> bool {
    users["users"].as_array().is_some_and(|all| all.iter().any(|user| user["id"] == name))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_is_full_keeps_who_is_here_lets_who_waits_come_and_takes_messages_again_when_he_has_his() {
    let database = Redis::start_with(&["--maxmemory", "8mb", "--maxmemory-policy", "noeviction"]);
    let stage = Stage::on(&format!("redis: '{}', ", database.url()), 2);
    let stage = Stage { redis: Some(database), ..stage };
    let alice = stage.client(0, "alice").await;
    stage.until("alice to be seen", 1, "/v1/users?online=true", |users| is_online(users, "alice")).await;
    let mut taken = 0;
    let refused = loop {
        let (status, answer) = stage.ask(0, "POST", "/v1/dispatch", &message(taken + 1)).await;
        if status != 200 {
            break (status, answer);
        }
        taken += 1;
    };
    assert_eq!((refused.0, &refused.1["error"]["code"]), (507, &json!("full")), "{refused:?}");
    // Not by a hair: nothing that a buffer gives back makes room.
    let memory = redis(&stage, &["INFO", "memory"]);
    let used = memory.lines().find_map(|line| line.trim().strip_prefix("used_memory:")?.parse::<u64>().ok());
    redis(&stage, &["CONFIG", "SET", "maxmemory", &(used.expect("it says") - 500_000).to_string()]);
    assert_eq!(stage.ask(0, "POST", "/v1/dispatch", &message(0)).await.0, 507);
    assert_eq!(stage.ask(0, "GET", "/readyz", &Value::Null).await.0, 503);
    let before = leases(&stage);
    assert_eq!(before.len(), 2);
    until("both leases to be renewed twice", async || {
        let now = leases(&stage);
        now.len() == 2 && now[0] > before[1] && now[0] - before[0] > 3_000.0
    })
    .await;
    // Who comes now is seen everywhere, and who goes is not any more.
    let carol = stage.client(1, "carol").await;
    stage.until("carol to be seen", 0, "/v1/users?online=true", |users| is_online(users, "carol")).await;
    drop(alice);
    stage
        .until("alice to be seen no more", 1, "/v1/users?online=true", |users| {
            is_online(users, "carol") && !is_online(users, "alice")
        })
        .await;
    assert_eq!(stage.ask(0, "POST", "/v1/dispatch", &message(0)).await.0, 507, "it is full still");
    let mut bob = stage.client(1, "bob").await;
    for n in 1..=taken {
        assert_eq!(next(&mut bob).await[0], n);
    }
    // Nobody dispatches meanwhile: that is what being full has done to this server.
    let ready = async {
        until("it to be ready again by itself", async || stage.ask(0, "GET", "/readyz", &Value::Null).await.0 == 200)
            .await;
    };
    let mut went_on = Box::pin(next(&mut bob));
    tokio::select! {
        () = ready => {}
        more = &mut went_on => panic!("{more}"),
    }
    stage.dispatch(0, &message(taken + 1)).await;
    assert_eq!(went_on.await[0], taken + 1);
    drop(carol);
}
