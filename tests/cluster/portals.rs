//! Tests portals of several servers together with portals of the original (`@cryb/mesa`).
//!
//! Each client event goes to one portal of the shared pool, and to every portal that receives all events.

use std::{
    collections::HashMap,
    io::{BufRead, BufReader, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    sync::Arc,
    time::Duration,
};

use mesa::client::{Connection, ConnectionEvent};
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::{
    ServerGroup, next_data,
    support::{server::KEY, socket::Socket, wait::WAIT_TIMEOUT},
    wait_until,
};
use crate::{
    original::{Original, SETTINGS},
    redis_server::redis_cli,
};

/// Redis key of the set of portals that share events.
const POOL: &str = "available_portals_pool_shop";

/// A client message as a portal receives it: user and data.
type PortalMessage = (String, Value);

/// Reads `GET /v1/events` of a mesa server on its own thread.
struct Stream {
    socket: TcpStream,
    events: Arc<Mutex<Vec<Value>>>,
}

impl Stream {
    fn open(address: SocketAddr, query: &str) -> Self {
        let mut socket = TcpStream::connect(address).expect("a connection");
        let head = format!("GET /v1/events{query} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n\r\n");
        socket.write_all(head.as_bytes()).expect("the request is written");
        let events = Arc::new(Mutex::new(Vec::new()));
        let mut lines = BufReader::new(socket.try_clone().expect("a second handle of the socket")).lines();
        let status = lines.next().expect("a response").expect("a status line");
        assert!(status.contains(" 200 "), "{status}");
        let read = events.clone();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if let Some(data) = line.strip_prefix("data: ") {
                    read.lock().push(serde_json::from_str(data).expect("JSON"));
                }
            }
        });
        Self { socket, events }
    }

    /// Returns the client messages that the stream has received.
    fn messages(&self) -> Vec<PortalMessage> {
        let events = self.events.lock();
        let messages = events.iter().filter(|event| event["type"] == "message");
        messages
            .map(|event| (event["user"].as_str().unwrap_or_default().to_owned(), event["message"]["d"].clone()))
            .collect()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        _ = self.socket.shutdown(Shutdown::Both);
    }
}

/// Returns the client messages that each portal of an original process has received.
fn original_portal_messages(original: &mut Original) -> Vec<Vec<PortalMessage>> {
    let portals: Vec<Vec<(Option<String>, Value)>> =
        serde_json::from_value(original.call(&json!({ "command": "received" }))).unwrap();
    let messages = |events: Vec<(Option<String>, Value)>| {
        let messages = events.into_iter().filter(|(_, data)| data.is_number());
        messages.map(|(user, data)| (user.unwrap_or_default(), data)).collect()
    };
    portals.into_iter().map(messages).collect()
}

/// Starts two servers with RESP ports. Returns the ports too.
fn start_group() -> (ServerGroup, [u16; 2]) {
    let group =
        ServerGroup::start_with(2, &format!("{SETTINGS} portal: {{ enabled: true }}, redisProtocol: {{ port: 0 }},"));
    let ports = [0, 1].map(|server| group.homes[server].redis_protocol_address().port());
    (group, ports)
}

async fn wait_until_pool_size(group: &ServerGroup, count: usize) {
    let condition = format!("the pool has {count} portals");
    wait_until(&condition, async || group.redis().cli(&["SCARD", POOL]) == count.to_string()).await;
}

/// Starts a server of the original, and waits until it receives announcements of portals.
///
/// It may never know of a portal that is announced before that.
async fn serve_original(group: &ServerGroup, original: &mut Original) -> SocketAddr {
    let address = original.serve();
    // The two mesa servers subscribe too.
    wait_until("three servers receive announcements of portals", async || {
        group.redis().cli(&["PUBSUB", "NUMSUB", POOL]).lines().last() == Some("3")
    })
    .await;
    address
}

/// Waits until this number of the original's portals has subscribed to events.
async fn wait_until_original_portals(group: &ServerGroup, count: usize) {
    wait_until(&format!("{count} portals of the original have subscribed to events"), async || {
        group.redis().cli(&["PUBSUB", "NUMSUB", "portal_shop"]).lines().last() == Some(&count.to_string())
    })
    .await;
}

async fn send_number(client: &mut Socket, n: u64) {
    client.send_frame(&json!({ "op": 0, "d": n, "t": "N" })).await.expect("the message is sent");
}

/// Sends 0 from every client until `ready`, then the numbers 1 to `count`.
async fn send_numbers(clients: &mut [&mut Socket], count: u64, mut ready: impl AsyncFnMut() -> bool) {
    wait_until("the portals receive messages", async || {
        for client in &mut *clients {
            send_number(client, 0).await;
        }
        ready().await
    })
    .await;
    for n in 1..=count {
        for client in &mut *clients {
            send_number(client, n).await;
        }
    }
}

/// Counts how often each message was received, except the zeros of [`send_numbers`].
fn receipts(messages: &[PortalMessage]) -> HashMap<PortalMessage, usize> {
    let mut receipts = HashMap::new();
    let numbered = messages.iter().filter(|(_, data)| *data != 0);
    numbered.for_each(|message| *receipts.entry(message.clone()).or_default() += 1);
    receipts
}

/// Asserts that the numbers 1 to `count` of each user were received once.
fn assert_each_once(portal: &str, messages: &[PortalMessage], users: &[&str], count: u64) {
    let receipts = receipts(messages);
    assert!(receipts.values().all(|count| *count == 1), "{portal}: each message is received once: {receipts:?}");
    assert_eq!(receipts.len() as u64, count * users.len() as u64, "{portal}: {receipts:?}");
}

/// Reports whether there is a message of each of these users.
fn has_each_user(messages: &[PortalMessage], users: &[&str]) -> bool {
    users.iter().all(|user| messages.iter().any(|(sender, _)| sender == user))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn event_of_any_server_goes_to_one_portal_of_mesa_and_the_original_in_turn() {
    const USERS: [&str; 3] = ["alice", "bob", "carol"];
    let (group, _) = start_group();
    let mut original = Original::start(&group);
    let original_server = serve_original(&group, &mut original).await;
    original.run(&json!({ "command": "portal", "all": false }));
    original.run(&json!({ "command": "portal", "all": false }));
    wait_until_original_portals(&group, 2).await;
    let stream = Stream::open(group.servers[1].address, "");
    wait_until_pool_size(&group, 3).await;
    let (mut alice, mut bob) = (group.client(0, "alice").await, group.client(1, "bob").await);
    let mut carol = Socket::connect(original_server, "carol").await.expect("a client of the original's server");
    send_numbers(&mut [&mut alice, &mut bob, &mut carol], 30, async || {
        let mut portals = original_portal_messages(&mut original);
        portals.push(stream.messages());
        let missing = |messages: &Vec<PortalMessage>| {
            USERS.iter().filter(|user| !has_each_user(messages, &[**user])).collect::<Vec<_>>()
        };
        let missing: Vec<Vec<&&str>> = portals.iter().map(missing).collect();
        let ready = missing.iter().all(Vec::is_empty);
        if !ready {
            println!("users of which the original's two portals and the stream have no message yet: {missing:?}");
        }
        ready
    })
    .await;
    let mut portals = || {
        let mut portals = original_portal_messages(&mut original);
        portals.push(stream.messages());
        portals
    };
    wait_until("the portals have received 90 messages together", async || {
        portals().iter().map(|messages| receipts(messages).len()).sum::<usize>() >= 90
    })
    .await;
    let portals = portals();
    assert_each_once("all portals together", &portals.concat(), &USERS, 30);
    for messages in &portals {
        for user in USERS {
            let count = receipts(messages).keys().filter(|(sender, _)| sender == user).count();
            assert!((8..=12).contains(&count), "a portal receives 8 to 12 of 30 messages of {user}, not {count}");
        }
    }
    // In a stream, connections of every mesa server have ids. Connections of the original's servers have none.
    let events = stream.events.lock();
    let ids: HashMap<&str, &str> =
        events.iter().filter_map(|event| Some((event["user"].as_str()?, event["connection"].as_str()?))).collect();
    assert!(ids["carol"].is_empty() && !ids["alice"].is_empty() && ids["alice"] != ids["bob"], "{ids:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn portal_of_all_events_receives_each_event_of_every_server_once() {
    const USERS: [&str; 3] = ["alice", "bob", "carol"];
    let (group, _) = start_group();
    let (mut original, all_events) = (Original::start(&group), Stream::open(group.servers[0].address, "?all=true"));
    let original_server = serve_original(&group, &mut original).await;
    let (mut alice, mut bob) = (group.client(0, "alice").await, group.client(1, "bob").await);
    // No portal shares events yet.
    wait_until("bob's server knows the portal at the other server", async || {
        send_number(&mut bob, 0).await;
        has_each_user(&all_events.messages(), &["bob"])
    })
    .await;
    let shared = Stream::open(group.servers[1].address, "");
    original.run(&json!({ "command": "portal", "all": true }));
    wait_until_original_portals(&group, 1).await;
    wait_until_pool_size(&group, 2).await;
    let mut carol = Socket::connect(original_server, "carol").await.expect("a client of the original's server");
    send_numbers(&mut [&mut alice, &mut bob, &mut carol], 20, async || {
        let portals = [shared.messages(), all_events.messages(), original_portal_messages(&mut original).remove(0)];
        portals.iter().all(|messages| has_each_user(messages, &USERS))
    })
    .await;
    wait_until("both portals of all events have received 60 messages", async || {
        receipts(&all_events.messages()).len() >= 60
            && receipts(&original_portal_messages(&mut original)[0]).len() >= 60
    })
    .await;
    assert_each_once("?all=true", &all_events.messages(), &USERS, 20);
    assert_each_once("reportAllEvents", &original_portal_messages(&mut original)[0], &USERS, 20);
    assert!(receipts(&shared.messages()).len() < 60, "a portal that shares events does not receive all of them");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn portals_of_killed_server_and_of_ended_streams_leave_the_pool() {
    let (mut group, _) = start_group();
    let (first, second) = (Stream::open(group.servers[0].address, ""), Stream::open(group.servers[0].address, ""));
    let at_killed = Stream::open(group.servers[1].address, "");
    wait_until_pool_size(&group, 3).await;
    drop(second);
    wait_until_pool_size(&group, 2).await;
    group.servers.pop().expect("a second server").process.kill();
    wait_until_pool_size(&group, 1).await;
    let mut alice = group.client(0, "alice").await;
    let before = first.messages().len();
    assert_eq!(before, 0);
    send_numbers(&mut [&mut alice], 10, async || has_each_user(&first.messages(), &["alice"])).await;
    wait_until("the last stream has received 10 messages", async || receipts(&first.messages()).len() >= 10).await;
    assert_each_once("the last stream", &first.messages(), &["alice"], 10);
    drop(at_killed);
    group.servers[0].terminate();
    wait_until_pool_size(&group, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopping_server_reports_last_message_and_disconnection_to_portal_of_another() {
    let (mut group, _) = start_group();
    let stream = Stream::open(group.servers[1].address, "?all=true");
    let (mut alice, bob) = (group.client(0, "alice").await, group.client(0, "bob").await);
    send_numbers(&mut [&mut alice], 0, async || has_each_user(&stream.messages(), &["alice"])).await;
    let stopping = group.servers.remove(0);
    stopping.terminate();
    alice.wait_readable().await.expect("a close frame arrives");
    send_number(&mut alice, 7).await;
    let event_count = |kind: &str, user: &str| {
        stream.events.lock().iter().filter(|event| event["type"] == kind && event["user"] == user).count()
    };
    let closing = tokio::spawn(async move { while alice.event().await.is_ok() {} });
    wait_until("both disconnections are reported", async || {
        event_count("disconnection", "alice") + event_count("disconnection", "bob") == 2
    })
    .await;
    assert!(stream.messages().contains(&("alice".to_owned(), json!(7))));
    stopping.process.wait(WAIT_TIMEOUT);
    assert_eq!((event_count("disconnection", "alice"), event_count("disconnection", "bob")), (1, 1));
    closing.await.expect("the client does not panic");
    drop(bob);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopping_server_with_400_clients_reports_each_disconnection_to_portal_of_another() {
    const CLIENTS: usize = 400;
    let (mut group, _) = start_group();
    let stream = Stream::open(group.servers[1].address, "?all=true");
    let event_count = |kind: &str| stream.events.lock().iter().filter(|event| event["type"] == kind).count();
    let address = format!("ws://{}/", group.servers[0].address);
    wait_until("the first server knows the portal at the second", async || {
        drop(Connection::connect(&address).await.expect("an unauthenticated connection"));
        event_count("connection") > 0
    })
    .await;
    wait_until("no further event arrives for 300 ms", async || {
        let (connected, disconnected) = (event_count("connection"), event_count("disconnection"));
        tokio::time::sleep(Duration::from_millis(300)).await;
        (event_count("connection"), event_count("disconnection")) == (connected, disconnected)
            && disconnected >= connected
    })
    .await;
    let (connected, disconnected) = (event_count("connection"), event_count("disconnection"));
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        clients.push(Connection::connect(&address).await.expect("an unauthenticated connection"));
    }
    wait_until("400 connections are reported", async || event_count("connection") == connected + CLIENTS).await;
    let stopping = group.servers.remove(0);
    stopping.terminate();
    let close = |mut client: Connection| async move {
        while !matches!(client.next().await, Ok(ConnectionEvent::Closed { .. }) | Err(_)) {}
    };
    futures_util::future::join_all(clients.into_iter().map(close)).await;
    assert!(stopping.process.wait(WAIT_TIMEOUT).success());
    wait_until("400 disconnections are reported", async || event_count("disconnection") == disconnected + CLIENTS)
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn local_portal_receives_events_after_an_original_portal_died_and_while_redis_is_down() {
    let (group, _) = start_group();
    let stream = Stream::open(group.servers[0].address, "");
    let mut original = Original::start(&group);
    original.run(&json!({ "command": "portal", "all": false }));
    wait_until_original_portals(&group, 1).await;
    let mut alice = group.client(0, "alice").await;
    send_numbers(&mut [&mut alice], 0, async || has_each_user(&original_portal_messages(&mut original)[0], &["alice"]))
        .await;
    // The killed portal does not remove itself from the pool.
    drop(original);
    wait_until_original_portals(&group, 0).await;
    wait_until_pool_size(&group, 2).await;
    // Once the server skips the dead portal, the stream receives every message of a row.
    let mut n = 100;
    wait_until("the stream receives six messages in a row", async || {
        n += 6;
        let sent: Vec<u64> = (n - 5..=n).collect();
        for number in &sent {
            send_number(&mut alice, *number).await;
        }
        let all_received = async || sent.iter().all(|n| stream.messages().iter().any(|(_, data)| data == n));
        let timeout = Duration::from_millis(500);
        tokio::time::timeout(timeout, wait_until("the stream receives six messages", all_received)).await.is_ok()
    })
    .await;
    group.redis().kill();
    for n in 1..=20 {
        send_number(&mut alice, n).await;
    }
    let while_down = || stream.messages().into_iter().filter(|(_, data)| data.as_u64() <= Some(20)).collect::<Vec<_>>();
    wait_until("the stream receives 20 messages while Redis is down", async || receipts(&while_down()).len() >= 20)
        .await;
    assert_each_once("the stream", &while_down(), &["alice"], 20);
    group.redis().restart();
    let other = Stream::open(group.servers[1].address, "");
    wait_until_pool_size(&group, 3).await;
    send_numbers(&mut [&mut alice], 0, async || has_each_user(&other.messages(), &["alice"])).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn original_dispatcher_on_resp_port_reaches_users_at_other_servers_and_sees_presence() {
    let (group, [first, second]) = start_group();
    let mut original = Original::start(&group);
    let original_server = original.serve();
    let (mut alice, mut bob) = (group.client(1, "alice").await, group.client(0, "bob").await);
    let carol = Socket::connect(original_server, "carol").await.expect("a client of the original's server");
    for port in [first, second] {
        wait_until("three connections are counted", async || {
            redis_cli(port, None, &["GET", "connected_clients_count_shop"]) == "3"
                && redis_cli(port, None, &["SCARD", "connected_clients_shop"]) == "3"
        })
        .await;
        let mut members: Vec<String> =
            redis_cli(port, None, &["SMEMBERS", "connected_clients_shop"]).lines().map(str::to_owned).collect();
        members.sort();
        assert_eq!(members, ["alice", "bob", "carol"]);
        for (user, online) in [("alice", "1"), ("bob", "1"), ("carol", "1"), ("dave", "0")] {
            assert_eq!(redis_cli(port, None, &["SISMEMBER", "connected_clients_shop", user]), online, "{user}");
        }
    }
    drop(carol);
    let via = format!("redis://127.0.0.1:{first}");
    let to = ["alice", "bob", "dave"];
    original.run(&json!({ "command": "dispatch", "sync": true, "numbers": [1, 2, 3], "to": to, "via": via }));
    for n in 1..=3 {
        assert_eq!((next_data(&mut alice).await, next_data(&mut bob).await), (json!(n), json!(n)));
    }
    let mut dave = group.client(1, "dave").await;
    for n in 1..=3 {
        assert_eq!(next_data(&mut dave).await, n, "messages for the offline dave are stored");
    }
    // No repeat arrives before the next message.
    group.dispatch(0, &super::message(4, &to)).await;
    for client in [&mut alice, &mut bob, &mut dave] {
        assert_eq!(next_data(client).await, 4);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn original_portal_on_resp_port_shares_events_with_stream_of_another_server() {
    const USERS: [&str; 2] = ["alice", "bob"];
    let (group, [first, second]) = start_group();
    let mut original = Original::start(&group);
    original.run(&json!({ "command": "portal", "all": false, "via": format!("redis://127.0.0.1:{first}") }));
    original.run(&json!({ "command": "portal", "all": true, "via": format!("redis://127.0.0.1:{first}") }));
    let stream = Stream::open(group.servers[1].address, "");
    wait_until_pool_size(&group, 3).await;
    wait_until("the other server's RESP port reports both portals of the original", async || {
        redis_cli(second, None, &["SCARD", POOL]) == "2"
    })
    .await;
    let (mut alice, mut bob) = (group.client(0, "alice").await, group.client(1, "bob").await);
    send_numbers(&mut [&mut alice, &mut bob], 30, async || {
        let originals = original_portal_messages(&mut original);
        has_each_user(&stream.messages(), &USERS) && originals.iter().all(|messages| has_each_user(messages, &USERS))
    })
    .await;
    let mut portals = || (original_portal_messages(&mut original), stream.messages());
    wait_until("the portals have received their shares", async || {
        let (originals, stream) = portals();
        receipts(&originals[1]).len() >= 60 && receipts(&originals[0]).len() + receipts(&stream).len() >= 38
    })
    .await;
    let (originals, stream) = portals();
    assert_each_once("reportAllEvents", &originals[1], &USERS, 30);
    let shared = receipts(&[originals[0].clone(), stream].concat());
    assert!(shared.values().all(|count| *count == 1), "each message is received once: {shared:?}");
    assert!(
        (38..=42).contains(&shared.len()),
        "two of three portals share 38 to 42 of 60 messages, not {}",
        shared.len()
    );
}
