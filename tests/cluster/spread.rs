//! Two servers on a Redis Cluster, as their users see them while its nodes die and its slots move.

use std::{
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::task::block_in_place;

use super::{
    Stage, message, next,
    redis_modes::{Cluster, Node, PASSWORD, cli, wait},
    through, until, until_taken,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_a_redis_cluster_all_are_reached_also_when_a_primary_dies() {
    let cluster = block_in_place(Cluster::start);
    let stage = Stage::on(&cluster.setting(), 2);
    // So many that every shard has some.
    let names: Vec<String> = (0..12).map(|n| format!("user-{n}")).collect();
    let to: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut clients = Vec::new();
    for (at, name) in to.iter().enumerate() {
        clients.push(stage.client(at % 2, name).await);
    }
    let online = |users: &Value| users["users"].as_array().is_some_and(|all| all.len() == 12);
    stage.until("all to be seen", 0, "/v1/users?online=true", online).await;
    let mut n = 0;
    for _ in 0..10 {
        n += 1;
        let answer = stage.dispatch(n as usize % 2, &message(n, &to)).await;
        assert_eq!(answer["online"], 12, "{answer}");
    }
    for client in &mut clients {
        assert_eq!(through(client, n).await, (1..=n).collect::<Vec<_>>());
    }
    // Whoever subscribes where stock would: nobody there can have users.
    let port = cluster.nodes[0].port.to_string();
    let mut subscriber = Command::new("redis-cli")
        .args(["--no-auth-warning", "-a", PASSWORD, "-p", &port, "SUBSCRIBE", "ws"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("redis-cli runs");
    for each in 0..20 {
        let user = format!("guest-{each}");
        drop(stage.client(0, &user).await);
        stage.dispatch(each % 2, &message(each as u64, &[&user])).await;
        assert_eq!(next(&mut stage.client(1, &user).await).await, each, "it waits for who has just gone");
    }
    _ = subscriber.kill();
    _ = subscriber.wait();
    stage.until("the guests to be gone", 0, "/v1/users?online=true", online).await;
    // The one with the leases and with who is here, and after it the one with the first of the configuration.
    for victim in [cluster.owner("mesa:{here}:nodes"), &cluster.nodes[0]] {
        let before = n;
        let victim_was_primary = victim.is("master");
        victim.kill();
        for at in 0..2 {
            let refused = until_taken(&stage, at, &mut n, &to).await;
            println!("server {at} refused {refused} dispatches");
        }
        let taken = n;
        for at in [0, 1, 0, 1] {
            n += 1;
            stage.dispatch(at, &message(n, &to)).await;
        }
        for client in &mut clients {
            let got = through(client, n).await;
            assert!(got.is_sorted_by(|one, other| one < other) && got[0] > before, "each once, in order: {got:?}");
            assert!(got.ends_with(&(taken..=n).collect::<Vec<_>>()), "{got:?}");
        }
        stage.until("all to be seen", 1, "/v1/users?online=true", online).await;
        assert!(victim_was_primary || victim.port == cluster.nodes[0].port);
        victim.revive();
        block_in_place(|| {
            wait("it to follow", || {
                let text = cli(victim.port, &["INFO", "replication"]);
                text.contains("role:master") || text.contains("master_link_status:up")
            });
            wait("all to be well", || {
                cluster.nodes.iter().all(|one| cli(one.port, &["CLUSTER", "INFO"]).contains("cluster_state:ok"))
            });
        });
    }
    // What is never kept is heard through any node.
    let (status, _) = stage.ask(0, "POST", "/v1/dispatch", &super::unsynced(5000, &["user-1"], &[])).await;
    assert_eq!(status, 200);
    assert_eq!(next(&mut clients[1]).await, 5000);
}

/// A server waits 3 s for a slot that is being moved. While none takes longer than this, none of its requests may be refused.
const SLOT_MOVES_WITHIN: Duration = Duration::from_secs(2);

/// Moves the slots of two users, and that of the connected servers, to other primaries, key by key. Returns how many they are, and
/// the longest time that one was between two primaries.
fn move_slots(cluster: &Cluster) -> (usize, Duration) {
    let mut longest = Duration::ZERO;
    let keys = ["mesa:state:{bob}", "mesa:state:{alice}", "mesa:{here}:nodes"];
    for key in keys {
        let from = cluster.owner(key);
        let to = cluster.nodes.iter().find(|one| one.is("master") && one.port != from.port).expect("another");
        let slot = cli(from.port, &["CLUSTER", "KEYSLOT", key]);
        let (source, target) = (cli(from.port, &["CLUSTER", "MYID"]), cli(to.port, &["CLUSTER", "MYID"]));
        let began = Instant::now();
        assert_eq!(cli(to.port, &["CLUSTER", "SETSLOT", &slot, "IMPORTING", &source]), "OK");
        assert_eq!(cli(from.port, &["CLUSTER", "SETSLOT", &slot, "MIGRATING", &target]), "OK");
        // Some traffic while nothing, and while part of it has moved.
        std::thread::sleep(Duration::from_millis(150));
        let port = to.port.to_string();
        loop {
            let some = cli(from.port, &["CLUSTER", "GETKEYSINSLOT", &slot, "1"]);
            if some.is_empty() {
                break;
            }
            assert_eq!(
                cli(from.port, &["MIGRATE", "127.0.0.1", &port, &some, "0", "5000", "AUTH", PASSWORD]),
                "OK",
                "{some}"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        for node in [to, from] {
            assert_eq!(cli(node.port, &["CLUSTER", "SETSLOT", &slot, "NODE", &target]), "OK");
        }
        longest = longest.max(began.elapsed());
    }
    (keys.len(), longest)
}

/// Whether a dispatch was refused because the slots moved, or Redis answered, too slowly.
fn is_late(status: u16, answer: &Value) -> bool {
    let text = answer["error"]["message"].as_str().unwrap_or_default();
    status == 503 && ["timed out", "TRYAGAIN", "MOVED", "ASK"].iter().any(|reason| text.contains(reason))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_moves_while_messages_are_sent_loses_none_and_repeats_none() {
    let cluster = block_in_place(Cluster::start);
    let stage = Stage::on(&cluster.setting(), 2);
    let mut alice = stage.client(1, "alice").await;
    for n in 1..=3 {
        stage.dispatch(0, &message(n, &["alice", "bob"])).await;
    }
    assert_eq!(through(&mut alice, 3).await, [1, 2, 3]);
    let held = cluster.clone();
    let moving = tokio::task::spawn_blocking(move || move_slots(&cluster));
    let (mut n, mut answered, mut late) = (3, vec![1, 2, 3], 0);
    while !moving.is_finished() {
        n += 1;
        let at = n as usize % 2;
        let mut dispatch = message(n, &["alice", "bob"]);
        dispatch["id"] = json!(n.to_string());
        let (mut status, mut answer) = stage.ask(at, "POST", "/v1/dispatch", &dispatch).await;
        // A retry with the same id is done once.
        while is_late(status, &answer) {
            late += 1;
            (status, answer) = stage.ask(at, "POST", "/v1/dispatch", &dispatch).await;
        }
        assert_eq!(status, 200, "nothing is refused while slots move: {answer}");
        answered.push(n);
    }
    let ((moved, longest), _cluster) = (moving.await.expect("they move"), held);
    println!("{} messages while {moved} slots moved, each within {longest:?}; {late} were late", answered.len());
    assert!(
        late == 0 || longest > SLOT_MOVES_WITHIN,
        "{late} dispatches were refused, and a slot moved within {longest:?}"
    );
    assert!(answered.len() > 20, "too little was said for this to mean anything");
    let last = *answered.last().expect("some were answered");
    assert_eq!(through(&mut alice, last).await, answered[3..]);
    let mut bob = stage.client(0, "bob").await;
    assert_eq!(through(&mut bob, last).await, answered);
    until("both to be seen", async || {
        let (_, users) = stage.ask(1, "GET", "/v1/users?online=true", &json!(null)).await;
        users["users"].as_array().is_some_and(|all| all.len() == 2)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_shard_came_back_empty_new_messages_reach_who_had_more_before() {
    let cluster = block_in_place(Cluster::start);
    let stage = Stage::on(&cluster.setting(), 2);
    // Not in the shard that has the leases: of that one it is known at once.
    let here = cluster.owner("mesa:{here}:nodes").port;
    let names: Vec<String> = (0..50).map(|n| format!("user-{n}")).collect();
    let elsewhere = names.iter().find(|name| cluster.owner(&format!("mesa:state:{{{name}}}")).port != here);
    let name = elsewhere.expect("three shards");
    let mut client = stage.client(1, name).await;
    for n in 1..=10 {
        stage.dispatch(0, &message(n, &[name])).await;
        assert_eq!(next(&mut client).await, json!(n));
    }
    let owner = cluster.owner(&format!("mesa:state:{{{name}}}"));
    let both: Vec<_> = cluster.replicas_of(owner).into_iter().chain([owner]).collect();
    assert_eq!(both.len(), 2);
    both.iter().for_each(|node| node.kill());
    both.iter().for_each(|node| node.forget());
    both.iter().rev().for_each(|node| node.revive());
    let mut n = 10;
    for at in 0..2 {
        until_taken(&stage, at, &mut n, &[name]).await;
    }
    let taken = n;
    for at in [0, 1] {
        n += 1;
        stage.dispatch(at, &message(n, &[name])).await;
    }
    assert!(through(&mut client, n).await.ends_with(&[taken, n - 1, n]));
}

/// Recipients that one dispatch to a Cluster without all its slots has.
const RECIPIENTS: usize = 60;

/// Such a dispatch waits for the Cluster once, and not for each recipient; later ones fail at once, until it is whole again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dispatch_to_many_users_of_a_cluster_that_is_down_waits_once() {
    let cluster = block_in_place(Cluster::start);
    let stage = Stage::on(&cluster.setting(), 1);
    let names: Vec<String> = (0..RECIPIENTS).map(|n| format!("user-{n}")).collect();
    let to: Vec<&str> = names.iter().map(String::as_str).collect();
    stage.dispatch(0, &message(1, &to)).await;
    // A slot without a user; the Cluster demands that all have a node.
    let slot = cli(cluster.nodes[0].port, &["CLUSTER", "KEYSLOT", "nobody"]);
    let owner = cluster.owner("nobody").port;
    let is =
        |node: &Node, state: &str| cli(node.port, &["CLUSTER", "INFO"]).contains(&format!("cluster_state:{state}"));
    for round in 0..2 {
        // A node assigns the slot again when it reads a heartbeat that the owner sent before its own DELSLOTS. So the command is
        // repeated until all nodes report the failure, twice: such a heartbeat may have arrived and not been read yet.
        let unassigned = |node: &Node| {
            is(node, "fail") || {
                cli(node.port, &["CLUSTER", "DELSLOTS", &slot]);
                false
            }
        };
        for _ in 0..2 {
            block_in_place(|| wait("a Cluster with a slot that no node has", || cluster.nodes.iter().all(unassigned)));
        }
        let began = std::time::Instant::now();
        for n in 0..4 {
            let (status, answer) = stage.ask(0, "POST", "/v1/dispatch", &message(n, &to)).await;
            assert_eq!((status, &answer["error"]["code"]), (503, &json!("unreachable")), "{answer}");
            assert!(answer["error"]["message"].as_str().is_some_and(|why| why.contains("CLUSTERDOWN")), "{answer}");
        }
        // Three seconds; for each recipient it would be three minutes, and for each dispatch of one twelve seconds.
        assert!(began.elapsed() < Duration::from_secs(12), "round {round}: {:?}", began.elapsed());
        cli(owner, &["CLUSTER", "ADDSLOTS", &slot]);
        block_in_place(|| wait("a whole Cluster", || cluster.nodes.iter().all(|node| is(node, "ok"))));
        until("dispatches to be taken", async || stage.ask(0, "POST", "/v1/dispatch", &message(5, &to)).await.0 == 200)
            .await;
    }
}
