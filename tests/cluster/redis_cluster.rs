//! Tests two servers on a Redis Cluster while its nodes die, lose their data, and move slots.

use std::{
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::task::block_in_place;

use crate::{
    ServerGroup, dispatch_until_accepted, message, next_data, receive_through,
    redis_topologies::{PASSWORD, RedisCluster, RedisNode},
    support::wait::block_until,
    wait_until,
};

// covers: G2, G4
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_primary_of_redis_cluster_loses_no_accepted_message_and_no_connection() {
    let redis = block_in_place(RedisCluster::start);
    let group = ServerGroup::start_on(&redis.setting(), 2);
    // Twelve users, so that every shard has some.
    let names: Vec<String> = (0..12).map(|n| format!("user-{n}")).collect();
    let to: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut clients = Vec::new();
    for (index, name) in to.iter().enumerate() {
        clients.push(group.client(index % 2, name).await);
    }
    let online = |users: &Value| users["users"].as_array().is_some_and(|all| all.len() == 12);
    group.wait_until("twelve users are online", 0, "/v1/users?online=true", online).await;
    let mut n = 0;
    for _ in 0..10 {
        n += 1;
        let response = group.dispatch(n as usize % 2, &message(n, &to)).await;
        assert_eq!(response["online"], 12, "{response}");
    }
    for client in &mut clients {
        assert_eq!(receive_through(client, n).await, (1..=n).collect::<Vec<_>>());
    }
    // Subscribes to the original's channel. The servers must not take this subscriber for a server with users.
    let port = redis.nodes[0].port.to_string();
    let mut subscriber = Command::new("redis-cli")
        .args(["--no-auth-warning", "-a", PASSWORD, "-p", &port, "SUBSCRIBE", "ws"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("redis-cli runs");
    for index in 0..20 {
        let user = format!("guest-{index}");
        drop(group.client(0, &user).await);
        group.dispatch(index % 2, &message(index as u64, &[&user])).await;
        let received = next_data(&mut group.client(1, &user).await).await;
        assert_eq!(received, index, "a message dispatched right after a disconnect is delivered on reconnect");
    }
    _ = subscriber.kill();
    _ = subscriber.wait();
    group.wait_until("the guests are offline", 0, "/v1/users?online=true", online).await;
    // First the node with the leases and the presence, then the first node of the configuration.
    for victim in [redis.owner("mesa:{cluster}:servers"), &redis.nodes[0]] {
        let before = n;
        let victim_was_primary = victim.has_role("master");
        redis.detect_failures(true);
        victim.kill();
        for server in 0..2 {
            let rejected = dispatch_until_accepted(&group, server, &mut n, &to).await;
            println!("server {server} rejected {rejected} dispatches");
        }
        redis.detect_failures(false);
        let accepted = n;
        for server in [0, 1, 0, 1] {
            n += 1;
            group.dispatch(server, &message(n, &to)).await;
        }
        for client in &mut clients {
            let received = receive_through(client, n).await;
            let in_order = received.is_sorted_by(|a, b| a < b) && received[0] > before;
            assert!(in_order, "each message is received once, in order: {received:?}");
            assert!(received.ends_with(&(accepted..=n).collect::<Vec<_>>()), "{received:?}");
        }
        group.wait_until("twelve users are online", 1, "/v1/users?online=true", online).await;
        assert!(victim_was_primary || victim.port == redis.nodes[0].port);
        victim.restart();
        block_in_place(|| {
            block_until("the restarted node is a primary or connected to one", || {
                let text = victim.cli(&["INFO", "replication"]);
                text.contains("role:master") || text.contains("master_link_status:up")
            });
            block_until("every node reports cluster_state:ok", || {
                redis.nodes.iter().all(|node| node.cli(&["CLUSTER", "INFO"]).contains("cluster_state:ok"))
            });
        });
    }
    // An unsynced message reaches the other server too.
    let (status, _) = group.call(0, "POST", "/v1/dispatch", &crate::unsynced(5000, &["user-1"], &[])).await;
    assert_eq!(status, 200);
    assert_eq!(next_data(&mut clients[1]).await, 5000);
}

/// Maximum time of a slot move during which no dispatch may be rejected. A server waits 3 s for a moving slot.
const SLOT_MOVE_TIMEOUT: Duration = Duration::from_secs(2);

/// Moves the slots of two users and of the leases to other primaries, key by key.
///
/// Returns the number of slots, and the longest time that a slot was between two primaries.
fn move_slots(redis: &RedisCluster) -> (usize, Duration) {
    let mut longest = Duration::ZERO;
    let keys = ["mesa:state:{bob}", "mesa:state:{alice}", "mesa:{cluster}:servers"];
    for key in keys {
        let from = redis.owner(key);
        let is_other_primary = |node: &&RedisNode| node.has_role("master") && node.port != from.port;
        let to = redis.nodes.iter().find(is_other_primary).expect("another primary");
        let slot = from.cli(&["CLUSTER", "KEYSLOT", key]);
        let (source, target) = (from.cli(&["CLUSTER", "MYID"]), to.cli(&["CLUSTER", "MYID"]));
        let start = Instant::now();
        assert_eq!(to.cli(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &source]), "OK");
        assert_eq!(from.cli(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &target]), "OK");
        // Leaves time for dispatches before the first key has moved, and between two keys.
        std::thread::sleep(Duration::from_millis(150));
        let port = to.port.to_string();
        loop {
            let key = from.cli(&["CLUSTER", "GETKEYSINSLOT", &slot, "1"]);
            if key.is_empty() {
                break;
            }
            assert_eq!(from.cli(&["MIGRATE", "127.0.0.1", &port, &key, "0", "5000", "AUTH", PASSWORD]), "OK", "{key}");
            std::thread::sleep(Duration::from_millis(50));
        }
        for node in [to, from] {
            assert_eq!(node.cli(&["CLUSTER", "SETSLOT", &slot, "NODE", &target]), "OK");
        }
        longest = longest.max(start.elapsed());
    }
    (keys.len(), longest)
}

/// Whether a dispatch was rejected because a slot moved, or Redis replied, too slowly.
fn is_timeout(status: u16, response: &Value) -> bool {
    let text = response["error"]["message"].as_str().unwrap_or_default();
    status == 503 && ["timed out", "TRYAGAIN", "MOVED", "ASK"].iter().any(|reason| text.contains(reason))
}

// covers: G2
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_moved_during_dispatches_lose_and_repeat_no_message() {
    let redis = block_in_place(RedisCluster::start);
    let group = ServerGroup::start_on(&redis.setting(), 2);
    let mut alice = group.client(1, "alice").await;
    for n in 1..=3 {
        group.dispatch(0, &message(n, &["alice", "bob"])).await;
    }
    assert_eq!(receive_through(&mut alice, 3).await, [1, 2, 3]);
    let held = redis.clone();
    let moving = tokio::task::spawn_blocking(move || move_slots(&redis));
    let (mut n, mut accepted, mut timeouts) = (3, vec![1, 2, 3], 0);
    while !moving.is_finished() {
        n += 1;
        let server = n as usize % 2;
        let mut dispatch = message(n, &["alice", "bob"]);
        dispatch["id"] = json!(n.to_string());
        let (mut status, mut response) = group.call(server, "POST", "/v1/dispatch", &dispatch).await;
        // A retry with the same id stores no second entry.
        while is_timeout(status, &response) {
            timeouts += 1;
            (status, response) = group.call(server, "POST", "/v1/dispatch", &dispatch).await;
        }
        assert_eq!(status, 200, "a dispatch is accepted while slots move: {response}");
        accepted.push(n);
    }
    let ((moved, longest), _redis) = (moving.await.expect("the slots move"), held);
    println!(
        "{} messages accepted while {moved} slots moved, each within {longest:?}; {timeouts} timeouts",
        accepted.len()
    );
    assert!(
        timeouts == 0 || longest > SLOT_MOVE_TIMEOUT,
        "no dispatch is rejected while each slot moves within {longest:?}; {timeouts} were"
    );
    assert!(accepted.len() > 20, "more than 20 dispatches are accepted, not {}", accepted.len());
    let last = *accepted.last().expect("an accepted dispatch");
    assert_eq!(receive_through(&mut alice, last).await, accepted[3..]);
    let mut bob = group.client(0, "bob").await;
    assert_eq!(receive_through(&mut bob, last).await, accepted);
    wait_until("both users are online", async || {
        let (_, users) = group.call(1, "GET", "/v1/users?online=true", &json!(null)).await;
        users["users"].as_array().is_some_and(|all| all.len() == 2)
    })
    .await;
}

// covers: G5
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_cluster_shard_restarted_empty_delivers_new_messages_to_its_users() {
    let redis = block_in_place(RedisCluster::start);
    let group = ServerGroup::start_on(&redis.setting(), 2);
    // The servers notice a loss in the shard of the leases at once. So the user is in another shard.
    let lease_shard = redis.owner("mesa:{cluster}:servers").port;
    let names: Vec<String> = (0..50).map(|n| format!("user-{n}")).collect();
    let in_other_shard = |name: &&String| redis.owner(&format!("mesa:state:{{{name}}}")).port != lease_shard;
    let name = names.iter().find(in_other_shard).expect("a user in another shard than the leases");
    let mut client = group.client(1, name).await;
    for n in 1..=10 {
        group.dispatch(0, &message(n, &[name])).await;
        assert_eq!(next_data(&mut client).await, json!(n));
    }
    let owner = redis.owner(&format!("mesa:state:{{{name}}}"));
    let shard: Vec<_> = redis.replicas_of(owner).into_iter().chain([owner]).collect();
    assert_eq!(shard.len(), 2);
    shard.iter().for_each(|node| node.kill());
    shard.iter().for_each(|node| node.delete_files());
    shard.iter().rev().for_each(|node| node.restart());
    let mut n = 10;
    for server in 0..2 {
        dispatch_until_accepted(&group, server, &mut n, &[name]).await;
    }
    let accepted = n;
    for server in [0, 1] {
        n += 1;
        group.dispatch(server, &message(n, &[name])).await;
    }
    assert!(receive_through(&mut client, n).await.ends_with(&[accepted, n - 1, n]));
}

/// Number of recipients of a dispatch to a Redis Cluster that is down.
const RECIPIENTS: usize = 60;

/// A dispatch waits for the Redis Cluster once, not once per recipient. Later ones fail at once until it is available.
// covers: G4
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dispatch_to_60_users_of_redis_cluster_that_is_down_waits_once() {
    let redis = block_in_place(RedisCluster::start);
    let group = ServerGroup::start_on(&redis.setting(), 1);
    let names: Vec<String> = (0..RECIPIENTS).map(|n| format!("user-{n}")).collect();
    let to: Vec<&str> = names.iter().map(String::as_str).collect();
    group.dispatch(0, &message(1, &to)).await;
    // No user is in this slot. A Redis Cluster is down while any slot has no node.
    let slot = redis.nodes[0].cli(&["CLUSTER", "KEYSLOT", "unused"]);
    let owner = redis.owner("unused");
    let has_state =
        |node: &RedisNode, state: &str| node.cli(&["CLUSTER", "INFO"]).contains(&format!("cluster_state:{state}"));
    for round in 0..2 {
        // A node assigns the slot again when it reads a heartbeat that the owner sent before its own DELSLOTS. So the
        // command is repeated until all nodes report the failure. Twice, because such a heartbeat may be unread still.
        let is_unassigned = |node: &RedisNode| {
            has_state(node, "fail") || {
                node.cli(&["CLUSTER", "DELSLOTS", &slot]);
                false
            }
        };
        for _ in 0..2 {
            block_in_place(|| block_until("every node reports a failure", || redis.nodes.iter().all(is_unassigned)));
        }
        let start = Instant::now();
        for n in 0..4 {
            let (status, response) = group.call(0, "POST", "/v1/dispatch", &message(n, &to)).await;
            assert_eq!((status, &response["error"]["code"]), (503, &json!("unreachable")), "{response}");
            assert!(
                response["error"]["message"].as_str().is_some_and(|text| text.contains("CLUSTERDOWN")),
                "{response}"
            );
        }
        // One wait takes 3 s. A wait per recipient would take 3 minutes, and a wait per dispatch 12 s.
        assert!(start.elapsed() < Duration::from_secs(12), "round {round}: {:?}", start.elapsed());
        owner.cli(&["CLUSTER", "ADDSLOTS", &slot]);
        block_in_place(|| {
            block_until("every node reports success", || redis.nodes.iter().all(|node| has_state(node, "ok")));
        });
        wait_until("the server accepts a dispatch", async || {
            group.call(0, "POST", "/v1/dispatch", &message(5, &to)).await.0 == 200
        })
        .await;
    }
}
