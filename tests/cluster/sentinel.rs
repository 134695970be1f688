//! Two servers on a Redis that three Sentinels watch, as their users see them while another takes over.

use serde_json::{Value, json};
use tokio::task::block_in_place;

use super::{
    Stage, message, next,
    redis_topologies::{Watched, cli, wait},
    support::socket::{Event, Socket},
    through, until, until_taken,
};

/// Waits until what the replica has copied is all there is.
fn wait_until_copied(watched: &Watched, from: usize) {
    let said = |at: usize, name: &str| {
        let text = cli(watched.nodes[at].port, &["INFO", "replication"]);
        text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok())
    };
    wait("the replica to have all", || {
        let had = said(from, "master_repl_offset:");
        had.is_some() && said(1 - from, "slave_repl_offset:") >= had
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_of_sentinel_fails_dispatches_aloud_and_keeps_clients_and_what_was_copied() {
    let watched = block_in_place(Watched::start);
    let stage = Stage::on(&watched.setting(), 2);
    let (mut alice, mut bob) = (stage.client(1, "alice").await, stage.client(0, "bob").await);
    let mut n = 0;
    for _ in 0..20 {
        n += 1;
        stage.dispatch(n as usize % 2, &message(n, &["alice", "bob", "carol"])).await;
        assert_eq!((next(&mut alice).await, next(&mut bob).await), (json!(n), json!(n)));
    }
    let copied = n;
    block_in_place(|| wait_until_copied(&watched, 0));
    watched.nodes[0].kill();
    let (status, refused) = stage.ask(0, "POST", "/v1/dispatch", &message(1000, &["dave"])).await;
    assert_eq!((status, &refused["error"]["code"]), (503, &json!("unreachable")), "{refused}");
    let mut answered: Vec<u64> = (1..=copied).collect();
    for at in 0..2 {
        let refused = until_taken(&stage, at, &mut n, &["alice", "bob", "carol"]).await;
        println!("server {at} refused {refused} dispatches");
        answered.push(n);
    }
    assert!(watched.nodes[1].is("master"), "the other has taken over");
    for at in 0..2 {
        n += 1;
        stage.dispatch(at, &message(n, &["alice", "bob", "carol"])).await;
        answered.push(n);
    }
    // What was refused may have been done; what was answered comes, once, on the connections that they had.
    for socket in [&mut alice, &mut bob] {
        let got = through(socket, n).await;
        assert!(got.is_sorted_by(|one, other| one < other) && got[0] > copied, "{got:?}");
        assert!(answered.iter().filter(|one| **one > copied).all(|one| got.contains(one)), "{answered:?}: {got:?}");
    }
    // Who was away the whole time gets all that was answered, in order.
    let mut carol = stage.client(0, "carol").await;
    let got = through(&mut carol, n).await;
    assert!(got.is_sorted_by(|one, other| one < other) && answered.iter().all(|one| got.contains(one)), "{got:?}");
    let online = |users: &Value| users["users"].as_array().is_some_and(|all| all.len() == 3);
    stage.until("all three to be seen", 1, "/v1/users?online=true", online).await;
    // The old one comes back as a replica, and takes over again while both are alive: nobody stays with the other.
    watched.nodes[0].revive();
    block_in_place(|| {
        wait("the old one to follow", || {
            cli(watched.nodes[0].port, &["INFO", "replication"]).contains("master_link_status:up")
        });
        wait_until_copied(&watched, 1);
        wait("the failover to begin", || cli(watched.sentinels[0].port, &["SENTINEL", "FAILOVER", "mesa"]) == "OK");
        wait("it to take over", || watched.nodes[0].is("master") && watched.nodes[1].is("slave"));
    });
    for at in 0..2 {
        until_taken(&stage, at, &mut n, &["alice"]).await;
    }
    n += 1;
    stage.dispatch(0, &message(n, &["alice"])).await;
    through(&mut alice, n).await;
    let listeners = |at: usize| cli(watched.nodes[at].port, &["PUBSUB", "NUMSUB", "mesa:wake"]);
    block_in_place(|| {
        wait("both to listen at the new one", || listeners(0).ends_with('2') && listeners(1).ends_with('0'));
    });
    // Somebody makes the primary a replica, and does not cut its connections: each server finds out by itself.
    let port = watched.nodes[1].port.to_string();
    watched.sentinels.iter().for_each(super::redis_topologies::Node::kill);
    cli(watched.nodes[1].port, &["REPLICAOF", "NO", "ONE"]);
    cli(watched.nodes[0].port, &["REPLICAOF", "127.0.0.1", &port]);
    let (status, refused) = stage.ask(0, "POST", "/v1/dispatch", &message(1001, &["alice"])).await;
    assert_eq!((status, &refused["error"]["code"]), (503, &json!("unreachable")), "{refused}");
}

async fn resuming(stage: &Stage, at: usize, device: &str, after: u64) -> Socket {
    Socket::connect_as(stage.servers[at].address, "alice", Some(after), Some(device)).await.expect("a client")
}

/// A primary takes with it what its replica had not copied: sequences go back in the Redis, and not for who has seen them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_failover_forgets_is_not_taken_for_what_comes_after_it() {
    let watched = block_in_place(Watched::start);
    let stage = Stage::on(&watched.setting(), 2);
    let (mut alice, mut phone) = (stage.client(1, "alice").await, resuming(&stage, 0, "phone", 0).await);
    let mut n = 0;
    for copied in [true, false] {
        for _ in 0..5 {
            n += 1;
            stage.dispatch(0, &message(n, &["alice", "bob"])).await;
            assert_eq!(next(&mut alice).await, json!(n));
            assert_eq!(through(&mut phone, n).await, [n]);
        }
        if copied {
            block_in_place(|| wait_until_copied(&watched, 0));
            // From here on it copies from nobody.
            assert_eq!(cli(watched.nodes[1].port, &["REPLICAOF", "127.0.0.1", "1"]), "OK");
        }
    }
    watched.nodes[0].kill();
    // All that is taken from here on is delivered, although there are free numbers below those that were seen.
    for at in 0..2 {
        until_taken(&stage, at, &mut n, &["alice", "bob"]).await;
    }
    let taken = n;
    for at in [0, 1, 0, 1] {
        n += 1;
        stage.dispatch(at, &message(n, &["alice", "bob"])).await;
    }
    for socket in [&mut alice, &mut phone] {
        let got = through(socket, n).await;
        assert!(got[0] > 10 && got.ends_with(&(taken..=n).collect::<Vec<_>>()), "{got:?}");
    }
    let lost =
        |n: u64| !cli(watched.nodes[1].port, &["XRANGE", "mesa:log:{bob}", "-", "+"]).contains(&format!("\"d\":{n},"));
    assert!(lost(6) && lost(10) && !lost(5), "the failover has lost what was not copied, or this test means nothing");
    // One who comes back with a number that is forgotten is told so, and misses nothing of what is there.
    let mut tablet = resuming(&stage, 1, "tablet", 10).await;
    let Ok(Event::Resumed(told)) = tablet.event().await else { panic!("it is told first what there is") };
    let missed = told.missed.expect("something is missing");
    assert_eq!((missed.from, missed.reason.as_str()), (11, "lost"));
    let got = through(&mut tablet, n).await;
    assert!(got.ends_with(&(taken..=n).collect::<Vec<_>>()), "{got:?}");
    let mut bob = stage.client(0, "bob").await;
    let got = through(&mut bob, n).await;
    assert!(got.starts_with(&[1, 2, 3, 4, 5]) && got.ends_with(&(taken..=n).collect::<Vec<_>>()), "{got:?}");
}

/// A Redis that is emptied under running servers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_redis_was_emptied_new_messages_reach_who_had_more_before() {
    let stage = Stage::new(2);
    let (mut alice, mut phone) = (stage.client(1, "alice").await, resuming(&stage, 0, "phone", 0).await);
    for n in 1..=10 {
        stage.dispatch(0, &message(n, &["alice"])).await;
        assert_eq!(next(&mut alice).await, json!(n));
        assert_eq!(through(&mut phone, n).await, [n]);
    }
    let port = stage.redis().address().port();
    assert_eq!(cli(port, &["FLUSHALL"]), "OK");
    for n in 11..=15 {
        stage.dispatch(n as usize % 2, &message(n, &["alice"])).await;
        assert_eq!(next(&mut alice).await, json!(n));
        assert_eq!(through(&mut phone, n).await, [n]);
    }
    let mut tablet = resuming(&stage, 1, "tablet", 10).await;
    let Ok(Event::Resumed(told)) = tablet.event().await else { panic!("it is told first what there is") };
    assert_eq!(told.missed.map(|missed| (missed.from, missed.reason)), Some((11, "lost".to_owned())));
    assert!(through(&mut tablet, 15).await.ends_with(&[15]));
    let online = |users: &Value| users["users"].as_array().is_some_and(|all| all.len() == 1);
    stage.until("her to be seen again", 1, "/v1/users?online=true", online).await;
}

/// `min-replicas-to-write`: a primary that is alone takes nothing, and says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_without_its_replicas_refuses_aloud_and_clients_stay() {
    let stage = Stage::new(1);
    let mut alice = stage.client(0, "alice").await;
    stage.dispatch(0, &message(1, &["alice"])).await;
    assert_eq!(next(&mut alice).await, 1);
    let port = stage.redis().address().port();
    assert_eq!(cli(port, &["CONFIG", "SET", "min-replicas-to-write", "1"]), "OK");
    let (status, refused) = stage.ask(0, "POST", "/v1/dispatch", &message(2, &["alice"])).await;
    assert_eq!((status, &refused["error"]["code"]), (503, &json!("unreachable")), "{refused}");
    assert!(refused["error"]["message"].as_str().is_some_and(|text| text.contains("NOREPLICAS")), "{refused}");
    assert_eq!(cli(port, &["CONFIG", "SET", "min-replicas-to-write", "0"]), "OK");
    let mut n = 2;
    until_taken(&stage, 0, &mut n, &["alice"]).await;
    assert_eq!(through(&mut alice, n).await, [n], "what was refused was not done");
    until("the server to be ready", async || stage.ask(0, "GET", "/readyz", &Value::Null).await.0 == 200).await;
}
