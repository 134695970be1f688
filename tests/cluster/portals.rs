//! Portals of several servers, beside stock's: each event is told to one of all of them, and to each that hears everything.

use std::{
    collections::HashMap,
    io::{BufRead, BufReader, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    process::Command,
    sync::Arc,
    time::Duration,
};

use mesa::client::{Connection, ConnectionEvent};
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::{
    PATIENCE, Stage, next,
    support::{server::KEY, socket::Socket},
    until,
};
use crate::original::{SETTINGS, Stock, redis};

const POOL: &str = "available_portals_pool_shop";

/// Who said what: `[user, data]`, as our streams and stock's portals have it.
type Heard = (String, Value);

/// `GET /v1/events`, read on a thread of its own.
struct Stream {
    socket: TcpStream,
    events: Arc<Mutex<Vec<Value>>>,
}

impl Stream {
    fn open(address: SocketAddr, query: &str) -> Self {
        let mut socket = TcpStream::connect(address).expect("a connection");
        let head = format!("GET /v1/events{query} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n\r\n");
        socket.write_all(head.as_bytes()).expect("it asks");
        let events = Arc::new(Mutex::new(Vec::new()));
        let (mut lines, to) = (BufReader::new(socket.try_clone().expect("a handle")).lines(), events.clone());
        let status = lines.next().expect("an answer").expect("a line");
        assert!(status.contains(" 200 "), "{status}");
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if let Some(data) = line.strip_prefix("data: ") {
                    to.lock().push(serde_json::from_str(data).expect("JSON"));
                }
            }
        });
        Self { socket, events }
    }

    /// What clients said to it.
    fn heard(&self) -> Vec<Heard> {
        let events = self.events.lock();
        let said = events.iter().filter(|event| event["type"] == "message");
        said.map(|event| (event["user"].as_str().unwrap_or_default().to_owned(), event["message"]["d"].clone()))
            .collect()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        _ = self.socket.shutdown(Shutdown::Both);
    }
}

/// What clients said to each portal of a stock process.
fn heard_by(stock: &mut Stock) -> Vec<Vec<Heard>> {
    let all: Vec<Vec<(Option<String>, Value)>> =
        serde_json::from_value(stock.ask(&json!({ "what": "heard" }))).unwrap();
    let said = |one: Vec<(Option<String>, Value)>| {
        let said = one.into_iter().filter(|(_, data)| data.is_number());
        said.map(|(user, data)| (user.unwrap_or_default(), data)).collect()
    };
    all.into_iter().map(said).collect()
}

/// Two servers that speak the Redis protocol too, and where.
fn stage() -> (Stage, [u16; 2]) {
    let stage = Stage::with(2, &format!("{SETTINGS} portal: {{ enabled: true }}, redisProtocol: {{ port: 0 }},"));
    let port = |at: usize| {
        let text = std::fs::read(stage.homes[at].path("ready")).expect("what it said when it was ready");
        let ready: Value = serde_json::from_slice(&text).expect("JSON");
        let address: SocketAddr = ready["redisProtocol"].as_str().expect("where").parse().expect("an address");
        address.port()
    };
    let ports = [port(0), port(1)];
    (stage, ports)
}

async fn pool_of(stage: &Stage, count: usize) {
    until(&format!("{count} in the pool"), async || redis(stage, &["SCARD", POOL]) == count.to_string()).await;
}

/// A stock server that hears of portals: one that comes before that it may never know of.
async fn serve(stage: &Stage, stock: &mut Stock) -> SocketAddr {
    let address = stock.serve();
    // Both of ours do too.
    until("the stock server to hear of portals", async || {
        redis(stage, &["PUBSUB", "NUMSUB", POOL]).lines().last() == Some("3")
    })
    .await;
    address
}

/// Stock's portals on the Redis listen, so many.
async fn listening(stage: &Stage, count: usize) {
    until("stock's portals to listen", async || {
        redis(stage, &["PUBSUB", "NUMSUB", "portal_shop"]).lines().last() == Some(&count.to_string())
    })
    .await;
}

async fn say(client: &mut Socket, n: u64) {
    client.say(&json!({ "op": 0, "d": n, "t": "N" })).await.expect("it says");
}

/// Each client says 0, and again, until that is enough; then the numbers up to `count`.
async fn say_all(clients: &mut [&mut Socket], count: u64, mut enough: impl AsyncFnMut() -> bool) {
    until("all to be in the turns", async || {
        for client in &mut *clients {
            say(client, 0).await;
        }
        enough().await
    })
    .await;
    for n in 1..=count {
        for client in &mut *clients {
            say(client, n).await;
        }
    }
}

/// How often each was heard, but what was said before all was ready.
fn times(heard: &[Heard]) -> HashMap<Heard, usize> {
    let mut times = HashMap::new();
    heard.iter().filter(|(_, data)| *data != 0).for_each(|one| *times.entry(one.clone()).or_default() += 1);
    times
}

fn each_once(who: &str, heard: &[Heard], users: &[&str], count: u64) {
    let times = times(heard);
    assert!(times.values().all(|times| *times == 1), "{who}: {times:?}");
    assert_eq!(times.len() as u64, count * users.len() as u64, "{who}: {times:?}");
}

/// Somebody of each of these has been heard.
fn of_each(heard: &[Heard], users: &[&str]) -> bool {
    users.iter().all(|user| heard.iter().any(|(who, _)| who == user))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_event_of_any_server_goes_to_one_of_stocks_portals_and_ours_in_turn() {
    const USERS: [&str; 3] = ["alice", "bob", "carol"];
    let (stage, _) = stage();
    let mut stock = Stock::start(&stage);
    let theirs = serve(&stage, &mut stock).await;
    stock.tell(&json!({ "what": "portal", "all": false }));
    stock.tell(&json!({ "what": "portal", "all": false }));
    listening(&stage, 2).await;
    let stream = Stream::open(stage.servers[1].address, "");
    pool_of(&stage, 3).await;
    let (mut alice, mut bob) = (stage.client(0, "alice").await, stage.client(1, "bob").await);
    let mut carol = Socket::connect(theirs, "carol").await.expect("a client of stock");
    say_all(&mut [&mut alice, &mut bob, &mut carol], 30, async || {
        let mut all = heard_by(&mut stock);
        all.push(stream.heard());
        let missing: Vec<Vec<&&str>> =
            all.iter().map(|heard| USERS.iter().filter(|user| !of_each(heard, &[**user])).collect()).collect();
        let enough = missing.iter().all(Vec::is_empty);
        if !enough {
            println!("of stock's two and of ours each has yet to hear {missing:?}");
        }
        enough
    })
    .await;
    let mut all = || {
        let mut all = heard_by(&mut stock);
        all.push(stream.heard());
        all
    };
    until("all to be heard", async || all().iter().map(|heard| times(heard).len()).sum::<usize>() >= 90).await;
    let all = all();
    each_once("all together", &all.concat(), &USERS, 30);
    for heard in &all {
        for user in USERS {
            let count = times(heard).keys().filter(|(who, _)| who == user).count();
            assert!((8..=12).contains(&count), "of thirty that {user} said one has heard {count}");
        }
    }
    // Streams know connections by name, at all servers; stock's have none.
    let events = stream.events.lock();
    let names: HashMap<&str, &str> =
        events.iter().filter_map(|event| Some((event["user"].as_str()?, event["connection"].as_str()?))).collect();
    assert!(names["carol"].is_empty() && !names["alice"].is_empty() && names["alice"] != names["bob"], "{names:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_told_everything_is_told_everything_of_every_server_once() {
    const USERS: [&str; 3] = ["alice", "bob", "carol"];
    let (stage, _) = stage();
    let (mut stock, everything) = (Stock::start(&stage), Stream::open(stage.servers[0].address, "?all=true"));
    let theirs = serve(&stage, &mut stock).await;
    let (mut alice, mut bob) = (stage.client(0, "alice").await, stage.client(1, "bob").await);
    // Nobody takes turns yet.
    until("the other server to know of who listens", async || {
        say(&mut bob, 0).await;
        of_each(&everything.heard(), &["bob"])
    })
    .await;
    let in_turn = Stream::open(stage.servers[1].address, "");
    stock.tell(&json!({ "what": "portal", "all": true }));
    listening(&stage, 1).await;
    pool_of(&stage, 2).await;
    let mut carol = Socket::connect(theirs, "carol").await.expect("a client of stock");
    say_all(&mut [&mut alice, &mut bob, &mut carol], 20, async || {
        let all = [in_turn.heard(), everything.heard(), heard_by(&mut stock).remove(0)];
        all.iter().all(|heard| of_each(heard, &USERS))
    })
    .await;
    until("all to be heard", async || {
        times(&everything.heard()).len() >= 60 && times(&heard_by(&mut stock)[0]).len() >= 60
    })
    .await;
    each_once("?all=true", &everything.heard(), &USERS, 20);
    each_once("reportAllEvents", &heard_by(&mut stock)[0], &USERS, 20);
    assert!(times(&in_turn.heard()).len() < 60);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_and_a_stream_that_ends_leave_no_portal_in_the_pool() {
    let (mut stage, _) = stage();
    let (one, two) = (Stream::open(stage.servers[0].address, ""), Stream::open(stage.servers[0].address, ""));
    let lost = Stream::open(stage.servers[1].address, "");
    pool_of(&stage, 3).await;
    drop(two);
    pool_of(&stage, 2).await;
    stage.servers.pop().expect("the second").process.kill();
    pool_of(&stage, 1).await;
    let mut alice = stage.client(0, "alice").await;
    let before = one.heard().len();
    assert_eq!(before, 0);
    say_all(&mut [&mut alice], 10, async || of_each(&one.heard(), &["alice"])).await;
    until("all to be heard", async || times(&one.heard()).len() >= 10).await;
    each_once("the one that is left", &one.heard(), &["alice"], 10);
    drop(lost);
    stage.servers[0].terminate();
    pool_of(&stage, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_server_that_stops_the_last_word_of_every_client_is_told_at_another() {
    let (mut stage, _) = stage();
    let stream = Stream::open(stage.servers[1].address, "?all=true");
    let (mut alice, bob) = (stage.client(0, "alice").await, stage.client(0, "bob").await);
    say_all(&mut [&mut alice], 0, async || of_each(&stream.heard(), &["alice"])).await;
    let stopping = stage.servers.remove(0);
    stopping.terminate();
    alice.readable().await.expect("it is told to go");
    say(&mut alice, 7).await;
    let told = |kind: &str, user: &str| {
        stream.events.lock().iter().filter(|event| event["type"] == kind && event["user"] == user).count()
    };
    let leaving = tokio::spawn(async move { while alice.event().await.is_ok() {} });
    until("both to have gone", async || told("disconnection", "alice") + told("disconnection", "bob") == 2).await;
    assert!(stream.heard().contains(&("alice".to_owned(), json!(7))));
    stopping.process.wait(PATIENCE);
    assert_eq!((told("disconnection", "alice"), told("disconnection", "bob")), (1, 1));
    leaving.await.expect("it goes");
    drop(bob);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_server_that_stops_under_a_crowd_the_going_of_each_is_told_at_another() {
    const CROWD: usize = 400;
    let (mut stage, _) = stage();
    let stream = Stream::open(stage.servers[1].address, "?all=true");
    let told = |kind: &str| stream.events.lock().iter().filter(|event| event["type"] == kind).count();
    let address = format!("ws://{}/", stage.servers[0].address);
    until("the one server to know that somebody listens at the other", async || {
        drop(Connection::connect(&address).await.expect("it lets in whoever comes"));
        told("connection") > 0
    })
    .await;
    until("those to be gone", async || {
        let (came, went) = (told("connection"), told("disconnection"));
        tokio::time::sleep(Duration::from_millis(300)).await;
        (told("connection"), told("disconnection")) == (came, went) && went >= came
    })
    .await;
    let (came, went) = (told("connection"), told("disconnection"));
    let mut crowd = Vec::new();
    for _ in 0..CROWD {
        crowd.push(Connection::connect(&address).await.expect("it lets in whoever comes"));
    }
    until("all to have come", async || told("connection") == came + CROWD).await;
    let stopping = stage.servers.remove(0);
    stopping.terminate();
    let leave = |mut one: Connection| async move {
        while !matches!(one.next().await, Ok(ConnectionEvent::Closed { .. }) | Err(_)) {}
    };
    futures_util::future::join_all(crowd.into_iter().map(leave)).await;
    assert!(stopping.process.wait(PATIENCE).success());
    until("all to have gone", async || told("disconnection") == went + CROWD).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn portals_here_are_told_while_redis_is_away_and_those_of_stock_that_died_are_passed_over() {
    let (stage, _) = stage();
    let stream = Stream::open(stage.servers[0].address, "");
    let mut stock = Stock::start(&stage);
    stock.tell(&json!({ "what": "portal", "all": false }));
    listening(&stage, 1).await;
    let mut alice = stage.client(0, "alice").await;
    say_all(&mut [&mut alice], 0, async || of_each(&heard_by(&mut stock)[0], &["alice"])).await;
    // As a crash does: it takes itself out of no pool.
    drop(stock);
    listening(&stage, 0).await;
    pool_of(&stage, 2).await;
    // Two in a row: there is nobody else in the turns any more.
    let mut n = 100;
    until("the dead one to be passed over", async || {
        n += 6;
        let sent: Vec<u64> = (n - 5..=n).collect();
        for one in &sent {
            say(&mut alice, *one).await;
        }
        let all_came = async || sent.iter().all(|one| stream.heard().iter().any(|(_, data)| data == one));
        let waited = std::time::Duration::from_millis(500);
        tokio::time::timeout(waited, until("six", all_came)).await.is_ok()
    })
    .await;
    stage.redis().kill();
    for one in 1..=20 {
        say(&mut alice, one).await;
    }
    let small = || stream.heard().into_iter().filter(|(_, data)| data.as_u64() <= Some(20)).collect::<Vec<_>>();
    until("all to be heard while Redis is away", async || times(&small()).len() >= 20).await;
    each_once("the stream", &small(), &["alice"], 20);
    stage.redis().revive();
    let other = Stream::open(stage.servers[1].address, "");
    pool_of(&stage, 3).await;
    say_all(&mut [&mut alice], 0, async || of_each(&other.heard(), &["alice"])).await;
}

/// Asks the port of a server that speaks the Redis protocol.
fn wire(port: u16, words: &[&str]) -> String {
    let output =
        Command::new("redis-cli").args(["-p", &port.to_string()]).args(words).output().expect("redis-cli runs");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_the_wire_port_stock_reaches_users_at_other_servers_and_sees_who_is_there() {
    let (stage, [first, second]) = stage();
    let mut stock = Stock::start(&stage);
    let theirs = stock.serve();
    let (mut alice, mut bob) = (stage.client(1, "alice").await, stage.client(0, "bob").await);
    let carol = Socket::connect(theirs, "carol").await.expect("a client of stock");
    for port in [first, second] {
        until("three to be counted", async || {
            wire(port, &["GET", "connected_clients_count_shop"]) == "3"
                && wire(port, &["SCARD", "connected_clients_shop"]) == "3"
        })
        .await;
        let mut members: Vec<String> =
            wire(port, &["SMEMBERS", "connected_clients_shop"]).lines().map(str::to_owned).collect();
        members.sort();
        assert_eq!(members, ["alice", "bob", "carol"]);
        for (user, there) in [("alice", "1"), ("bob", "1"), ("carol", "1"), ("dave", "0")] {
            assert_eq!(wire(port, &["SISMEMBER", "connected_clients_shop", user]), there, "{user}");
        }
    }
    drop(carol);
    let via = format!("redis://127.0.0.1:{first}");
    let to = ["alice", "bob", "dave"];
    stock.tell(&json!({ "what": "dispatch", "sync": true, "numbers": [1, 2, 3], "to": to, "via": via }));
    for n in 1..=3 {
        assert_eq!((next(&mut alice).await, next(&mut bob).await), (json!(n), json!(n)));
    }
    let mut dave = stage.client(1, "dave").await;
    for n in 1..=3 {
        assert_eq!(next(&mut dave).await, n, "kept while he was away");
    }
    // Behind them nothing comes twice.
    stage.dispatch(0, &super::message(4, &to)).await;
    assert_eq!((next(&mut alice).await, next(&mut bob).await, next(&mut dave).await), (json!(4), json!(4), json!(4)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stock_portal_on_the_wire_port_shares_with_a_stream_of_another_server() {
    const USERS: [&str; 2] = ["alice", "bob"];
    let (stage, [first, second]) = stage();
    let mut stock = Stock::start(&stage);
    stock.tell(&json!({ "what": "portal", "all": false, "via": format!("redis://127.0.0.1:{first}") }));
    stock.tell(&json!({ "what": "portal", "all": true, "via": format!("redis://127.0.0.1:{first}") }));
    let stream = Stream::open(stage.servers[1].address, "");
    pool_of(&stage, 3).await;
    until("the other port to know", async || wire(second, &["SCARD", POOL]) == "2").await;
    let (mut alice, mut bob) = (stage.client(0, "alice").await, stage.client(1, "bob").await);
    say_all(&mut [&mut alice, &mut bob], 30, async || {
        let stocks = heard_by(&mut stock);
        of_each(&stream.heard(), &USERS) && stocks.iter().all(|heard| of_each(heard, &USERS))
    })
    .await;
    let mut all = || (heard_by(&mut stock), stream.heard());
    until("all to be heard", async || {
        let (stocks, stream) = all();
        times(&stocks[1]).len() >= 60 && times(&stocks[0]).len() + times(&stream).len() >= 38
    })
    .await;
    let (stocks, stream) = all();
    each_once("reportAllEvents", &stocks[1], &USERS, 30);
    let shared = times(&[stocks[0].clone(), stream].concat());
    assert!(shared.values().all(|times| *times == 1), "{shared:?}");
    assert!((38..=42).contains(&shared.len()), "two of three turns are theirs: {}", shared.len());
}
