//! Beside stock: its servers and Dispatchers (`@cryb/mesa` 1.5.8), as real processes on the same Redis and namespace.

use std::{
    io::{BufRead, BufReader, Write},
    net::SocketAddr,
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use serde_json::{Value, json};

use crate::{Stage, closed, message, next, redis_server::free_port, support::socket::Socket, unsynced, until};

pub const SETTINGS: &str = "namespace: 'shop',";

/// A stock process. Dropping it ends it.
pub struct Stock {
    process: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Stock {
    pub fn start(stage: &Stage) -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let packages = root.join("tests/node_clients/node_modules/stock158");
        assert!(
            packages.exists(),
            "stock is not installed, and nothing is skipped: run `npm ci` in tests/node_clients"
        );
        let arguments = json!({ "redis": stage.redis().url(), "namespace": "shop" }).to_string();
        let mut process = Command::new("node")
            .arg(root.join("tests/cluster/original.js"))
            .arg(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("node starts");
        let (to, from) = (process.stdin.take().expect("a pipe"), process.stdout.take().expect("a pipe"));
        Self { process, to, from: BufReader::new(from) }
    }

    pub fn tell(&mut self, what: &Value) {
        assert_eq!(self.ask(what), "done", "{what}");
    }

    pub fn ask(&mut self, what: &Value) -> Value {
        writeln!(self.to, "{what}").expect("it listens");
        let mut answer = String::new();
        self.from.read_line(&mut answer).expect("it answers");
        serde_json::from_str(&answer).expect("JSON")
    }

    pub fn serve(&mut self) -> SocketAddr {
        let port = free_port();
        self.tell(&json!({ "what": "serve", "port": port }));
        ([127, 0, 0, 1], port).into()
    }
}

impl Drop for Stock {
    fn drop(&mut self) {
        _ = self.process.kill();
        _ = self.process.wait();
    }
}

/// Asks the Redis itself.
pub fn redis(stage: &Stage, words: &[&str]) -> String {
    let port = stage.redis().address().port().to_string();
    let output = Command::new("redis-cli").args(["-p", &port]).args(words).output().expect("redis-cli runs");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stock_dispatcher_reaches_our_clients_once_and_what_it_left_for_who_was_away_is_theirs_later() {
    let stage = Stage::with(2, SETTINGS);
    let mut stock = Stock::start(&stage);
    // At both servers, so that it could come twice.
    let (mut here, mut there) = (stage.client(0, "alice").await, stage.client(1, "alice").await);
    until("stock to see her", async || redis(&stage, &["SISMEMBER", "connected_clients_shop", "alice"]) == "1").await;
    stock.tell(&json!({ "what": "dispatch", "sync": true, "numbers": [1, 2, 3], "to": ["alice", "bob"] }));
    for n in 1..=3 {
        assert_eq!((next(&mut here).await, next(&mut there).await), (json!(n), json!(n)));
    }
    // Behind it nothing comes twice.
    stage.dispatch(0, &message(4, &["alice"])).await;
    assert_eq!((next(&mut here).await, next(&mut there).await), (json!(4), json!(4)));
    stock.tell(&json!({ "what": "dispatch", "sync": true, "numbers": [5], "to": ["alice"], "keep": false }));
    assert_eq!((next(&mut here).await, next(&mut there).await), (json!(5), json!(5)));
    // What waits for bob was left by stock, and then by us.
    stage.dispatch(1, &message(9, &["bob"])).await;
    until("stock to have left it", async || redis(&stage, &["HLEN", "undelivered_messages_shop"]) == "1").await;
    let mut bob = stage.client(1, "bob").await;
    let mut got = Vec::new();
    for _ in 0..4 {
        got.push(next(&mut bob).await);
    }
    assert_eq!(got, [json!(9), json!(1), json!(2), json!(3)], "ours was in the log when he came");
    assert_eq!(redis(&stage, &["HLEN", "undelivered_messages_shop"]), "0", "all of it was taken");
    stock.tell(&json!({ "what": "disconnect", "to": ["alice"] }));
    assert!(closed(&mut here).await.contains("code: Normal") && closed(&mut there).await.contains("code: Normal"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ours_reach_clients_of_a_stock_server_and_nothing_is_kept_for_them_here() {
    let stage = Stage::with(1, SETTINGS);
    let mut stock = Stock::start(&stage);
    let address = stock.serve();
    let mut alice = Socket::connect(address, "alice").await.expect("a client of stock");
    let mut bob = stage.client(0, "bob").await;
    until("both to be seen", async || redis(&stage, &["SCARD", "connected_clients_shop"]) == "2").await;
    // Whether stock is there is looked for once a second.
    let mut n = 0;
    until("ours to know of stock", async || {
        n += 1;
        stage.dispatch(0, &message(n, &["alice", "bob"])).await["online"] == 2
    })
    .await;
    assert_eq!(next(&mut alice).await, n);
    let once = json!({ "message": { "d": 99, "o": { "sync": true } }, "recipients": ["alice"], "id": "once" });
    for _ in 0..2 {
        let answer = stage.dispatch(0, &once).await;
        assert_eq!((&answer["online"], &answer["stored"]), (&json!(1), &json!(0)), "the original delivers: {answer}");
    }
    assert_eq!(next(&mut alice).await, 99);
    for each in 1..=n {
        assert_eq!(next(&mut bob).await, each);
    }
    stage.dispatch(0, &unsynced(100, &["*"], &["bob"])).await;
    assert_eq!(next(&mut alice).await, 100);
    stage.dispatch(0, &unsynced(101, &["*"], &[])).await;
    assert_eq!((next(&mut alice).await, next(&mut bob).await), (json!(101), json!(101)));
    let (_, state) = stage.ask(0, "GET", "/v1/users/alice", &Value::Null).await;
    assert!(state["pending"].as_u64().unwrap_or(0) < n, "what stock was told of is not kept: {state}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_stock_reads_of_who_is_connected_stays_right() {
    let mut stage = Stage::with(2, SETTINGS);
    let count = |stage: &Stage| redis(stage, &["GET", "connected_clients_count_shop"]);
    let members = |stage: &Stage| redis(stage, &["SMEMBERS", "connected_clients_shop"]);
    let alice = [stage.client(0, "alice").await, stage.client(1, "alice").await];
    let bob = stage.client(1, "bob").await;
    until("three connections of two users", async || count(&stage) == "3" && members(&stage).lines().count() == 2)
        .await;
    let [one, other] = alice;
    drop(one);
    until("one of them to be gone", async || count(&stage) == "2").await;
    assert_eq!(members(&stage).lines().count(), 2, "she is still at the other");
    stage.servers.pop().expect("the second").process.kill();
    drop((other, bob));
    until("what the dead one had to be taken away", async || count(&stage) == "0" && members(&stage).is_empty()).await;
    let carol = stage.client(0, "carol").await;
    until("carol to be there", async || count(&stage) == "1" && members(&stage) == "carol").await;
    let last = stage.servers.pop().expect("the first");
    last.terminate();
    assert!(last.process.wait(crate::PATIENCE).success());
    until("a server that ends to leave nothing", async || count(&stage) == "0" && members(&stage).is_empty()).await;
    drop(carol);
}
