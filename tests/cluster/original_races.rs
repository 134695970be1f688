//! Tests that no accepted message is lost while servers or Dispatchers of the original share the Redis.
//!
//! The users have just disconnected, change servers, or were connected to a server that died.

use std::{
    collections::HashSet,
    io::{BufRead, BufReader, Write as _},
    net::TcpStream,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        mpsc::{Receiver, channel},
    },
    time::Duration,
};

use serde_json::json;

use crate::{
    ServerGroup, WAIT_TIMEOUT, message, next_data,
    original::{Original, SETTINGS},
    proxy::{LinkState, Proxy},
    redis_server::Redis,
    support::{http::request, resp::encode_command, server::Home, socket::Socket},
    unsynced, wait_until,
};

/// Subscribes to the original's channel with `redis-cli`, as a server of the original without clients would.
struct Subscriber {
    process: Child,
    lines: Receiver<String>,
}

impl Subscriber {
    /// Returns when every mesa server knows of the subscriber.
    async fn start(group: &ServerGroup, arguments: &[&str]) -> Self {
        let mut process = Command::new("redis-cli")
            .args(["-p", &group.redis().address().port().to_string()])
            .args(arguments)
            .args(["SUBSCRIBE", "ws_shop"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("redis-cli runs");
        let (sender, lines) = channel();
        let out = BufReader::new(process.stdout.take().expect("a pipe"));
        std::thread::spawn(move || out.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        // A server looks for subscribers once per second. It counts a user of the original as online only if it knows
        // one.
        group.redis().cli(&["SADD", "connected_clients_shop", "original-user"]);
        for server in 0..group.servers.len() {
            wait_until("the mesa server knows of the subscriber", async || {
                group.dispatch(server, &message(0, &["original-user"])).await["online"] == 1
            })
            .await;
        }
        Self { process, lines }
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        _ = self.process.kill();
        _ = self.process.wait();
    }
}

/// Starts one mesa server, and a proxy between it and its Redis.
async fn server_behind_proxy() -> (ServerGroup, Arc<Proxy>) {
    let redis_server = Redis::start();
    let proxy = Proxy::start(redis_server.address()).await;
    let group = ServerGroup::start_on(&format!("redis: 'redis://{}', {SETTINGS}", proxy.address), 1);
    (ServerGroup { redis: Some(redis_server), ..group }, proxy)
}

/// Waits until the original's presence keys contain a user.
async fn wait_until_seen(group: &ServerGroup, user: &str) {
    wait_until("the original sees the user online", async || {
        group.redis().cli(&["SISMEMBER", "connected_clients_shop", user]) == "1"
    })
    .await;
}

/// Waits until the original's presence keys hold this number of connections and exactly these users.
async fn wait_until_original_sees(group: &ServerGroup, count: &str, users: &[&str]) {
    wait_until("the original's presence keys are right", async || {
        let members = group.redis().cli(&["SMEMBERS", "connected_clients_shop"]);
        let members: HashSet<&str> = members.lines().filter(|line| !line.is_empty()).collect();
        group.redis().cli(&["GET", "connected_clients_count_shop"]) == count
            && members == users.iter().copied().collect()
    })
    .await;
}

// covers: G2
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dispatch_right_after_disconnect_is_delivered_on_reconnect() {
    let group = ServerGroup::start_with(2, SETTINGS);
    let _subscriber = Subscriber::start(&group, &[]).await;
    let mut lost = Vec::new();
    for n in 1..=20 {
        let user = format!("user-{n}");
        let socket = group.client(0, &user).await;
        wait_until_seen(&group, &user).await;
        drop(socket);
        if n % 2 == 0 {
            // In this time the server may have noticed the disconnect without having written it to Redis.
            tokio::time::sleep(Duration::from_millis(n / 4)).await;
        }
        group.dispatch(n as usize / 10 % 2, &message(n, &[&user])).await;
        let mut socket = group.client(1, &user).await;
        let received = tokio::time::timeout(Duration::from_secs(3), next_data(&mut socket)).await;
        if received != Ok(json!(n)) {
            lost.push(n);
        }
    }
    assert!(lost.is_empty(), "every accepted message is delivered; lost: {lost:?}");
    wait_until_original_sees(&group, "0", &["original-user"]).await;
}

// covers: G2
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dispatch_to_user_of_dead_server_before_reaping_is_delivered_on_reconnect() {
    let mut group = ServerGroup::start_with(2, SETTINGS);
    let _subscriber = Subscriber::start(&group, &[]).await;
    group.redis().cli(&["SREM", "connected_clients_shop", "original-user"]);
    let (bob, carol) = (group.client(1, "bob").await, group.client(0, "carol").await);
    wait_until_seen(&group, "bob").await;
    group.servers.pop().expect("a second server").process.kill();
    drop(bob);
    let mut n = 0;
    // Dispatches while the presence keys contain bob, and ten times after that.
    let mut dispatched_after = 0;
    while dispatched_after < 10 {
        n += 1;
        group.dispatch(0, &message(n, &["bob"])).await;
        let online = group.redis().cli(&["SISMEMBER", "connected_clients_shop", "bob"]) == "1";
        dispatched_after += u64::from(!online);
        tokio::time::sleep(Duration::from_millis(if online { 40 } else { 5 })).await;
    }
    let mut bob = group.client(0, "bob").await;
    for expected in 1..=n {
        assert_eq!(next_data(&mut bob).await, expected, "message {expected} of {n}");
    }
    wait_until_original_sees(&group, "2", &["bob", "carol"]).await;
    drop((bob, carol));
    wait_until_original_sees(&group, "0", &[]).await;
}

/// Connects the device `tablet` of the user `eve` to the last server.
async fn tablet(group: &ServerGroup) -> Socket {
    let address = group.servers.last().expect("a server").address;
    Socket::connect_as(address, "eve", None, Some("tablet")).await.expect("a connected client")
}

// covers: G2
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn original_dispatches_while_user_changes_servers_and_one_dies_are_stored_once_in_order() {
    const MESSAGES: u64 = 250;
    let mut group = ServerGroup::start_with(3, SETTINGS);
    let mut original = Original::start(&group);
    drop(tablet(&group).await);
    let mut eve = group.client(0, "eve").await;
    wait_until_seen(&group, "eve").await;
    let dispatching = std::thread::spawn(move || {
        let numbers: Vec<u64> = (1..=MESSAGES).collect();
        original.run(&json!({ "command": "dispatch", "sync": true, "numbers": numbers, "to": ["eve"] }));
    });
    let mut received = Vec::new();
    let mut read = async |eve: &mut Socket, last: u64| {
        loop {
            let n = next_data(eve).await.as_u64().expect("a number");
            received.push(n);
            if n >= last {
                return;
            }
        }
    };
    read(&mut eve, 60).await;
    // Kills the server that joined first: the others must not depend on it.
    group.servers.remove(0).process.kill();
    group.homes.remove(0);
    drop(eve);
    tokio::time::sleep(Duration::from_millis(300)).await;
    let mut eve = group.client(0, "eve").await;
    read(&mut eve, 120).await;
    drop(eve);
    let mut eve = group.client(1, "eve").await;
    read(&mut eve, 180).await;
    drop(eve);
    tokio::time::sleep(Duration::from_millis(100)).await;
    let mut eve = group.client(0, "eve").await;
    read(&mut eve, MESSAGES).await;
    dispatching.join().expect("the original dispatches every message");
    // Entries that were not acknowledged when a connection ended are sent again.
    let mut seen = HashSet::new();
    let first_receipts: Vec<u64> = received.iter().copied().filter(|n| seen.insert(*n)).collect();
    assert_eq!(first_receipts, (1..=MESSAGES).collect::<Vec<_>>(), "{received:?}");
    // A device that was offline meanwhile receives every stored entry.
    let mut tablet = tablet(&group).await;
    for n in 1..=MESSAGES {
        assert_eq!(next_data(&mut tablet).await, n, "each message is stored once, in order");
    }
    group.dispatch(1, &message(1000, &["eve"])).await;
    assert_eq!(next_data(&mut tablet).await, 1000, "no further entry is stored");
    drop(tablet);
    wait_until_original_sees(&group, "1", &["eve"]).await;
    drop(eve);
    wait_until_original_sees(&group, "0", &[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn list_stored_by_original_just_after_connect_is_delivered_on_that_connection() {
    let group = ServerGroup::start_with(1, SETTINGS);
    let mut dora = group.client(0, "dora").await;
    // The original saw dora offline, and writes its list only after dora has connected.
    let list = json!([{ "op": 0, "d": 1, "t": "N" }, { "op": 0, "d": 2, "t": "N" }]).to_string();
    group.redis().cli(&["HSET", "undelivered_messages_shop", "dora", &list]);
    assert_eq!((next_data(&mut dora).await, next_data(&mut dora).await), (json!(1), json!(2)));
    assert_eq!(group.redis().cli(&["HLEN", "undelivered_messages_shop"]), "0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broadcast_that_cannot_be_resolved_for_the_original_reaches_other_servers() {
    let group = ServerGroup::start_with(2, SETTINGS);
    let _subscriber = Subscriber::start(&group, &[]).await;
    let mut bob = group.client(1, "bob").await;
    wait_until_seen(&group, "bob").await;
    // With an exclusion the server reads the original's list of connected users, which Redis now forbids.
    group.redis().cli(&["ACL", "SETUSER", "default", "resetkeys", "~mesa:*"]);
    let (status, response) = group.call(0, "POST", "/v1/dispatch", &unsynced(1, &["*"], &["carol"])).await;
    assert_eq!(status, 200, "{response}");
    assert_eq!(next_data(&mut bob).await, 1);
    group.redis().cli(&["ACL", "SETUSER", "default", "allkeys"]);
}

// covers: G4
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retry_with_same_id_after_failed_publish_publishes_to_the_original_once() {
    let group = ServerGroup::start_with(1, SETTINGS);
    group.redis().cli(&["ACL", "SETUSER", "other", "on", "nopass", "+@all", "~*", "&*"]);
    let subscriber = Subscriber::start(&group, &["--user", "other", "--pass", "any"]).await;
    let mut bob = group.client(0, "bob").await;
    wait_until_seen(&group, "bob").await;
    // Redis forbids the server only to publish on the original's channel.
    group.redis().cli(&["ACL", "SETUSER", "default", "resetchannels", "&mesa:*"]);
    let dispatch = json!({
        "message": { "op": 0, "d": "once", "t": "N" }, "recipients": ["bob", "original-user"], "id": "id-1",
    });
    let (status, response) = group.call(0, "POST", "/v1/dispatch", &dispatch).await;
    assert_eq!(status, 503, "{response}");
    group.redis().cli(&["ACL", "SETUSER", "default", "allchannels"]);
    let is_published = |timeout: Duration| {
        let deadline = std::time::Instant::now() + timeout;
        loop {
            match subscriber.lines.recv_timeout(deadline.saturating_duration_since(std::time::Instant::now())) {
                Ok(line) if line.contains("\"once\"") => return true,
                Ok(_) => {}
                Err(_) => return false,
            }
        }
    };
    group.dispatch(0, &dispatch).await;
    assert!(is_published(WAIT_TIMEOUT), "the retry is published, because only the original has original-user");
    assert_eq!(next_data(&mut bob).await, "once");
    let response = group.dispatch(0, &dispatch).await;
    assert_eq!(response["duplicate"], true, "{response}");
    group.dispatch(0, &message(2, &["bob"])).await;
    assert_eq!(next_data(&mut bob).await, 2, "bob receives the first message once");
    assert!(!is_published(Duration::from_millis(200)), "a retry of an accepted dispatch is not published");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn state_of_dead_server_with_20000_users_is_removed_completely() {
    let group = ServerGroup::start_with(1, SETTINGS);
    let alice = group.client(0, "user-7").await;
    wait_until_seen(&group, "user-7").await;
    let fill = "for n = 1, 20000 do
          local user = 'user-' .. n
          redis.call('HSET', 'mesa:{cluster}:users:1-dead_shop', user, 1)
          redis.call('ZADD', 'mesa:{cluster}:online_shop', 0, user)
          redis.call('ZADD', 'mesa:{cluster}:original-users-added_shop', 0, user)
          redis.call('SADD', 'connected_clients_shop', user)
        end
        redis.call('HSET', 'mesa:{cluster}:connections_shop', '1-dead', 20000)
        redis.call('INCRBY', 'connected_clients_count_shop', 20000)
        redis.call('ZADD', 'mesa:{cluster}:servers_shop', 1, '1-dead')";
    group.redis().cli(&["EVAL", fill, "0"]);
    wait_until_original_sees(&group, "1", &["user-7"]).await;
    assert_eq!(group.redis().cli(&["ZCARD", "mesa:{cluster}:online_shop"]), "1");
    assert_eq!(group.redis().cli(&["KEYS", "mesa:{cluster}:users:1-dead*"]), "");
    drop(alice);
    wait_until_original_sees(&group, "0", &[]).await;
}

/// Publishes a dispatch on the original's channel, as its Dispatchers do.
fn publish(group: &ServerGroup, n: u64, to: &[&str]) {
    let text = json!({ "message": { "op": 0, "d": n, "t": "N" }, "recipients": to }).to_string();
    group.redis().cli(&["PUBLISH", "ws_shop", &text]);
}

// covers: G4
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn original_message_while_redis_rejects_writes_is_stored_once_when_it_accepts() {
    let group = ServerGroup::start_with(1, SETTINGS);
    let (mut alice, bob) = (group.client(0, "alice").await, group.client(0, "bob").await);
    wait_until_seen(&group, "alice").await;
    wait_until_seen(&group, "bob").await;
    drop(bob);
    group.redis().cli(&["CONFIG", "SET", "min-replicas-to-write", "1"]);
    let (status, _) = group.call(0, "POST", "/v1/dispatch", &message(0, &["alice"])).await;
    assert_eq!(status, 503);
    publish(&group, 1, &["alice", "bob"]);
    publish(&group, 2, &["alice", "bob"]);
    // In this time the server tries to store both messages, and Redis rejects it.
    tokio::time::sleep(Duration::from_millis(300)).await;
    group.redis().cli(&["CONFIG", "SET", "min-replicas-to-write", "0"]);
    let mut n = 2;
    crate::dispatch_until_accepted(&group, 0, &mut n, &["alice"]).await;
    let mut bob = group.client(0, "bob").await;
    assert_eq!((next_data(&mut bob).await, next_data(&mut bob).await), (json!(1), json!(2)));
    let mut received = Vec::new();
    while received.len() < 3 {
        received.push(next_data(&mut alice).await.as_u64().expect("a number"));
    }
    received.sort_unstable();
    assert_eq!(received, [1, 2, n], "alice receives each message once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn original_list_larger_than_the_quota_is_imported_in_order_as_entries_are_acknowledged() {
    let redis_server = Redis::start();
    let mut home = Home::with_settings(&format!("redis: '{}', {SETTINGS}", redis_server.url()));
    home.set_variable("MESA_SYNC_MAX_BYTES", "65536");
    let servers = vec![home.start()];
    let group = ServerGroup { redis: Some(redis_server), homes: vec![home], servers };
    let first = json!({ "op": 0, "d": [1, "x".repeat(32_000)], "t": "N" });
    group.dispatch(0, &json!({ "message": first, "recipients": ["bob"] })).await;
    // Message 2 exceeds the quota until message 1 is acknowledged. Message 3 has the maximum size of a message and
    // always exceeds the quota.
    let script = r#"local function message(n, bytes)
          return '{"op":0,"d":[' .. n .. ',"' .. string.rep('x', bytes) .. '"],"t":"N"}'
        end
        local left = {message(2, 40000), message(3, 65529), message(4, 10), message(5, 50000), message(6, 0)}
        redis.call('HSET', KEYS[1], 'bob', '[' .. table.concat(left, ',') .. ']')"#;
    group.redis().cli(&["EVAL", script, "1", "undelivered_messages_shop"]);
    let mut bob = group.client(0, "bob").await;
    for n in [1, 2, 4, 5, 6] {
        assert_eq!(next_data(&mut bob).await[0], n);
    }
    wait_until("the whole list is imported", async || {
        group.redis().cli(&["EXISTS", "undelivered_messages_shop"]) == "0"
    })
    .await;
    let aside = group.redis().cli(&["GET", "mesa:{undelivered_messages_shop}:unsendable:bob"]);
    assert!(aside.starts_with("{\"op\":0,\"d\":[3,"), "{aside}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn list_stored_by_original_just_after_connect_is_delivered_after_a_cut_connection_to_redis() {
    let (group, proxy) = server_behind_proxy().await;
    let mut dora = group.client(0, "dora").await;
    wait_until_seen(&group, "dora").await;
    let cut = tokio::spawn(async move { proxy.disturb(LinkState::Cut, Duration::from_secs(3)).await });
    let list = json!([{ "op": 0, "d": 1, "t": "N" }, { "op": 0, "d": 2, "t": "N" }]).to_string();
    group.redis().cli(&["HSET", "undelivered_messages_shop", "dora", &list]);
    cut.await.expect("the proxy forwards again");
    assert_eq!((next_data(&mut dora).await, next_data(&mut dora).await), (json!(1), json!(2)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn list_stored_by_original_is_delivered_although_redis_reply_to_presence_was_lost() {
    let (group, proxy) = server_behind_proxy().await;
    // Only the reply to a presence update has this form: the users that have connected.
    proxy.drop_reply("*1\r\n$4\r\ndora\r\n");
    let mut dora = loop {
        // Other replies on the same connection are lost too. The handshake may need one of them, and then fails.
        if let Ok(dora) = Socket::connect(group.servers[0].address, "dora").await {
            break dora;
        }
    };
    wait_until("the proxy has dropped the reply", async || proxy.has_dropped()).await;
    wait_until_seen(&group, "dora").await;
    let list = json!([{ "op": 0, "d": 1, "t": "N" }]).to_string();
    group.redis().cli(&["HSET", "undelivered_messages_shop", "dora", &list]);
    assert_eq!(next_data(&mut dora).await, json!(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broadcasts_with_and_without_exclusion_reach_other_servers_and_the_original_in_order() {
    const MESSAGES: u64 = 60;
    let group = ServerGroup::start_with(2, SETTINGS);
    let subscriber = Subscriber::start(&group, &[]).await;
    let mut alice = group.client(1, "alice").await;
    // For a broadcast with an exclusion the server must first ask Redis for the original's users.
    let line = |n: u64| unsynced(n, &["*"], if n % 2 == 1 { &["original-user"] } else { &[] }).to_string() + "\n";
    let body: String = (1..=MESSAGES).map(line).collect();
    let request = request("POST", "/v1/dispatch", &body).replace("application/json", "application/x-ndjson");
    let mut backend = TcpStream::connect(group.servers[0].address).expect("a connection");
    backend.write_all(request.as_bytes()).expect("the request is written");
    let mut received = Vec::new();
    while received.len() < MESSAGES as usize {
        received.push(next_data(&mut alice).await.as_u64().expect("a number"));
    }
    assert_eq!(received, (1..=MESSAGES).collect::<Vec<_>>(), "a client of the other mesa server receives all in order");
    let mut received = Vec::new();
    while received.len() < MESSAGES as usize {
        let line = subscriber.lines.recv_timeout(WAIT_TIMEOUT).expect("a published message");
        if line.contains("\"N\"") && !line.contains("\"original-user\"],") {
            let published: serde_json::Value = serde_json::from_str(&line).expect("JSON");
            received.extend(published["message"]["d"].as_u64().filter(|n| *n > 0));
        }
    }
    assert_eq!(received, (1..=MESSAGES).collect::<Vec<_>>(), "the original receives all in order");
}

// covers: G2
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn original_messages_while_server_reconnects_to_redis_are_delivered_once_in_order() {
    const ROUNDS: u64 = 4;
    const MESSAGES_PER_ROUND: u64 = 100;
    let group = ServerGroup::start_with(1, SETTINGS);
    let mut alice = group.client(0, "alice").await;
    wait_until_seen(&group, "alice").await;
    let (mut redis, mut n) = (TcpStream::connect(group.redis().address()).expect("a connection to Redis"), 0);
    let mut replies = redis.try_clone().expect("a second handle of the socket");
    std::thread::spawn(move || std::io::copy(&mut replies, &mut std::io::sink()));
    let mut send = |words: &[&str]| redis.write_all(&encode_command(words)).expect("the command is written");
    for _ in 0..ROUNDS {
        for index in 0..MESSAGES_PER_ROUND {
            if index == 10 {
                // Closes all connections except this one and subscriptions.
                send(&["CLIENT", "KILL", "TYPE", "normal"]);
            }
            n += 1;
            let text = json!({ "message": { "op": 0, "d": n, "t": "N" }, "recipients": ["alice"] }).to_string();
            send(&["PUBLISH", "ws_shop", &text]);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    let mut received = Vec::new();
    while received.last() != Some(&n) {
        let next = tokio::time::timeout(WAIT_TIMEOUT, next_data(&mut alice)).await;
        let next = next.unwrap_or_else(|_| panic!("only {} of {n} messages arrive: {received:?}", received.len()));
        received.push(next.as_u64().expect("a number"));
    }
    assert_eq!(received, (1..=n).collect::<Vec<_>>());
}
