//! A Redis that is emptied, or goes back to older data, under running servers: what is answered after that arrives, in order.

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
    PATIENCE, Redis, Stage, message, next,
    redis_topologies::{Cluster, Watched, cli, wait},
    support::{
        server::Home,
        socket::{Event, Socket},
    },
    through, until, until_taken,
};

async fn resuming(stage: &Stage, at: usize, user: &str, device: &str, after: u64) -> Socket {
    Socket::connect_as(stage.servers[at].address, user, Some(after), Some(device)).await.expect("a client")
}

/// Dispatches these numbers, each at the next server.
async fn dispatch_all(stage: &Stage, numbers: std::ops::RangeInclusive<u64>, to: &[&str]) {
    for n in numbers {
        stage.dispatch(n as usize % stage.servers.len(), &message(n, to)).await;
    }
}

/// Answers a client's questions until all that its user has received is acknowledged.
async fn settled(stage: &Stage, user: &str, socket: &mut Socket) {
    let path = format!("/v1/users/{user}");
    until("all to be acknowledged", async || {
        match tokio::time::timeout(Duration::from_millis(20), socket.event()).await {
            Ok(Ok(Event::Question)) => socket.answer().await.expect("it is there"),
            Ok(event) => panic!("{event:?}"),
            Err(_) => {}
        }
        stage.ask(0, "GET", &path, &Value::Null).await.1["pending"] == 0
    })
    .await;
}

/// A client that resumes: the numbers that come until `last` has, and the gaps between them.
async fn through_with_gaps(socket: &mut Socket, last: u64) -> (Vec<u64>, Vec<String>) {
    let (mut got, mut gaps) = (Vec::new(), Vec::new());
    while got.last() != Some(&last) {
        match tokio::time::timeout(PATIENCE, socket.event()).await.expect("something in time").expect("something") {
            Event::Message(message) => got.push(message.d.as_u64().expect("a number")),
            Event::Resumed(resumed) => gaps.extend(resumed.missed.map(|missed| missed.reason)),
            _ => {}
        }
    }
    (got, gaps)
}

async fn emptied(servers: usize) {
    let stage = Stage::new(servers);
    let port = stage.redis().address().port();
    let (mut alice, mut phone) =
        (stage.client(0, "alice").await, resuming(&stage, servers - 1, "alice", "phone", 0).await);
    dispatch_all(&stage, 1..=10, &["alice", "bob"]).await;
    assert_eq!(through(&mut alice, 10).await, (1..=10).collect::<Vec<_>>());
    assert_eq!(through(&mut phone, 10).await, (1..=10).collect::<Vec<_>>());
    assert_eq!(cli(port, &["FLUSHALL"]), "OK");
    dispatch_all(&stage, 11..=30, &["alice", "bob"]).await;
    let expected: Vec<u64> = (11..=30).collect();
    assert_eq!(through(&mut alice, 30).await, expected, "{}", stage.homes[0].log());
    assert_eq!(through_with_gaps(&mut phone, 30).await, (expected.clone(), vec!["lost".to_owned()]));
    // Nothing of before is taken for what came after, also for one who was offline, or comes back with an old sequence.
    assert_eq!(through(&mut stage.client(servers - 1, "bob").await, 30).await, expected);
    let mut tablet = resuming(&stage, 0, "bob", "tablet", 10).await;
    let (got, gaps) = through_with_gaps(&mut tablet, 30).await;
    assert_eq!((got, gaps.first().map(String::as_str)), (expected, Some("lost")));
    // Without a dispatch, clients that resume learn of the gap too.
    let Ok(()) = phone.confirm_through(1 << 50).await else { panic!("it is there") };
    settled(&stage, "alice", &mut alice).await;
    assert_eq!(cli(port, &["FLUSHALL"]), "OK");
    let Ok(Event::Resumed(resumed)) = phone.event().await else { panic!("a gap") };
    assert_eq!(resumed.missed.map(|missed| missed.reason).as_deref(), Some("lost"));
    // A Dispatcher of the original does not see that user online there, and stores its message.
    let left = r#"[{"op":0,"d":31,"t":"N"}]"#;
    cli(port, &["HSET", "undelivered_messages", "alice", left]);
    assert_eq!(next(&mut alice).await, 31);
    let online = |users: &Value| users["users"].as_array().is_some_and(|all| all.len() == 2);
    stage.until("both to be seen", 0, "/v1/users?online=true", online).await;
}

// covers: G4, G5
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_emptied_under_one_server_delivers_all_later_messages_in_order() {
    emptied(1).await;
}

// covers: G4, G5
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_emptied_under_three_servers_delivers_all_later_messages_in_order() {
    emptied(3).await;
}

/// What one server's clients acknowledge stays for the sessions of another that has yet to report them.
// covers: G4, G5
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_that_stood_still_while_redis_was_emptied_delivers_what_others_acknowledged() {
    let stage = Stage::new(2);
    let (mut here, mut there) = (stage.client(0, "alice").await, stage.client(1, "alice").await);
    let mut phone = Socket::connect_as(stage.servers[1].address, "alice", Some(0), None).await.expect("a client");
    dispatch_all(&stage, 1..=10, &["alice"]).await;
    for client in [&mut here, &mut there, &mut phone] {
        assert_eq!(through(client, 10).await, (1..=10).collect::<Vec<_>>());
    }
    let port = stage.redis().address().port();
    until("the first to know of the second", async || {
        cli(port, &["HGET", "mesa:{here}:era", "renewed"]).parse::<u64>().is_ok_and(|beats| beats >= 3)
    })
    .await;
    stage.servers[1].signal(rustix::process::Signal::STOP);
    assert_eq!(cli(port, &["FLUSHALL"]), "OK");
    for n in 11..=30 {
        stage.dispatch(0, &message(n, &["alice"])).await;
    }
    assert_eq!(through(&mut here, 30).await, (11..=30).collect::<Vec<_>>());
    settled(&stage, "alice", &mut here).await;
    stage.servers[1].signal(rustix::process::Signal::CONT);
    assert_eq!(through(&mut there, 30).await, (11..=30).collect::<Vec<_>>(), "{}", stage.homes[1].log());
    assert_eq!(through_with_gaps(&mut phone, 30).await, ((11..=30).collect(), vec!["lost".to_owned()]));
    // Then it is trimmed.
    phone.confirm_through(1 << 50).await.expect("it is there");
    settled(&stage, "alice", &mut there).await;
    until("the log to be trimmed", async || cli(port, &["XLEN", "mesa:log:{alice}"]) == "0").await;
}

/// It knows of no epoch before, and begins the first one; those that know more have their clients get what it took meanwhile.
// covers: G4, G5
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_that_joins_an_emptied_redis_first_delivers_all_later_messages_in_order() {
    let redis = Redis::start();
    let setting = format!("redis: '{}',", redis.url());
    let mut stage = Stage::on(&setting, 1);
    let (mut alice, mut phone) = (stage.client(0, "alice").await, resuming(&stage, 0, "alice", "phone", 0).await);
    dispatch_all(&stage, 1..=10, &["alice"]).await;
    assert_eq!(through(&mut alice, 10).await, (1..=10).collect::<Vec<_>>());
    assert_eq!(through(&mut phone, 10).await, (1..=10).collect::<Vec<_>>());
    assert_eq!(cli(redis.address().port(), &["FLUSHALL"]), "OK");
    let home = Home::with(&setting);
    stage.servers.push(home.start());
    stage.homes.push(home);
    for n in 11..=30 {
        stage.dispatch(1, &message(n, &["alice"])).await;
    }
    assert_eq!(through(&mut alice, 30).await, (11..=30).collect::<Vec<_>>());
    assert_eq!(through_with_gaps(&mut phone, 30).await.0, (11..=30).collect::<Vec<_>>());
}

/// What dispatches came to while something was done to the Redis.
struct Dispatching {
    stage: Stage,
    users: Vec<String>,
    /// How often something was done; odd while it is.
    generation: AtomicU64,
    over: AtomicBool,
}

const OF_SERVER: u64 = 1_000_000;

impl Dispatching {
    /// Dispatches numbered messages to all until it is over, and some more; those that were begun and answered in the last
    /// generation.
    async fn run(self: Arc<Self>, at: usize, more: u64) -> Vec<u64> {
        let (mut n, mut answered, mut left) = (at as u64 * OF_SERVER, Vec::new(), more);
        let to: Vec<&str> = self.users.iter().map(String::as_str).collect();
        while left > 0 {
            if self.over.load(Ordering::SeqCst) {
                left -= 1;
            }
            n += 1;
            let generation = self.generation.load(Ordering::SeqCst);
            let (status, answer) = self.stage.ask(at, "POST", "/v1/dispatch", &message(n, &to)).await;
            match status {
                200 => answered.push((generation, n)),
                503 => {}
                _ => panic!("{status}: {answer}"),
            }
        }
        let last = self.generation.load(Ordering::SeqCst);
        answered.into_iter().filter(|(generation, _)| *generation == last).map(|(_, n)| n).collect()
    }

    /// Numbers that come over a connection until all of these have.
    async fn receive(socket: &mut Socket, expected: &[u64]) -> Vec<u64> {
        let mut missing: std::collections::HashSet<u64> = expected.iter().copied().collect();
        let mut got = Vec::new();
        while !missing.is_empty() {
            match tokio::time::timeout(PATIENCE, socket.event()).await {
                Ok(Ok(Event::Message(message))) => {
                    let n = message.d.as_u64().expect("a number");
                    missing.remove(&n);
                    got.push(n);
                }
                Ok(Ok(Event::Question)) => socket.answer().await.expect("it is there"),
                Ok(Ok(_)) => {}
                Ok(Err(why)) => panic!("{why}; {} of {} did not come", missing.len(), expected.len()),
                Err(late) => panic!("{late}: {} of {} did not come: {missing:?}", missing.len(), expected.len()),
            }
        }
        got
    }
}

/// Runs `disturb` while three servers dispatch to nine connected users: what is dispatched and answered after that reaches each of
/// them, once, and in the order of each server.
async fn disturbed(stage: Stage, disturb: impl AsyncFnOnce(&AtomicU64)) {
    let users: Vec<String> = (0..9).map(|n| format!("user-{n}")).collect();
    let mut clients = Vec::new();
    for (at, user) in users.iter().enumerate() {
        clients.push(stage.client(at % 3, user).await);
    }
    let dispatching =
        Arc::new(Dispatching { stage, users, generation: AtomicU64::new(0), over: AtomicBool::new(false) });
    let running: Vec<_> = (0..3).map(|at| tokio::spawn(dispatching.clone().run(at, 40))).collect();
    disturb(&dispatching.generation).await;
    dispatching.over.store(true, Ordering::SeqCst);
    let mut expected = Vec::new();
    for one in running {
        let answered = one.await.expect("it ends");
        assert!(answered.len() >= 20, "too little was answered for this to mean anything: {}", answered.len());
        expected.extend(answered);
    }
    for client in &mut clients {
        let got = Dispatching::receive(client, &expected).await;
        for at in 0..3 {
            let of = |all: &[u64]| {
                let theirs = all.iter().copied().filter(|n| n / OF_SERVER == at && expected.contains(n));
                theirs.collect::<Vec<_>>()
            };
            assert_eq!(of(&got), of(&expected), "each once, in the order of server {at}");
        }
    }
    // Nor is anything withheld from one who was offline, or comes anew.
    let mut anew = dispatching.stage.client(0, "user-0").await;
    dispatching.stage.dispatch(2, &message(7, &["user-0"])).await;
    assert!(through(&mut anew, 7).await.ends_with(&[7]));
}

// covers: G2, G4
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_emptied_again_and_again_under_load_delivers_all_later_messages_in_order() {
    let stage = Stage::new(3);
    let port = stage.redis().address().port();
    disturbed(stage, async |generation| {
        for _ in 0..5 {
            tokio::time::sleep(Duration::from_millis(300)).await;
            block_in_place(|| assert_eq!(cli(port, &["FLUSHALL"]), "OK"));
            generation.fetch_add(1, Ordering::SeqCst);
        }
    })
    .await;
}

/// Each shard by itself, one after the other: no step sees all of them.
// covers: G2, G4
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cluster_emptied_again_and_again_under_load_delivers_all_later_messages_in_order() {
    let cluster = block_in_place(Cluster::start);
    let stage = Stage::on(&cluster.setting(), 3);
    disturbed(stage, async |generation| {
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_millis(500)).await;
            block_in_place(|| {
                for node in cluster.nodes.iter().filter(|node| node.is("master")) {
                    assert_eq!(cli(node.port, &["FLUSHALL"]), "OK");
                }
            });
            generation.fetch_add(1, Ordering::SeqCst);
        }
    })
    .await;
}

/// The primary stops, and comes back with what it had when the one that has taken over dies.
// covers: G2, G4, G5
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stale_primary_that_sentinel_promotes_delivers_all_later_messages_in_order() {
    let watched = block_in_place(Watched::start);
    let stage = Stage::on(&watched.setting(), 3);
    disturbed(stage, async |generation| {
        let [first, second] = &watched.nodes;
        let history = || {
            let info = cli(first.port, &["INFO", "replication"]);
            info.lines().find_map(|line| Some(line.strip_prefix("master_replid:")?.trim().to_owned()))
        };
        tokio::time::sleep(Duration::from_millis(300)).await;
        block_in_place(|| {
            let before = history();
            first.signal("STOP");
            wait("the replica to take over", || second.is("master"));
            let epoch = || cli(second.port, &["HGET", "mesa:{here}:era", "era"]);
            let copied = epoch();
            wait("the servers to be there", || epoch() != copied);
            std::thread::sleep(Duration::from_secs(1));
            second.kill();
            // Until the Sentinels know that, they would make the other a replica of it.
            wait("the sentinels to see it", || {
                watched.sentinels.iter().all(|one| cli(one.port, &["SENTINEL", "MASTER", "mesa"]).contains("o_down"))
            });
            first.signal("CONT");
            generation.fetch_add(1, Ordering::SeqCst);
            wait("the stale one to be the primary again", || {
                let named = cli(watched.sentinels[0].port, &["SENTINEL", "GET-MASTER-ADDR-BY-NAME", "mesa"]);
                named.ends_with(&first.port.to_string())
            });
            assert_eq!(history(), before, "nothing tells it from what it was but its age");
        });
        tokio::time::sleep(Duration::from_secs(2)).await;
    })
    .await;
}

async fn gone_back(arguments: &[&str], servers: usize) {
    let redis = Redis::start_with(arguments);
    let stage = Stage::on(&format!("redis: '{}',", redis.url()), servers);
    let port = redis.address().port();
    let mut alice = stage.client(0, "alice").await;
    dispatch_all(&stage, 1..=5, &["alice", "bob"]).await;
    assert_eq!(through(&mut alice, 5).await, [1, 2, 3, 4, 5]);
    settled(&stage, "alice", &mut alice).await;
    block_in_place(|| assert_eq!(cli(port, &["SAVE"]), "OK"));
    let copy = redis.copy();
    dispatch_all(&stage, 6..=15, &["alice", "bob"]).await;
    assert_eq!(through(&mut alice, 15).await, (6..=15).collect::<Vec<_>>());
    block_in_place(|| redis.go_back_to(&copy));
    let mut n = 15;
    for at in 0..servers {
        until_taken(&stage, at, &mut n, &["alice", "bob"]).await;
    }
    let taken = n;
    dispatch_all(&stage, taken + 1..=taken + 20, &["alice", "bob"]).await;
    let expected: Vec<u64> = (taken..=taken + 20).collect();
    let got = through(&mut alice, taken + 20).await;
    assert!(got.is_sorted_by(|one, other| one < other) && got.ends_with(&expected), "{got:?}");
    let got = through(&mut stage.client(servers - 1, "bob").await, taken + 20).await;
    assert!(got.starts_with(&[1, 2, 3, 4, 5]) && got.ends_with(&expected), "{got:?}");
}

// covers: G4, G5
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_restarted_from_an_old_snapshot_delivers_all_later_messages_in_order() {
    gone_back(&["--appendonly", "no"], 1).await;
    gone_back(&["--appendonly", "no"], 3).await;
}

/// One that syncs every write counts as having lost nothing when it is restarted: that it has is seen from its count of appends.
// covers: G4, G5
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_restarted_from_old_append_only_files_delivers_all_later_messages_in_order() {
    gone_back(&[], 1).await;
    gone_back(&[], 3).await;
}

// covers: G4, G5
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn databases_swapped_and_swapped_back_deliver_all_later_messages_in_order() {
    let stage = Stage::new(2);
    let port = stage.redis().address().port();
    let mut alice = stage.client(1, "alice").await;
    for round in 0..4 {
        let numbers = round * 10 + 1..=round * 10 + 10;
        dispatch_all(&stage, numbers.clone(), &["alice"]).await;
        assert_eq!(through(&mut alice, round * 10 + 10).await, numbers.collect::<Vec<_>>(), "round {round}");
        settled(&stage, "alice", &mut alice).await;
        assert_eq!(cli(port, &["SWAPDB", "0", "1"]), "OK");
    }
}

// covers: G4, G5
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_restarted_empty_delivers_all_later_messages_in_order() {
    let redis = Redis::start_with(&["--appendonly", "no"]);
    let stage = Stage::on(&format!("redis: '{}',", redis.url()), 2);
    let mut phone = resuming(&stage, 1, "alice", "phone", 0).await;
    dispatch_all(&stage, 1..=10, &["alice"]).await;
    assert_eq!(through(&mut phone, 10).await, (1..=10).collect::<Vec<_>>());
    block_in_place(|| {
        redis.kill();
        redis.revive();
    });
    let mut n = 10;
    for at in 0..2 {
        until_taken(&stage, at, &mut n, &["alice"]).await;
    }
    let taken = n;
    dispatch_all(&stage, taken + 1..=taken + 20, &["alice"]).await;
    let (got, gaps) = through_with_gaps(&mut phone, taken + 20).await;
    assert!(got.is_sorted_by(|one, other| one < other), "{got:?}");
    assert!(got.ends_with(&(taken..=taken + 20).collect::<Vec<_>>()), "{got:?}");
    assert_eq!(gaps, ["lost"]);
}

/// Nothing tells a shard that was flushed by hand from one in which these users are new, but its logs.
// covers: G4, G5
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shard_of_a_cluster_flushed_by_hand_delivers_all_later_messages_in_order() {
    let cluster = block_in_place(Cluster::start);
    let stage = Stage::on(&cluster.setting(), 2);
    let here = cluster.owner("mesa:{here}:nodes").port;
    let names: Vec<String> = (0..50).map(|n| format!("user-{n}")).collect();
    let elsewhere = names.iter().find(|name| cluster.owner(&format!("mesa:state:{{{name}}}")).port != here);
    let name = elsewhere.expect("three shards").as_str();
    let (mut client, mut phone) = (stage.client(0, name).await, resuming(&stage, 1, name, "phone", 0).await);
    dispatch_all(&stage, 1..=10, &[name]).await;
    assert_eq!(through(&mut client, 10).await, (1..=10).collect::<Vec<_>>());
    assert_eq!(through(&mut phone, 10).await, (1..=10).collect::<Vec<_>>());
    let owner = cluster.owner(&format!("mesa:state:{{{name}}}"));
    assert_eq!(cli(owner.port, &["FLUSHALL"]), "OK");
    dispatch_all(&stage, 11..=30, &[name]).await;
    assert_eq!(through(&mut client, 30).await, (11..=30).collect::<Vec<_>>());
    let (got, gaps) = through_with_gaps(&mut phone, 30).await;
    assert_eq!((got, gaps.first().map(String::as_str)), ((11..=30).collect(), Some("lost")));
    until("dispatches to be taken", async || {
        stage.ask(0, "POST", "/v1/dispatch", &message(31, &[name])).await.0 == 200
    })
    .await;
    assert_eq!(next(&mut client).await, json!(31));
}

/// One user's log alone, while a client is connected, another resumes, and a third comes back later with its old sequence.
// covers: G4, G5
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn log_deleted_by_hand_delivers_all_later_messages_in_order() {
    let stage = Stage::new(2);
    let port = stage.redis().address().port();
    for keys in [&["mesa:state:{alice}"][..], &["mesa:log:{alice}"], &["mesa:state:{alice}", "mesa:log:{alice}"]] {
        let (mut alice, mut phone) = (stage.client(0, "alice").await, resuming(&stage, 1, "alice", "phone", 0).await);
        dispatch_all(&stage, 1..=10, &["alice"]).await;
        assert!(through(&mut alice, 10).await.ends_with(&(1..=10).collect::<Vec<_>>()));
        assert!(through_with_gaps(&mut phone, 10).await.0.ends_with(&(1..=10).collect::<Vec<_>>()));
        assert_ne!(cli(port, &[&["DEL"], keys].concat()), "0");
        dispatch_all(&stage, 11..=30, &["alice"]).await;
        let expected: Vec<u64> = (11..=30).collect();
        assert!(through(&mut alice, 30).await.ends_with(&expected), "{keys:?}");
        assert!(through_with_gaps(&mut phone, 30).await.0.ends_with(&expected), "{keys:?}");
        let (got, _) = through_with_gaps(&mut resuming(&stage, 0, "alice", "tablet", 10).await, 30).await;
        assert!(got.ends_with(&expected), "{keys:?}: {got:?}");
        phone.confirm_through(1 << 50).await.expect("it is there");
    }
}
