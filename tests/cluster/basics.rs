//! Tests dispatch, presence, disconnects, failures and shutdown across two servers on one Redis.

use serde_json::{Value, json};

use crate::{
    ServerGroup, WAIT_TIMEOUT, close_reason, message, next_data, support::socket::Event, unsynced, wait_until,
};

// covers: G2
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dispatch_at_one_server_reaches_online_and_offline_users_at_another() {
    let group = ServerGroup::start(2);
    let mut alice = group.client(1, "alice").await;
    group.wait_until("alice is online", 0, "/v1/users?online=true", |users| users["users"][0]["id"] == "alice").await;
    let response = group.dispatch(0, &message(1, &["alice", "bob"])).await;
    assert_eq!(
        (&response["online"], &response["offline"], &response["stored"]),
        (&json!(1), &json!(1), &json!(2)),
        "{response}"
    );
    assert_eq!(next_data(&mut alice).await, 1);
    // A retry with the same id at another server returns the first result too, whether or not an entry was stored.
    for (sync, stored) in [(true, 1), (false, 0)] {
        let dispatch = json!({
            "message": { "d": 0, "o": { "sync": sync } }, "recipients": ["dave"], "id": format!("id-{sync}"),
        });
        let first = group.dispatch(0, &dispatch).await;
        assert_eq!((&first["offline"], &first["stored"]), (&json!(1), &json!(stored)), "{first}");
        let retry = group.dispatch(1, &dispatch).await;
        assert_eq!((&retry["duplicate"], &retry["stored"]), (&json!(true), &json!(stored)), "{retry}");
    }
    for n in 2..=50 {
        group.dispatch(n as usize % 2, &message(n, &["alice", "bob"])).await;
    }
    let mut bob = group.client(0, "bob").await;
    for n in 1..=50 {
        assert_eq!(next_data(&mut bob).await, n);
        if n > 1 {
            assert_eq!(next_data(&mut alice).await, n);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unsynced_messages_and_disconnects_reach_clients_of_every_server() {
    let group = ServerGroup::start(2);
    let (mut alice, mut bob) = (group.client(0, "alice").await, group.client(1, "bob").await);
    let mut carol = group.client(1, "carol").await;
    group
        .wait_until("three users are online", 0, "/v1/users?online=true", |users| {
            users["users"].as_array().is_some_and(|all| all.len() == 3)
        })
        .await;
    // A server receives unsynced messages from other servers only once it has subscribed to them.
    let mut n = 0;
    wait_until("bob's server receives broadcasts", async || {
        n += 1;
        group.dispatch(0, &unsynced(n, &["bob"], &[])).await;
        tokio::time::timeout(std::time::Duration::from_millis(200), bob.next()).await.is_ok()
    })
    .await;
    let response = group.dispatch(0, &unsynced(1000, &["*"], &["carol"])).await;
    assert!(response["recipients"].as_u64() >= Some(2), "{response}");
    assert_eq!(next_data(&mut alice).await, 1000);
    while next_data(&mut bob).await != 1000 {}
    let response = group.dispatch(0, &unsynced(1001, &["carol", "dave"], &[])).await;
    assert_eq!((&response["online"], &response["offline"]), (&json!(1), &json!(1)), "{response}");
    assert_eq!(next_data(&mut carol).await, 1001, "the broadcast before it excludes carol");
    let (status, response) = group.call(0, "DELETE", "/v1/users/carol", &Value::Null).await;
    assert_eq!(status, 501, "users of a shared Redis cannot be erased: {response}");
    group.dispatch(0, &message(1002, &["carol"])).await;
    assert_eq!(next_data(&mut carol).await, 1002, "she stays connected");
    let (_, response) = group.call(0, "POST", "/v1/users/carol/disconnect", &Value::Null).await;
    assert_eq!(response["disconnected"], 1);
    assert!(close_reason(&mut carol).await.contains("code: Normal"));
    let disconnect =
        json!({ "message": { "op": 5, "t": "DISCONNECT_CLIENT" }, "recipients": ["*"], "excluding": ["alice"] });
    group.dispatch(1, &disconnect).await;
    assert!(close_reason(&mut bob).await.contains("code: Normal"));
    group.dispatch(1, &message(1003, &["alice"])).await;
    assert_eq!(next_data(&mut alice).await, 1003, "the excluded client stays connected");
}

// covers: G2
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_server_is_removed_from_presence_and_its_users_receive_pending_messages_at_another() {
    let mut group = ServerGroup::start(2);
    let (alice, _bob) = (group.client(1, "alice").await, group.client(0, "bob").await);
    let online = |count: usize| move |users: &Value| users["users"].as_array().is_some_and(|all| all.len() == count);
    group.wait_until("both users are online", 0, "/v1/users?online=true", online(2)).await;
    group.servers.pop().expect("a second server").process.kill();
    drop(alice);
    group.dispatch(0, &message(1, &["alice"])).await;
    group.wait_until("the user of the killed server is offline", 0, "/v1/users?online=true", online(1)).await;
    let response = group.dispatch(0, &message(2, &["alice"])).await;
    assert_eq!(response["offline"], 1, "{response}");
    let mut alice = group.client(0, "alice").await;
    assert_eq!((next_data(&mut alice).await, next_data(&mut alice).await), (json!(1), json!(2)));
}

// covers: G4
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dispatch_while_redis_is_down_returns_unreachable_and_clients_stay_connected() {
    let group = ServerGroup::start(2);
    let mut alice = group.client(1, "alice").await;
    group.dispatch(0, &message(1, &["alice"])).await;
    assert_eq!(next_data(&mut alice).await, 1);
    group.redis().kill();
    let (status, response) = group.call(0, "POST", "/v1/dispatch", &message(2, &["alice"])).await;
    assert_eq!((status, &response["error"]["code"]), (503, &json!("unreachable")), "{response}");
    let (ready, _) = group.call(0, "GET", "/readyz", &Value::Null).await;
    assert_eq!(ready, 503);
    group.redis().restart();
    wait_until("the server accepts a dispatch", async || {
        let (status, _) = group.call(0, "POST", "/v1/dispatch", &message(3, &["alice"])).await;
        status == 200
    })
    .await;
    assert_eq!(next_data(&mut alice).await, 3, "the message arrives on the same connection");
    group.wait_until("alice is online", 1, "/v1/users/alice", |alice| alice["online"] == true).await;
}

// covers: G2
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledgement_sent_before_a_stopping_server_closes_prevents_redelivery_at_another() {
    let mut group = ServerGroup::start(2);
    let mut alice = group.client(0, "alice").await;
    group.dispatch(0, &message(1, &["alice"])).await;
    assert!(matches!(alice.event().await, Ok(Event::Message(first)) if first.d == 1));
    assert_eq!(alice.event().await, Ok(Event::AckRequest));
    let stopping = group.servers.remove(0);
    stopping.terminate();
    alice.wait_readable().await.expect("a close frame arrives");
    alice.acknowledge().await.expect("the connection still accepts an acknowledgement");
    assert!(close_reason(&mut alice).await.contains("code: Away"));
    assert!(stopping.process.wait(WAIT_TIMEOUT).success());
    let mut alice = group.client(0, "alice").await;
    group.dispatch(0, &message(2, &["alice"])).await;
    assert_eq!(next_data(&mut alice).await, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backup_of_logs_in_redis_returns_conflict_and_names_bgsave() {
    let group = ServerGroup::start(1);
    let (status, response) = group.call(0, "GET", "/v1/backup", &Value::Null).await;
    assert_eq!((status, &response["error"]["code"]), (409, &json!("backup_elsewhere")), "{response}");
    assert!(response["error"]["message"].as_str().is_some_and(|text| text.contains("BGSAVE")), "{response}");
}
