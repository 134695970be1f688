//! Tests two servers on a Redis under three Sentinels, during failovers with and without loss, and a lone primary.

use serde_json::{Value, json};
use tokio::task::block_in_place;

use super::{
    ServerGroup, dispatch_until_accepted, message, next_data, receive_through,
    redis_topologies::{RedisNode, SentinelGroup},
    support::{
        socket::{Event, Socket},
        wait::block_until,
    },
    wait_until,
};

/// Blocks until the replica has copied everything from the primary, which has the index `primary`.
fn block_until_copied(redis: &SentinelGroup, primary: usize) {
    let offset = |node: usize, name: &str| {
        let text = redis.nodes[node].cli(&["INFO", "replication"]);
        text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok())
    };
    block_until("the replica has copied everything", || {
        let written = offset(primary, "master_repl_offset:");
        written.is_some() && offset(1 - primary, "slave_repl_offset:") >= written
    });
}

// covers: G2, G4
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sentinel_failover_rejects_dispatches_and_keeps_clients_and_replicated_messages() {
    let redis = block_in_place(SentinelGroup::start);
    let group = ServerGroup::start_on(&redis.setting(), 2);
    let (mut alice, mut bob) = (group.client(1, "alice").await, group.client(0, "bob").await);
    let mut n = 0;
    for _ in 0..20 {
        n += 1;
        group.dispatch(n as usize % 2, &message(n, &["alice", "bob", "carol"])).await;
        assert_eq!((next_data(&mut alice).await, next_data(&mut bob).await), (json!(n), json!(n)));
    }
    let copied = n;
    block_in_place(|| block_until_copied(&redis, 0));
    redis.detect_failures(true);
    redis.nodes[0].kill();
    let (status, response) = group.call(0, "POST", "/v1/dispatch", &message(1000, &["dave"])).await;
    assert_eq!((status, &response["error"]["code"]), (503, &json!("unreachable")), "{response}");
    let mut accepted: Vec<u64> = (1..=copied).collect();
    for server in 0..2 {
        let rejected = dispatch_until_accepted(&group, server, &mut n, &["alice", "bob", "carol"]).await;
        println!("server {server} rejected {rejected} dispatches");
        accepted.push(n);
    }
    assert!(redis.nodes[1].has_role("master"), "the replica has taken over");
    redis.detect_failures(false);
    for server in 0..2 {
        n += 1;
        group.dispatch(server, &message(n, &["alice", "bob", "carol"])).await;
        accepted.push(n);
    }
    // A rejected message may have been stored. Accepted ones arrive once, on the same connections.
    for socket in [&mut alice, &mut bob] {
        let received = receive_through(socket, n).await;
        assert!(received.is_sorted_by(|a, b| a < b) && received[0] > copied, "{received:?}");
        let mut after_copied = accepted.iter().filter(|n| **n > copied);
        assert!(after_copied.all(|n| received.contains(n)), "{accepted:?}: {received:?}");
    }
    // A user that was offline all the time receives every accepted message, in order.
    let mut carol = group.client(0, "carol").await;
    let received = receive_through(&mut carol, n).await;
    assert!(received.is_sorted_by(|a, b| a < b) && accepted.iter().all(|n| received.contains(n)), "{received:?}");
    let online = |users: &Value| users["users"].as_array().is_some_and(|all| all.len() == 3);
    group.wait_until("three users are online", 1, "/v1/users?online=true", online).await;
    // The old primary restarts as a replica and takes over again while the other runs. No server may stay with the
    // other.
    redis.nodes[0].restart();
    block_in_place(|| {
        block_until("the old primary is connected as a replica", || {
            redis.nodes[0].cli(&["INFO", "replication"]).contains("master_link_status:up")
        });
        block_until_copied(&redis, 1);
        block_until("the failover begins", || redis.sentinels[0].cli(&["SENTINEL", "FAILOVER", "mesa"]) == "OK");
        block_until("the old primary has taken over", || {
            redis.nodes[0].has_role("master") && redis.nodes[1].has_role("slave")
        });
    });
    for server in 0..2 {
        dispatch_until_accepted(&group, server, &mut n, &["alice"]).await;
    }
    n += 1;
    group.dispatch(0, &message(n, &["alice"])).await;
    receive_through(&mut alice, n).await;
    let subscribers = |node: usize| redis.nodes[node].cli(&["PUBSUB", "NUMSUB", "mesa:appended"]);
    block_in_place(|| {
        block_until("both servers subscribe at the new primary only", || {
            subscribers(0).ends_with('2') && subscribers(1).ends_with('0')
        });
    });
    // An operator makes the primary a replica without closing its connections. Each server must notice it itself.
    let port = redis.nodes[1].port.to_string();
    redis.sentinels.iter().for_each(RedisNode::kill);
    redis.nodes[1].cli(&["REPLICAOF", "NO", "ONE"]);
    redis.nodes[0].cli(&["REPLICAOF", "127.0.0.1", &port]);
    let (status, response) = group.call(0, "POST", "/v1/dispatch", &message(1001, &["alice"])).await;
    assert_eq!((status, &response["error"]["code"]), (503, &json!("unreachable")), "{response}");
}

/// Connects a device of alice that resumes after a sequence.
async fn resuming_client(group: &ServerGroup, server: usize, device: &str, after: u64) -> Socket {
    Socket::connect_as(group.servers[server].address, "alice", Some(after), Some(device))
        .await
        .expect("a connected client")
}

/// The last entries of a primary were not replicated. Redis would assign their sequences again, but clients have seen
/// them.
// covers: G4, G5
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failover_that_loses_entries_reports_a_gap_and_reuses_no_sequence() {
    let redis = block_in_place(SentinelGroup::start);
    let group = ServerGroup::start_on(&redis.setting(), 2);
    let (mut alice, mut phone) = (group.client(1, "alice").await, resuming_client(&group, 0, "phone", 0).await);
    let mut n = 0;
    for copied in [true, false] {
        for _ in 0..5 {
            n += 1;
            group.dispatch(0, &message(n, &["alice", "bob"])).await;
            assert_eq!(next_data(&mut alice).await, json!(n));
            assert_eq!(receive_through(&mut phone, n).await, [n]);
        }
        if copied {
            block_in_place(|| block_until_copied(&redis, 0));
            // From now on the replica copies nothing.
            assert_eq!(redis.nodes[1].cli(&["REPLICAOF", "127.0.0.1", "1"]), "OK");
        }
    }
    redis.detect_failures(true);
    redis.nodes[0].kill();
    // Messages accepted from now on are delivered, although the new primary's sequences are lower than those that
    // clients have.
    for server in 0..2 {
        dispatch_until_accepted(&group, server, &mut n, &["alice", "bob"]).await;
    }
    let first_accepted = n;
    for server in [0, 1, 0, 1] {
        n += 1;
        group.dispatch(server, &message(n, &["alice", "bob"])).await;
    }
    for socket in [&mut alice, &mut phone] {
        let received = receive_through(socket, n).await;
        assert!(received[0] > 10 && received.ends_with(&(first_accepted..=n).collect::<Vec<_>>()), "{received:?}");
    }
    let lost = |n: u64| !redis.nodes[1].cli(&["XRANGE", "mesa:log:{bob}", "-", "+"]).contains(&format!("\"d\":{n},"));
    assert!(lost(6) && lost(10) && !lost(5), "the failover loses exactly the entries that were not replicated");
    // A device that resumes after a lost sequence receives a gap, and every stored entry.
    let mut tablet = resuming_client(&group, 1, "tablet", 10).await;
    let Ok(Event::Resumed(resumed)) = tablet.event().await else { panic!("op 13 is expected first") };
    let missed = resumed.missed.expect("a gap");
    assert_eq!((missed.from, missed.reason.as_str()), (11, "lost"));
    let received = receive_through(&mut tablet, n).await;
    assert!(received.ends_with(&(first_accepted..=n).collect::<Vec<_>>()), "{received:?}");
    let mut bob = group.client(0, "bob").await;
    let received = receive_through(&mut bob, n).await;
    let expected: Vec<u64> = (first_accepted..=n).collect();
    assert!(received.starts_with(&[1, 2, 3, 4, 5]) && received.ends_with(&expected), "{received:?}");
}

// covers: G4, G5
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_emptied_under_connected_and_resuming_clients_delivers_new_messages() {
    let group = ServerGroup::start(2);
    let (mut alice, mut phone) = (group.client(1, "alice").await, resuming_client(&group, 0, "phone", 0).await);
    for n in 1..=10 {
        group.dispatch(0, &message(n, &["alice"])).await;
        assert_eq!(next_data(&mut alice).await, json!(n));
        assert_eq!(receive_through(&mut phone, n).await, [n]);
    }
    assert_eq!(group.redis().cli(&["FLUSHALL"]), "OK");
    for n in 11..=15 {
        group.dispatch(n as usize % 2, &message(n, &["alice"])).await;
        assert_eq!(next_data(&mut alice).await, json!(n));
        assert_eq!(receive_through(&mut phone, n).await, [n]);
    }
    let mut tablet = resuming_client(&group, 1, "tablet", 10).await;
    let Ok(Event::Resumed(resumed)) = tablet.event().await else { panic!("op 13 is expected first") };
    assert_eq!(resumed.missed.map(|missed| (missed.from, missed.reason)), Some((11, "lost".to_owned())));
    assert!(receive_through(&mut tablet, 15).await.ends_with(&[15]));
    let online = |users: &Value| users["users"].as_array().is_some_and(|all| all.len() == 1);
    group.wait_until("alice is online again", 1, "/v1/users?online=true", online).await;
}

/// With `min-replicas-to-write` a primary without replicas rejects writes.
// covers: G4
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn primary_without_replicas_rejects_dispatches_and_clients_stay_connected() {
    let group = ServerGroup::start(1);
    let mut alice = group.client(0, "alice").await;
    group.dispatch(0, &message(1, &["alice"])).await;
    assert_eq!(next_data(&mut alice).await, 1);
    assert_eq!(group.redis().cli(&["CONFIG", "SET", "min-replicas-to-write", "1"]), "OK");
    let (status, response) = group.call(0, "POST", "/v1/dispatch", &message(2, &["alice"])).await;
    assert_eq!((status, &response["error"]["code"]), (503, &json!("unreachable")), "{response}");
    assert!(response["error"]["message"].as_str().is_some_and(|text| text.contains("NOREPLICAS")), "{response}");
    assert_eq!(group.redis().cli(&["CONFIG", "SET", "min-replicas-to-write", "0"]), "OK");
    let mut n = 2;
    dispatch_until_accepted(&group, 0, &mut n, &["alice"]).await;
    assert_eq!(receive_through(&mut alice, n).await, [n], "rejected messages are not stored");
    wait_until("the server is ready", async || group.call(0, "GET", "/readyz", &Value::Null).await.0 == 200).await;
}
