//! Tests a Redis that is emptied or restored to older data under running servers.
//!
//! Every message accepted after that is delivered, in order. Clients that resume receive a gap `lost`.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use serde_json::{Value, json};
use tokio::task::block_in_place;

use super::{
    Redis, ServerGroup, dispatch_until_accepted, message, next_data, receive_through,
    redis_topologies::{RedisCluster, SentinelGroup},
    support::{
        server::Home,
        socket::{Event, Socket},
        wait::{WAIT_TIMEOUT, block_until},
    },
    wait_until,
};

async fn resuming_client(group: &ServerGroup, server: usize, user: &str, device: &str, after: u64) -> Socket {
    Socket::connect_as(group.servers[server].address, user, Some(after), Some(device))
        .await
        .expect("a connected client")
}

/// Dispatches these numbers at the servers in turn.
async fn dispatch_all(group: &ServerGroup, numbers: std::ops::RangeInclusive<u64>, to: &[&str]) {
    for n in numbers {
        group.dispatch(n as usize % group.servers.len(), &message(n, to)).await;
    }
}

/// Acknowledges every op 1 of a client until its user has no pending entries.
async fn acknowledge_all(group: &ServerGroup, user: &str, socket: &mut Socket) {
    let path = format!("/v1/users/{user}");
    wait_until("every entry is acknowledged", async || {
        match tokio::time::timeout(Duration::from_millis(20), socket.event()).await {
            Ok(Ok(Event::AckRequest)) => socket.acknowledge().await.expect("an open connection"),
            Ok(event) => panic!("{event:?}"),
            Err(_) => {}
        }
        group.call(0, "GET", &path, &Value::Null).await.1["pending"] == 0
    })
    .await;
}

/// Returns the numbers that a resuming client receives, up to `last`, and the reasons of the gaps.
async fn receive_through_with_gaps(socket: &mut Socket, last: u64) -> (Vec<u64>, Vec<String>) {
    let (mut received, mut gaps) = (Vec::new(), Vec::new());
    while received.last() != Some(&last) {
        let event = tokio::time::timeout(WAIT_TIMEOUT, socket.event()).await.expect("an event in time");
        match event.expect("an open connection") {
            Event::Message(message) => received.push(message.d.as_u64().expect("a number")),
            Event::Resumed(resumed) => gaps.extend(resumed.missed.map(|missed| missed.reason)),
            _ => {}
        }
    }
    (received, gaps)
}

/// Empties a Redis under running servers, and checks that all later messages are delivered.
async fn check_emptied(servers: usize) {
    let group = ServerGroup::start(servers);
    let (mut alice, mut phone) =
        (group.client(0, "alice").await, resuming_client(&group, servers - 1, "alice", "phone", 0).await);
    dispatch_all(&group, 1..=10, &["alice", "bob"]).await;
    assert_eq!(receive_through(&mut alice, 10).await, (1..=10).collect::<Vec<_>>());
    assert_eq!(receive_through(&mut phone, 10).await, (1..=10).collect::<Vec<_>>());
    assert_eq!(group.redis().cli(&["FLUSHALL"]), "OK");
    dispatch_all(&group, 11..=30, &["alice", "bob"]).await;
    let expected: Vec<u64> = (11..=30).collect();
    assert_eq!(receive_through(&mut alice, 30).await, expected, "{}", group.homes[0].log());
    assert_eq!(receive_through_with_gaps(&mut phone, 30).await, (expected.clone(), vec!["lost".to_owned()]));
    // An offline user, and a device that resumes with an old sequence, receive all new entries too.
    assert_eq!(receive_through(&mut group.client(servers - 1, "bob").await, 30).await, expected);
    let mut tablet = resuming_client(&group, 0, "bob", "tablet", 10).await;
    let (received, gaps) = receive_through_with_gaps(&mut tablet, 30).await;
    assert_eq!((received, gaps.first().map(String::as_str)), (expected, Some("lost")));
    // A resuming client receives the gap without a dispatch too.
    phone.acknowledge_through(1 << 50).await.expect("an open connection");
    acknowledge_all(&group, "alice", &mut alice).await;
    assert_eq!(group.redis().cli(&["FLUSHALL"]), "OK");
    let Ok(Event::Resumed(resumed)) = phone.event().await else { panic!("op 13 with a gap is expected") };
    assert_eq!(resumed.missed.map(|missed| missed.reason).as_deref(), Some("lost"));
    // A Dispatcher of the original sees alice offline in the emptied Redis, and stores its message.
    let list = r#"[{"op":0,"d":31,"t":"N"}]"#;
    group.redis().cli(&["HSET", "undelivered_messages", "alice", list]);
    assert_eq!(next_data(&mut alice).await, 31);
    let online = |users: &Value| users["users"].as_array().is_some_and(|all| all.len() == 2);
    group.wait_until("both users are online", 0, "/v1/users?online=true", online).await;
}

// covers: G4, G5
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_emptied_under_one_server_delivers_all_later_messages_in_order() {
    check_emptied(1).await;
}

// covers: G4, G5
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_emptied_under_three_servers_delivers_all_later_messages_in_order() {
    check_emptied(3).await;
}

/// Entries acknowledged by one server's clients stay until the other server has reported its sessions.
// covers: G4, G5
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_suspended_while_redis_is_emptied_delivers_entries_acknowledged_at_another() {
    let group = ServerGroup::start(2);
    let (mut first, mut second) = (group.client(0, "alice").await, group.client(1, "alice").await);
    let mut phone = Socket::connect_as(group.servers[1].address, "alice", Some(0), None).await.expect("a client");
    dispatch_all(&group, 1..=10, &["alice"]).await;
    for client in [&mut first, &mut second, &mut phone] {
        assert_eq!(receive_through(client, 10).await, (1..=10).collect::<Vec<_>>());
    }
    wait_until("the first server knows the second, after three lease renewals", async || {
        group
            .redis()
            .cli(&["HGET", "mesa:{cluster}:epoch", "renewals"])
            .parse::<u64>()
            .is_ok_and(|renewals| renewals >= 3)
    })
    .await;
    group.servers[1].signal(rustix::process::Signal::STOP);
    assert_eq!(group.redis().cli(&["FLUSHALL"]), "OK");
    for n in 11..=30 {
        group.dispatch(0, &message(n, &["alice"])).await;
    }
    assert_eq!(receive_through(&mut first, 30).await, (11..=30).collect::<Vec<_>>());
    acknowledge_all(&group, "alice", &mut first).await;
    group.servers[1].signal(rustix::process::Signal::CONT);
    assert_eq!(receive_through(&mut second, 30).await, (11..=30).collect::<Vec<_>>(), "{}", group.homes[1].log());
    assert_eq!(receive_through_with_gaps(&mut phone, 30).await, ((11..=30).collect(), vec!["lost".to_owned()]));
    phone.acknowledge_through(1 << 50).await.expect("an open connection");
    acknowledge_all(&group, "alice", &mut second).await;
    wait_until("the log is trimmed", async || group.redis().cli(&["XLEN", "mesa:log:{alice}"]) == "0").await;
}

/// The new server knows no earlier epoch and begins the first one. The other server still delivers what the new one
/// accepts.
// covers: G4, G5
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_that_joins_an_emptied_redis_first_delivers_all_later_messages_in_order() {
    let redis = Redis::start();
    let setting = format!("redis: '{}',", redis.url());
    let mut group = ServerGroup::start_on(&setting, 1);
    let (mut alice, mut phone) =
        (group.client(0, "alice").await, resuming_client(&group, 0, "alice", "phone", 0).await);
    dispatch_all(&group, 1..=10, &["alice"]).await;
    assert_eq!(receive_through(&mut alice, 10).await, (1..=10).collect::<Vec<_>>());
    assert_eq!(receive_through(&mut phone, 10).await, (1..=10).collect::<Vec<_>>());
    assert_eq!(redis.cli(&["FLUSHALL"]), "OK");
    let home = Home::with_settings(&setting);
    group.servers.push(home.start());
    group.homes.push(home);
    for n in 11..=30 {
        group.dispatch(1, &message(n, &["alice"])).await;
    }
    assert_eq!(receive_through(&mut alice, 30).await, (11..=30).collect::<Vec<_>>());
    assert_eq!(receive_through_with_gaps(&mut phone, 30).await.0, (11..=30).collect::<Vec<_>>());
}

/// Dispatches messages at every server while a test disturbs the Redis.
struct Load {
    group: ServerGroup,
    users: Vec<String>,
    /// Number of disturbances so far.
    generation: AtomicU64,
    stop: AtomicBool,
}

/// Server `s` dispatches numbers from `s` times this value up.
const NUMBERS_PER_SERVER: u64 = 1_000_000;

impl Load {
    /// Dispatches numbered messages to all users until `stop`, then `further` ones.
    ///
    /// Returns the accepted ones that began after the last disturbance.
    async fn run(self: Arc<Self>, server: usize, further: u64) -> Vec<u64> {
        let (mut n, mut accepted, mut remaining) = (server as u64 * NUMBERS_PER_SERVER, Vec::new(), further);
        let to: Vec<&str> = self.users.iter().map(String::as_str).collect();
        while remaining > 0 {
            if self.stop.load(Ordering::SeqCst) {
                remaining -= 1;
            }
            n += 1;
            let generation = self.generation.load(Ordering::SeqCst);
            let (status, response) = self.group.call(server, "POST", "/v1/dispatch", &message(n, &to)).await;
            match status {
                200 => accepted.push((generation, n)),
                503 => {}
                _ => panic!("{status}: {response}"),
            }
        }
        let last = self.generation.load(Ordering::SeqCst);
        accepted.into_iter().filter(|(generation, _)| *generation == last).map(|(_, n)| n).collect()
    }

    /// Returns the numbers that a client receives until it has all expected ones.
    async fn receive(socket: &mut Socket, expected: &[u64]) -> Vec<u64> {
        let mut missing: std::collections::HashSet<u64> = expected.iter().copied().collect();
        let mut received = Vec::new();
        while !missing.is_empty() {
            match tokio::time::timeout(WAIT_TIMEOUT, socket.event()).await {
                Ok(Ok(Event::Message(message))) => {
                    let n = message.d.as_u64().expect("a number");
                    missing.remove(&n);
                    received.push(n);
                }
                Ok(Ok(Event::AckRequest)) => socket.acknowledge().await.expect("an open connection"),
                Ok(Ok(_)) => {}
                Ok(Err(error)) => panic!("{error}; {} of {} messages are missing", missing.len(), expected.len()),
                Err(timeout) => {
                    panic!("{timeout}: {} of {} messages are missing: {missing:?}", missing.len(), expected.len())
                }
            }
        }
        received
    }
}

/// Runs `disturb` while three servers dispatch to nine connected users.
///
/// Every message accepted after that must reach each user once, in the order of each server.
async fn check_under_disturbance(group: ServerGroup, disturb: impl AsyncFnOnce(&AtomicU64)) {
    let users: Vec<String> = (0..9).map(|n| format!("user-{n}")).collect();
    let mut clients = Vec::new();
    for (index, user) in users.iter().enumerate() {
        clients.push(group.client(index % 3, user).await);
    }
    let load = Arc::new(Load { group, users, generation: AtomicU64::new(0), stop: AtomicBool::new(false) });
    let running: Vec<_> = (0..3).map(|server| tokio::spawn(load.clone().run(server, 40))).collect();
    disturb(&load.generation).await;
    load.stop.store(true, Ordering::SeqCst);
    let mut expected = Vec::new();
    for dispatches in running {
        let accepted = dispatches.await.expect("the dispatches do not panic");
        assert!(accepted.len() >= 20, "each server accepts at least 20 dispatches, not {}", accepted.len());
        expected.extend(accepted);
    }
    for client in &mut clients {
        let received = Load::receive(client, &expected).await;
        for server in 0..3 {
            let of_server = |numbers: &[u64]| {
                let of_server = |n: &u64| n / NUMBERS_PER_SERVER == server && expected.contains(n);
                numbers.iter().copied().filter(of_server).collect::<Vec<_>>()
            };
            assert_eq!(
                of_server(&received),
                of_server(&expected),
                "each message is received once, in the order of server {server}"
            );
        }
    }
    // A new connection of the same user receives new messages too.
    let mut new_client = load.group.client(0, "user-0").await;
    load.group.dispatch(2, &message(7, &["user-0"])).await;
    assert!(receive_through(&mut new_client, 7).await.ends_with(&[7]));
}

// covers: G2, G4
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_emptied_five_times_under_load_delivers_all_later_messages_in_order() {
    let redis = Redis::start();
    let group = ServerGroup::start_on(&format!("redis: '{}',", redis.url()), 3);
    check_under_disturbance(group, async |generation| {
        for _ in 0..5 {
            tokio::time::sleep(Duration::from_millis(300)).await;
            block_in_place(|| assert_eq!(redis.cli(&["FLUSHALL"]), "OK"));
            generation.fetch_add(1, Ordering::SeqCst);
        }
    })
    .await;
}

/// The shards are emptied one after another, so no single script notices all of it.
// covers: G2, G4
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_cluster_emptied_three_times_under_load_delivers_all_later_messages_in_order() {
    let redis = block_in_place(RedisCluster::start);
    let group = ServerGroup::start_on(&redis.setting(), 3);
    check_under_disturbance(group, async |generation| {
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_millis(500)).await;
            block_in_place(|| {
                for node in redis.nodes.iter().filter(|node| node.has_role("master")) {
                    assert_eq!(node.cli(&["FLUSHALL"]), "OK");
                }
            });
            generation.fetch_add(1, Ordering::SeqCst);
        }
    })
    .await;
}

/// The primary is suspended, a replica takes over and dies, and the primary resumes with its old data.
// covers: G2, G4, G5
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stale_primary_that_sentinel_promotes_delivers_all_later_messages_in_order() {
    let redis = block_in_place(SentinelGroup::start);
    let group = ServerGroup::start_on(&redis.setting(), 3);
    check_under_disturbance(group, async |generation| {
        let [first, second] = &redis.nodes;
        let replication_id = || {
            let info = first.cli(&["INFO", "replication"]);
            info.lines().find_map(|line| Some(line.strip_prefix("master_replid:")?.trim().to_owned()))
        };
        tokio::time::sleep(Duration::from_millis(300)).await;
        block_in_place(|| {
            let before = replication_id();
            redis.detect_failures(true);
            first.signal("STOP");
            block_until("the replica has taken over", || second.has_role("master"));
            let epoch = || second.cli(&["HGET", "mesa:{cluster}:epoch", "epoch"]);
            let copied = epoch();
            block_until("the servers have begun an epoch at the new primary", || epoch() != copied);
            std::thread::sleep(Duration::from_secs(1));
            second.kill();
            // Before the Sentinels hold the second node for down, they would make the first a replica of it.
            block_until("all Sentinels hold the second node for down", || {
                redis.sentinels.iter().all(|one| one.cli(&["SENTINEL", "MASTER", "mesa"]).contains("o_down"))
            });
            first.signal("CONT");
            generation.fetch_add(1, Ordering::SeqCst);
            block_until("the first node is the primary again", || {
                let primary = redis.sentinels[0].cli(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", "mesa"]);
                primary.ends_with(&first.port.to_string())
            });
            assert_eq!(replication_id(), before, "the replication id does not show that the data is older");
        });
        tokio::time::sleep(Duration::from_secs(2)).await;
    })
    .await;
}

/// Restarts a Redis on files from before some dispatches, and checks that all later messages are delivered.
async fn check_restart_on_copy(arguments: &[&str], servers: usize) {
    let redis = Redis::start_with(arguments);
    let group = ServerGroup::start_on(&format!("redis: '{}',", redis.url()), servers);
    let mut alice = group.client(0, "alice").await;
    dispatch_all(&group, 1..=5, &["alice", "bob"]).await;
    assert_eq!(receive_through(&mut alice, 5).await, [1, 2, 3, 4, 5]);
    acknowledge_all(&group, "alice", &mut alice).await;
    block_in_place(|| assert_eq!(redis.cli(&["SAVE"]), "OK"));
    let copy = redis.copy_files();
    dispatch_all(&group, 6..=15, &["alice", "bob"]).await;
    assert_eq!(receive_through(&mut alice, 15).await, (6..=15).collect::<Vec<_>>());
    block_in_place(|| redis.restart_on(&copy));
    let mut n = 15;
    for server in 0..servers {
        dispatch_until_accepted(&group, server, &mut n, &["alice", "bob"]).await;
    }
    let accepted = n;
    dispatch_all(&group, accepted + 1..=accepted + 20, &["alice", "bob"]).await;
    let expected: Vec<u64> = (accepted..=accepted + 20).collect();
    let received = receive_through(&mut alice, accepted + 20).await;
    assert!(received.is_sorted_by(|a, b| a < b) && received.ends_with(&expected), "{received:?}");
    let received = receive_through(&mut group.client(servers - 1, "bob").await, accepted + 20).await;
    assert!(received.starts_with(&[1, 2, 3, 4, 5]) && received.ends_with(&expected), "{received:?}");
}

// covers: G4, G5
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_restarted_from_old_snapshot_delivers_all_later_messages_in_order() {
    check_restart_on_copy(&["--appendonly", "no"], 1).await;
    check_restart_on_copy(&["--appendonly", "no"], 3).await;
}

/// A restarted Redis with `appendfsync always` counts as complete. Only its count of appends shows the older data.
// covers: G4, G5
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_restarted_from_old_append_only_files_delivers_all_later_messages_in_order() {
    check_restart_on_copy(&[], 1).await;
    check_restart_on_copy(&[], 3).await;
}

// covers: G4, G5
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn databases_swapped_and_swapped_back_deliver_all_later_messages_in_order() {
    let group = ServerGroup::start(2);
    let mut alice = group.client(1, "alice").await;
    for round in 0..4 {
        let numbers = round * 10 + 1..=round * 10 + 10;
        dispatch_all(&group, numbers.clone(), &["alice"]).await;
        assert_eq!(receive_through(&mut alice, round * 10 + 10).await, numbers.collect::<Vec<_>>(), "round {round}");
        acknowledge_all(&group, "alice", &mut alice).await;
        assert_eq!(group.redis().cli(&["SWAPDB", "0", "1"]), "OK");
    }
}

// covers: G4, G5
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_restarted_empty_delivers_all_later_messages_in_order() {
    let redis = Redis::start_with(&["--appendonly", "no"]);
    let group = ServerGroup::start_on(&format!("redis: '{}',", redis.url()), 2);
    let mut phone = resuming_client(&group, 1, "alice", "phone", 0).await;
    dispatch_all(&group, 1..=10, &["alice"]).await;
    assert_eq!(receive_through(&mut phone, 10).await, (1..=10).collect::<Vec<_>>());
    block_in_place(|| {
        redis.kill();
        redis.restart();
    });
    let mut n = 10;
    for server in 0..2 {
        dispatch_until_accepted(&group, server, &mut n, &["alice"]).await;
    }
    let accepted = n;
    dispatch_all(&group, accepted + 1..=accepted + 20, &["alice"]).await;
    let (received, gaps) = receive_through_with_gaps(&mut phone, accepted + 20).await;
    assert!(received.is_sorted_by(|a, b| a < b), "{received:?}");
    assert!(received.ends_with(&(accepted..=accepted + 20).collect::<Vec<_>>()), "{received:?}");
    assert_eq!(gaps, ["lost"]);
}

/// A shard flushed by hand differs only in its logs from a shard to which the users are new.
// covers: G4, G5
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_cluster_shard_flushed_by_hand_delivers_all_later_messages_in_order() {
    let redis = block_in_place(RedisCluster::start);
    let group = ServerGroup::start_on(&redis.setting(), 2);
    let lease_shard = redis.owner("mesa:{cluster}:servers").port;
    let names: Vec<String> = (0..50).map(|n| format!("user-{n}")).collect();
    let in_other_shard = |name: &&String| redis.owner(&format!("mesa:state:{{{name}}}")).port != lease_shard;
    let name = names.iter().find(in_other_shard).expect("a user in another shard than the leases").as_str();
    let (mut client, mut phone) = (group.client(0, name).await, resuming_client(&group, 1, name, "phone", 0).await);
    dispatch_all(&group, 1..=10, &[name]).await;
    assert_eq!(receive_through(&mut client, 10).await, (1..=10).collect::<Vec<_>>());
    assert_eq!(receive_through(&mut phone, 10).await, (1..=10).collect::<Vec<_>>());
    let owner = redis.owner(&format!("mesa:state:{{{name}}}"));
    assert_eq!(owner.cli(&["FLUSHALL"]), "OK");
    dispatch_all(&group, 11..=30, &[name]).await;
    assert_eq!(receive_through(&mut client, 30).await, (11..=30).collect::<Vec<_>>());
    let (received, gaps) = receive_through_with_gaps(&mut phone, 30).await;
    assert_eq!((received, gaps.first().map(String::as_str)), ((11..=30).collect(), Some("lost")));
    wait_until("the server accepts a dispatch", async || {
        group.call(0, "POST", "/v1/dispatch", &message(31, &[name])).await.0 == 200
    })
    .await;
    assert_eq!(next_data(&mut client).await, json!(31));
}

/// Deletes the keys of one log while a client is connected and another resumes. A third resumes later with an old
/// sequence.
// covers: G4, G5
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn log_deleted_by_hand_delivers_all_later_messages_in_order() {
    let group = ServerGroup::start(2);
    for keys in [&["mesa:state:{alice}"][..], &["mesa:log:{alice}"], &["mesa:state:{alice}", "mesa:log:{alice}"]] {
        let (mut alice, mut phone) =
            (group.client(0, "alice").await, resuming_client(&group, 1, "alice", "phone", 0).await);
        dispatch_all(&group, 1..=10, &["alice"]).await;
        assert!(receive_through(&mut alice, 10).await.ends_with(&(1..=10).collect::<Vec<_>>()));
        assert!(receive_through_with_gaps(&mut phone, 10).await.0.ends_with(&(1..=10).collect::<Vec<_>>()));
        assert_ne!(group.redis().cli(&[&["DEL"], keys].concat()), "0");
        dispatch_all(&group, 11..=30, &["alice"]).await;
        let expected: Vec<u64> = (11..=30).collect();
        assert!(receive_through(&mut alice, 30).await.ends_with(&expected), "{keys:?}");
        assert!(receive_through_with_gaps(&mut phone, 30).await.0.ends_with(&expected), "{keys:?}");
        let (received, _) =
            receive_through_with_gaps(&mut resuming_client(&group, 0, "alice", "tablet", 10).await, 30).await;
        assert!(received.ends_with(&expected), "{keys:?}: {received:?}");
        phone.acknowledge_through(1 << 50).await.expect("an open connection");
    }
}
