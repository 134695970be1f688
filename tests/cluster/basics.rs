//! Servers among themselves.

use serde_json::{Value, json};

use crate::{PATIENCE, Stage, closed, message, next, support::socket::Event, unsynced, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_taken_by_one_server_reaches_its_user_at_another_and_one_who_is_away_wherever_he_comes() {
    let stage = Stage::new(2);
    let mut alice = stage.client(1, "alice").await;
    stage.until("alice to be seen", 0, "/v1/users?online=true", |users| users["users"][0]["id"] == "alice").await;
    let answer = stage.dispatch(0, &message(1, &["alice", "bob"])).await;
    assert_eq!(
        (&answer["online"], &answer["offline"], &answer["stored"]),
        (&json!(1), &json!(1), &json!(2)),
        "{answer}"
    );
    assert_eq!(next(&mut alice).await, 1);
    // A repeat gets the first result at another server too, whether or not anything was stored.
    for (sync, stored) in [(true, 1), (false, 0)] {
        let once = json!({
            "message": { "d": 0, "o": { "sync": sync } }, "recipients": ["dave"], "id": format!("once-{sync}"),
        });
        let first = stage.dispatch(0, &once).await;
        assert_eq!((&first["offline"], &first["stored"]), (&json!(1), &json!(stored)), "{first}");
        let repeat = stage.dispatch(1, &once).await;
        assert_eq!((&repeat["duplicate"], &repeat["stored"]), (&json!(true), &json!(stored)), "{repeat}");
    }
    for n in 2..=50 {
        stage.dispatch(n as usize % 2, &message(n, &["alice", "bob"])).await;
    }
    let mut bob = stage.client(0, "bob").await;
    for n in 1..=50 {
        assert_eq!(next(&mut bob).await, n);
        if n > 1 {
            assert_eq!(next(&mut alice).await, n);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_never_kept_and_who_is_to_go_is_heard_at_every_server() {
    let stage = Stage::new(2);
    let (mut alice, mut bob) = (stage.client(0, "alice").await, stage.client(1, "bob").await);
    let mut carol = stage.client(1, "carol").await;
    stage
        .until("all to be seen", 0, "/v1/users?online=true", |users| {
            users["users"].as_array().is_some_and(|all| all.len() == 3)
        })
        .await;
    // Until a server listens to the others it hears nothing of what is not kept.
    let mut n = 0;
    until("the other to listen", async || {
        n += 1;
        stage.dispatch(0, &unsynced(n, &["bob"], &[])).await;
        tokio::time::timeout(std::time::Duration::from_millis(200), bob.next()).await.is_ok()
    })
    .await;
    let answer = stage.dispatch(0, &unsynced(1000, &["*"], &["carol"])).await;
    assert!(answer["recipients"].as_u64() >= Some(2), "{answer}");
    assert_eq!(next(&mut alice).await, 1000);
    while next(&mut bob).await != 1000 {}
    let answer = stage.dispatch(0, &unsynced(1001, &["carol", "nobody"], &[])).await;
    assert_eq!((&answer["online"], &answer["offline"]), (&json!(1), &json!(1)), "{answer}");
    assert_eq!(next(&mut carol).await, 1001, "and not what she was excluded from");
    let (_, answer) = stage.ask(0, "POST", "/v1/users/carol/disconnect", &Value::Null).await;
    assert_eq!(answer["disconnected"], 1);
    assert!(closed(&mut carol).await.contains("code: Normal"));
    let go = json!({ "message": { "op": 5, "t": "DISCONNECT_CLIENT" }, "recipients": ["*"], "excluding": ["alice"] });
    stage.dispatch(1, &go).await;
    assert!(closed(&mut bob).await.contains("code: Normal"));
    stage.dispatch(1, &message(1002, &["alice"])).await;
    assert_eq!(next(&mut alice).await, 1002, "who was excluded is still there");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_dies_leaves_no_ghost_and_its_users_get_what_waits_at_another() {
    let mut stage = Stage::new(2);
    let (alice, _bob) = (stage.client(1, "alice").await, stage.client(0, "bob").await);
    let online = |count: usize| move |users: &Value| users["users"].as_array().is_some_and(|all| all.len() == count);
    stage.until("both to be seen", 0, "/v1/users?online=true", online(2)).await;
    stage.servers.pop().expect("the second").process.kill();
    drop(alice);
    stage.dispatch(0, &message(1, &["alice"])).await;
    stage.until("the ghost to go", 0, "/v1/users?online=true", online(1)).await;
    let answer = stage.dispatch(0, &message(2, &["alice"])).await;
    assert_eq!(answer["offline"], 1, "{answer}");
    let mut alice = stage.client(0, "alice").await;
    assert_eq!((next(&mut alice).await, next(&mut alice).await), (json!(1), json!(2)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_redis_is_away_dispatches_fail_aloud_and_clients_stay() {
    let stage = Stage::new(2);
    let mut alice = stage.client(1, "alice").await;
    stage.dispatch(0, &message(1, &["alice"])).await;
    assert_eq!(next(&mut alice).await, 1);
    stage.redis().kill();
    let (status, refused) = stage.ask(0, "POST", "/v1/dispatch", &message(2, &["alice"])).await;
    assert_eq!((status, &refused["error"]["code"]), (503, &json!("unreachable")), "{refused}");
    let (ready, _) = stage.ask(0, "GET", "/readyz", &Value::Null).await;
    assert_eq!(ready, 503);
    stage.redis().revive();
    until("dispatches to be taken again", async || {
        let (status, _) = stage.ask(0, "POST", "/v1/dispatch", &message(3, &["alice"])).await;
        status == 200
    })
    .await;
    assert_eq!(next(&mut alice).await, 3, "on the connection she had");
    stage.until("all to be ready", 1, "/v1/users/alice", |alice| alice["online"] == true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_client_confirms_before_it_hears_that_its_server_stops_does_not_come_again_at_another() {
    let mut stage = Stage::new(2);
    let mut alice = stage.client(0, "alice").await;
    stage.dispatch(0, &message(1, &["alice"])).await;
    assert!(matches!(alice.event().await, Ok(Event::Message(first)) if first.d == 1));
    assert_eq!(alice.event().await, Ok(Event::Question));
    let stopping = stage.servers.remove(0);
    stopping.terminate();
    alice.readable().await.expect("it is told to go");
    alice.answer().await.expect("it is there");
    assert!(closed(&mut alice).await.contains("code: Away"));
    assert!(stopping.process.wait(PATIENCE).success());
    let mut alice = stage.client(0, "alice").await;
    stage.dispatch(0, &message(2, &["alice"])).await;
    assert_eq!(next(&mut alice).await, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_of_logs_that_are_in_redis_is_refused_with_what_to_do() {
    let stage = Stage::with(1, "");
    let (status, answer) = stage.ask(0, "GET", "/v1/backup", &serde_json::Value::Null).await;
    assert_eq!((status, &answer["error"]["code"]), (409, &serde_json::json!("backup_elsewhere")), "{answer}");
    assert!(answer["error"]["message"].as_str().is_some_and(|text| text.contains("BGSAVE")), "{answer}");
}
