//! Nothing that is answered is lost beside stock: not to who has just left, or was at a server that died, and not what stock's
//! Dispatchers say meanwhile.

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
    PATIENCE, Stage, message, next,
    original::{SETTINGS, Stock, redis},
    proxy::{Form, Proxy},
    redis_server::Redis,
    support::{http::request, server::Home, socket::Socket},
    unsynced, until,
};

/// Somebody who listens on stock's channel, as its servers do, and does nothing with it.
struct Subscriber {
    process: Child,
    said: Receiver<String>,
}

impl Subscriber {
    async fn start(stage: &Stage, arguments: &[&str]) -> Self {
        let mut process = Command::new("redis-cli")
            .args(["-p", &stage.redis().address().port().to_string()])
            .args(arguments)
            .args(["SUBSCRIBE", "ws_shop"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("redis-cli runs");
        let (says, said) = channel();
        let out = BufReader::new(process.stdout.take().expect("a pipe"));
        std::thread::spawn(move || out.lines().map_while(Result::ok).try_for_each(|line| says.send(line)));
        // Whether somebody listens is looked for once a second; a user whom only stock can have shows that it was seen.
        redis(stage, &["SADD", "connected_clients_shop", "ghost"]);
        for at in 0..stage.servers.len() {
            until("ours to know of stock", async || stage.dispatch(at, &message(0, &["ghost"])).await["online"] == 1)
                .await;
        }
        Self { process, said }
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        _ = self.process.kill();
        _ = self.process.wait();
    }
}

/// A server, and the link between it and its Redis.
async fn behind_a_link() -> (Stage, Arc<Proxy>) {
    let redis_server = Redis::start();
    let proxy = Proxy::start(redis_server.address()).await;
    let stage = Stage::on(&format!("redis: 'redis://{}', {SETTINGS}", proxy.address), 1);
    (Stage { redis: Some(redis_server), ..stage }, proxy)
}

async fn seen(stage: &Stage, user: &str) {
    until("stock to see the user", async || redis(stage, &["SISMEMBER", "connected_clients_shop", user]) == "1").await;
}

/// What stock reads: so many connections, and these users.
async fn stock_sees(stage: &Stage, count: &str, users: &[&str]) {
    until("what stock reads to be right", async || {
        let members = redis(stage, &["SMEMBERS", "connected_clients_shop"]);
        let members: HashSet<&str> = members.lines().filter(|line| !line.is_empty()).collect();
        redis(stage, &["GET", "connected_clients_count_shop"]) == count && members == users.iter().copied().collect()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_dispatched_right_behind_a_close_waits_for_its_user() {
    let stage = Stage::with(2, SETTINGS);
    let _subscriber = Subscriber::start(&stage, &[]).await;
    let mut lost = Vec::new();
    for n in 1..=20 {
        let user = format!("user-{n}");
        let socket = stage.client(0, &user).await;
        seen(&stage, &user).await;
        drop(socket);
        if n % 2 == 0 {
            // It may have been heard of, and not written down.
            tokio::time::sleep(Duration::from_millis(n / 4)).await;
        }
        stage.dispatch(n as usize / 10 % 2, &message(n, &[&user])).await;
        let mut socket = stage.client(1, &user).await;
        let came = tokio::time::timeout(Duration::from_secs(3), next(&mut socket)).await;
        if came != Ok(json!(n)) {
            lost.push(n);
        }
    }
    assert!(lost.is_empty(), "answered and lost: {lost:?}");
    stock_sees(&stage, "0", &["ghost"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_dispatched_while_a_dead_server_still_counts_waits_for_its_users() {
    let mut stage = Stage::with(2, SETTINGS);
    let _subscriber = Subscriber::start(&stage, &[]).await;
    redis(&stage, &["SREM", "connected_clients_shop", "ghost"]);
    let (bob, carol) = (stage.client(1, "bob").await, stage.client(0, "carol").await);
    seen(&stage, "bob").await;
    stage.servers.pop().expect("the second").process.kill();
    drop(bob);
    let mut n = 0;
    // All through the time in which he is taken to be there, and somewhat longer.
    let mut behind = 0;
    while behind < 10 {
        n += 1;
        stage.dispatch(0, &message(n, &["bob"])).await;
        let there = redis(&stage, &["SISMEMBER", "connected_clients_shop", "bob"]) == "1";
        behind += u64::from(!there);
        tokio::time::sleep(Duration::from_millis(if there { 40 } else { 5 })).await;
    }
    let mut bob = stage.client(0, "bob").await;
    for expected in 1..=n {
        assert_eq!(next(&mut bob).await, expected, "of {n}");
    }
    stock_sees(&stage, "2", &["bob", "carol"]).await;
    drop((bob, carol));
    stock_sees(&stage, "0", &[]).await;
}

async fn tablet(stage: &Stage) -> Socket {
    let address = stage.servers.last().expect("a server").address;
    Socket::connect_as(address, "eve", None, Some("tablet")).await.expect("a client")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_stock_dispatcher_says_while_its_user_goes_from_server_to_server_and_one_dies_is_kept_once_and_in_order()
{
    const ALL: u64 = 250;
    let mut stage = Stage::with(3, SETTINGS);
    let mut stock = Stock::start(&stage);
    drop(tablet(&stage).await);
    let mut eve = stage.client(0, "eve").await;
    seen(&stage, "eve").await;
    let saying = std::thread::spawn(move || {
        let numbers: Vec<u64> = (1..=ALL).collect();
        stock.tell(&json!({ "what": "dispatch", "sync": true, "numbers": numbers, "to": ["eve"] }));
    });
    let mut got = Vec::new();
    let mut read = async |eve: &mut Socket, last: u64| {
        loop {
            let n = next(eve).await.as_u64().expect("a number");
            got.push(n);
            if n >= last {
                return;
            }
        }
    };
    read(&mut eve, 60).await;
    // The one that came first, which is not to speak for the others.
    stage.servers.remove(0).process.kill();
    stage.homes.remove(0);
    drop(eve);
    tokio::time::sleep(Duration::from_millis(300)).await;
    let mut eve = stage.client(0, "eve").await;
    read(&mut eve, 120).await;
    drop(eve);
    let mut eve = stage.client(1, "eve").await;
    read(&mut eve, 180).await;
    drop(eve);
    tokio::time::sleep(Duration::from_millis(100)).await;
    let mut eve = stage.client(0, "eve").await;
    read(&mut eve, ALL).await;
    saying.join().expect("stock says all of it");
    let (mut seen, mut first) = (HashSet::new(), Vec::new());
    // What was not confirmed when a connection ended comes again, with the same place in the log.
    first.extend(got.iter().copied().filter(|n| seen.insert(*n)));
    assert_eq!(first, (1..=ALL).collect::<Vec<_>>(), "{got:?}");
    // Another device of hers was away all the time, and gets everything that was kept.
    let mut tablet = tablet(&stage).await;
    for n in 1..=ALL {
        assert_eq!(next(&mut tablet).await, n, "kept once and in order");
    }
    stage.dispatch(1, &message(1000, &["eve"])).await;
    assert_eq!(next(&mut tablet).await, 1000, "and nothing more");
    drop(tablet);
    stock_sees(&stage, "1", &["eve"]).await;
    drop(eve);
    stock_sees(&stage, "0", &[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_stock_leaves_for_who_has_just_come_does_not_wait_until_he_comes_again() {
    let stage = Stage::with(1, SETTINGS);
    let mut dora = stage.client(0, "dora").await;
    // Stock saw her away, and is late to write it down.
    let left = json!([{ "op": 0, "d": 1, "t": "N" }, { "op": 0, "d": 2, "t": "N" }]).to_string();
    redis(&stage, &["HSET", "undelivered_messages_shop", "dora", &left]);
    assert_eq!((next(&mut dora).await, next(&mut dora).await), (json!(1), json!(2)));
    assert_eq!(redis(&stage, &["HLEN", "undelivered_messages_shop"]), "0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dispatch_with_an_id_that_failed_because_stock_was_not_told_tells_stock_when_it_is_said_again() {
    let stage = Stage::with(1, SETTINGS);
    redis(&stage, &["ACL", "SETUSER", "other", "on", "nopass", "+@all", "~*", "&*"]);
    let subscriber = Subscriber::start(&stage, &["--user", "other", "--pass", "any"]).await;
    let mut bob = stage.client(0, "bob").await;
    seen(&stage, "bob").await;
    // Everything goes but to speak on stock's channel.
    redis(&stage, &["ACL", "SETUSER", "default", "resetchannels", "&mesa:*"]);
    let dispatch = json!({
        "message": { "op": 0, "d": "once", "t": "N" }, "recipients": ["bob", "ghost"], "id": "one",
    });
    let (status, answer) = stage.ask(0, "POST", "/v1/dispatch", &dispatch).await;
    assert_eq!(status, 503, "{answer}");
    redis(&stage, &["ACL", "SETUSER", "default", "allchannels"]);
    let told = |patience: Duration| {
        let end = std::time::Instant::now() + patience;
        loop {
            match subscriber.said.recv_timeout(end.saturating_duration_since(std::time::Instant::now())) {
                Ok(line) if line.contains("\"once\"") => return true,
                Ok(_) => {}
                Err(_) => return false,
            }
        }
    };
    stage.dispatch(0, &dispatch).await;
    assert!(told(PATIENCE), "stock has ghost, and nobody else has");
    assert_eq!(next(&mut bob).await, "once");
    let answer = stage.dispatch(0, &dispatch).await;
    assert_eq!(answer["duplicate"], true, "{answer}");
    stage.dispatch(0, &message(2, &["bob"])).await;
    assert_eq!(next(&mut bob).await, 2, "and it came once");
    assert!(!told(Duration::from_millis(200)), "what was answered is not said again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_dies_with_very_many_users_is_taken_away_whole() {
    let stage = Stage::with(1, SETTINGS);
    let alice = stage.client(0, "user-7").await;
    seen(&stage, "user-7").await;
    let fill = "for n = 1, 20000 do
          local user = 'user-' .. n
          redis.call('HSET', 'mesa:{here}:at:1-dead_shop', user, 1)
          redis.call('ZADD', 'mesa:{here}:online_shop', 0, user)
          redis.call('ZADD', 'mesa:{here}:ours_shop', 0, user)
          redis.call('SADD', 'connected_clients_shop', user)
        end
        redis.call('HSET', 'mesa:{here}:counts_shop', '1-dead', 20000)
        redis.call('INCRBY', 'connected_clients_count_shop', 20000)
        redis.call('ZADD', 'mesa:{here}:nodes_shop', 1, '1-dead')";
    redis(&stage, &["EVAL", fill, "0"]);
    stock_sees(&stage, "1", &["user-7"]).await;
    assert_eq!(redis(&stage, &["ZCARD", "mesa:{here}:online_shop"]), "1");
    assert_eq!(redis(&stage, &["KEYS", "mesa:{here}:at:1-dead*"]), "");
    drop(alice);
    stock_sees(&stage, "0", &[]).await;
}

/// Says something on stock's channel, as its Dispatchers do.
fn publish(stage: &Stage, n: u64, to: &[&str]) {
    let text = json!({ "message": { "op": 0, "d": n, "t": "N" }, "recipients": to }).to_string();
    redis(stage, &["PUBLISH", "ws_shop", &text]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_stock_says_while_redis_takes_nothing_is_kept_when_it_does_again() {
    let stage = Stage::with(1, SETTINGS);
    let (mut alice, bob) = (stage.client(0, "alice").await, stage.client(0, "bob").await);
    seen(&stage, "alice").await;
    seen(&stage, "bob").await;
    drop(bob);
    redis(&stage, &["CONFIG", "SET", "min-replicas-to-write", "1"]);
    let (status, _) = stage.ask(0, "POST", "/v1/dispatch", &message(0, &["alice"])).await;
    assert_eq!(status, 503);
    publish(&stage, 1, &["alice", "bob"]);
    publish(&stage, 2, &["alice", "bob"]);
    // It is tried, and refused.
    tokio::time::sleep(Duration::from_millis(300)).await;
    redis(&stage, &["CONFIG", "SET", "min-replicas-to-write", "0"]);
    let mut n = 2;
    crate::until_taken(&stage, 0, &mut n, &["alice"]).await;
    let mut bob = stage.client(0, "bob").await;
    assert_eq!((next(&mut bob).await, next(&mut bob).await), (json!(1), json!(2)));
    let mut came = Vec::new();
    while came.len() < 3 {
        came.push(next(&mut alice).await.as_u64().expect("a number"));
    }
    came.sort_unstable();
    assert_eq!(came, [1, 2, n], "each once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_stock_has_left_comes_in_its_order_though_not_all_of_it_has_room_at_once() {
    let redis_server = Redis::start();
    let mut home = Home::with(&format!("redis: '{}', {SETTINGS}", redis_server.url()));
    home.set_variable("MESA_SYNC_MAX_BYTES", "65536");
    let servers = vec![home.start()];
    let stage = Stage { redis: Some(redis_server), homes: vec![home], servers };
    let first = json!({ "op": 0, "d": [1, "x".repeat(32_000)], "t": "N" });
    stage.dispatch(0, &json!({ "message": first, "recipients": ["bob"] })).await;
    // The second has no room before the first is confirmed; the third is as large as a message may be, and never has any.
    let leave = r#"local function message(n, bytes)
          return '{"op":0,"d":[' .. n .. ',"' .. string.rep('x', bytes) .. '"],"t":"N"}'
        end
        local left = {message(2, 40000), message(3, 65529), message(4, 10), message(5, 50000), message(6, 0)}
        redis.call('HSET', KEYS[1], 'bob', '[' .. table.concat(left, ',') .. ']')"#;
    redis(&stage, &["EVAL", leave, "1", "undelivered_messages_shop"]);
    let mut bob = stage.client(0, "bob").await;
    for n in [1, 2, 4, 5, 6] {
        assert_eq!(next(&mut bob).await[0], n);
    }
    until("all to be taken", async || redis(&stage, &["EXISTS", "undelivered_messages_shop"]) == "0").await;
    let aside = redis(&stage, &["GET", "mesa:{undelivered_messages_shop}:aside:bob"]);
    assert!(aside.starts_with("{\"op\":0,\"d\":[3,"), "{aside}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_stock_leaves_for_who_has_just_come_is_taken_though_the_line_is_cut_just_then() {
    let (stage, proxy) = behind_a_link().await;
    let mut dora = stage.client(0, "dora").await;
    seen(&stage, "dora").await;
    let cut = tokio::spawn(async move { proxy.disturb(Form::Cut, Duration::from_secs(3)).await });
    let left = json!([{ "op": 0, "d": 1, "t": "N" }, { "op": 0, "d": 2, "t": "N" }]).to_string();
    redis(&stage, &["HSET", "undelivered_messages_shop", "dora", &left]);
    cut.await.expect("the line is whole again");
    assert_eq!((next(&mut dora).await, next(&mut dora).await), (json!(1), json!(2)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_stock_leaves_for_who_has_just_come_is_taken_though_it_was_never_answered_that_he_has() {
    let (stage, proxy) = behind_a_link().await;
    // So it is only answered who has come.
    proxy.lose("*1\r\n$4\r\ndora\r\n");
    let mut dora = loop {
        // What else is asked just then is lost too, and may be what she waits for.
        if let Ok(dora) = Socket::connect(stage.servers[0].address, "dora").await {
            break dora;
        }
    };
    until("the answer to be lost", async || proxy.has_lost()).await;
    seen(&stage, "dora").await;
    let left = json!([{ "op": 0, "d": 1, "t": "N" }]).to_string();
    redis(&stage, &["HSET", "undelivered_messages_shop", "dora", &left]);
    assert_eq!(next(&mut dora).await, json!(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_kept_is_heard_at_other_servers_in_the_order_in_which_it_was_said_whoever_is_excluded() {
    const ALL: u64 = 60;
    let stage = Stage::with(2, SETTINGS);
    let subscriber = Subscriber::start(&stage, &[]).await;
    let mut alice = stage.client(1, "alice").await;
    // Who everybody but somebody is has to be asked first.
    let line = |n: u64| unsynced(n, &["*"], if n % 2 == 1 { &["ghost"] } else { &[] }).to_string() + "\n";
    let body: String = (1..=ALL).map(line).collect();
    let request = request("POST", "/v1/dispatch", &body).replace("application/json", "application/x-ndjson");
    let mut backend = TcpStream::connect(stage.servers[0].address).expect("a connection");
    backend.write_all(request.as_bytes()).expect("it says");
    let mut heard = Vec::new();
    while heard.len() < ALL as usize {
        heard.push(next(&mut alice).await.as_u64().expect("a number"));
    }
    assert_eq!(heard, (1..=ALL).collect::<Vec<_>>(), "at another of ours");
    let mut heard = Vec::new();
    while heard.len() < ALL as usize {
        let line = subscriber.said.recv_timeout(PATIENCE).expect("it is said");
        if line.contains("\"N\"") && !line.contains("\"ghost\"],") {
            let said: serde_json::Value = serde_json::from_str(&line).expect("JSON");
            heard.extend(said["message"]["d"].as_u64().filter(|n| *n > 0));
        }
    }
    assert_eq!(heard, (1..=ALL).collect::<Vec<_>>(), "by stock");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_stock_says_while_a_server_makes_its_line_for_requests_anew_is_heard_once_and_in_order() {
    const ROUNDS: u64 = 4;
    const SAID: u64 = 100;
    let stage = Stage::with(1, SETTINGS);
    let mut alice = stage.client(0, "alice").await;
    seen(&stage, "alice").await;
    let (mut stock, mut n) = (TcpStream::connect(stage.redis().address()).expect("a connection"), 0);
    let mut answers = stock.try_clone().expect("its other half");
    std::thread::spawn(move || std::io::copy(&mut answers, &mut std::io::sink()));
    let mut says = |words: &[&str]| {
        let head = format!("*{}\r\n", words.len());
        let text = words.iter().fold(head, |text, word| format!("{text}${}\r\n{word}\r\n", word.len()));
        stock.write_all(text.as_bytes()).expect("it says");
    };
    for _ in 0..ROUNDS {
        for at in 0..SAID {
            if at == 10 {
                // All but this one and those who listen.
                says(&["CLIENT", "KILL", "TYPE", "normal"]);
            }
            n += 1;
            let text = json!({ "message": { "op": 0, "d": n, "t": "N" }, "recipients": ["alice"] }).to_string();
            says(&["PUBLISH", "ws_shop", &text]);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    let mut came = Vec::new();
    while came.last() != Some(&n) {
        let next = tokio::time::timeout(PATIENCE, next(&mut alice)).await;
        came.push(next.unwrap_or_else(|_| panic!("{} of {n} came: {came:?}", came.len())).as_u64().expect("a number"));
    }
    assert_eq!(came, (1..=n).collect::<Vec<_>>());
}
