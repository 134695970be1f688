//! A dispatch to one server for a client at another, over a Redis that both share: how long one takes until the client
//! has it, and how many come through when fifty are under way. Beside it, in the same run and by turns, the same work on one
//! embedded server, and on the stock server with a stock Dispatcher on the same Redis. Needs `redis-server`, and for stock
//! Node and the packages of `tests/node_clients` (`npm ci` there).
#![allow(missing_docs)]

#[path = "../tests/support/redis.rs"]
mod redis_server;
mod support;

use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use mesa::{client::Connection, config::Redis as Address, dispatcher::Dispatcher, message::Recipients};
use redis_server::Redis;
use serde_json::{Value, json};
use support::{Served, message, next, user};
use tokio::runtime::Runtime;

/// What the binary has.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The first warms up and does not count.
const ROUNDS: usize = 6;
/// Dispatches of a round, one after the other.
const SINGLE: usize = 300;
/// Dispatches of a round, so many of them under way at once.
const MANY: usize = 2_000;
const AT_ONCE: usize = 50;

/// What each way of keeping is called, and what Redis is told.
const REDIS: [(&str, &[&str]); 3] = [
    ("Redis, every write synced", &["--appendfsync", "always"]),
    ("Redis, a sync a second", &["--appendfsync", "everysec"]),
    ("Redis, nothing on disk", &["--appendonly", "no"]),
];

/// Servers of ours, with a client at the last and a Dispatcher for the first.
struct Ours {
    dispatcher: Dispatcher,
    client: Connection,
    servers: Vec<Served>,
}

impl Ours {
    async fn start(count: usize, redis: Option<&Redis>) -> Self {
        let mut servers = Vec::new();
        for _ in 0..count {
            let directory = tempfile::tempdir().expect("a directory");
            let configure = |config: &mut mesa::config::Config| {
                config.redis = redis.map(|redis| Address::One(redis.url()));
            };
            servers.push(Served::start_with(directory, configure).await);
        }
        let client = servers[count - 1].client(&user(1)).await;
        Self { dispatcher: servers[0].dispatcher(), client, servers }
    }

    /// From the dispatch until the client has it, each.
    async fn singly(&mut self) -> Vec<Duration> {
        let (message, recipients) = (message(), Recipients::Users(vec![user(1)]));
        let mut took = Vec::with_capacity(SINGLE);
        for _ in 0..SINGLE {
            let began = Instant::now();
            let dispatch = async { self.dispatcher.dispatch(&message, &recipients, &[]).await.expect("it is taken") };
            let arrive = async {
                next(&mut self.client).await;
                began.elapsed()
            };
            took.push(tokio::join!(dispatch, arrive).1);
        }
        took
    }

    /// Until all were answered and the client has the last.
    async fn many(&mut self) -> Duration {
        let (message, recipients) = (message(), Recipients::Users(vec![user(1)]));
        let began = Instant::now();
        let dispatches = join_all((0..AT_ONCE).map(async |_| {
            for _ in 0..MANY / AT_ONCE {
                self.dispatcher.dispatch(&message, &recipients, &[]).await.expect("it is taken");
            }
        }));
        let arrive = async {
            for _ in 0..MANY {
                next(&mut self.client).await;
            }
        };
        tokio::join!(dispatches, arrive);
        began.elapsed()
    }
}

/// A stock server, and a stock Dispatcher and a client in another process, which is told what to do.
struct Stock {
    process: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Stock {
    fn start(redis: &Redis) -> Self {
        let driver = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/cluster.js");
        let command = Command::new("node")
            .arg(driver)
            .args([redis.url(), support::DATA_BYTES.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let mut process = command.expect("node is installed");
        let (to, from) = (process.stdin.take().expect("a pipe"), process.stdout.take().expect("a pipe"));
        let mut stock = Self { process, to, from: BufReader::new(from) };
        assert_eq!(stock.ask(&json!({ "what": "start" })), json!("started"));
        stock
    }

    fn ask(&mut self, what: &Value) -> Value {
        writeln!(self.to, "{what}").expect("it listens");
        let mut answer = String::new();
        self.from.read_line(&mut answer).expect("it answers");
        serde_json::from_str(&answer).expect("stock cannot be measured: is `npm ci` done in tests/node_clients?")
    }

    fn singly(&mut self) -> Vec<Duration> {
        let took = self.ask(&json!({ "what": "singly", "count": SINGLE }));
        took.as_array().expect("times").iter().map(milliseconds).collect()
    }

    fn many(&mut self) -> Duration {
        milliseconds(&self.ask(&json!({ "what": "many", "count": MANY, "atOnce": AT_ONCE })))
    }
}

impl Drop for Stock {
    fn drop(&mut self) {
        // Its own server it ends itself, when nobody tells it anything any more.
        _ = self.to.write_all(b"{\"what\":\"end\"}\n");
        _ = self.process.wait();
    }
}

fn milliseconds(value: &Value) -> Duration {
    Duration::from_secs_f64(value.as_f64().expect("a number") / 1e3)
}

enum Target {
    Ours(Box<Ours>),
    Stock(Stock),
}

struct Measured {
    name: String,
    target: Target,
    singly: Vec<Duration>,
    many: Vec<Duration>,
}

impl Measured {
    fn new(name: String, target: Target) -> Self {
        Self { name, target, singly: Vec::new(), many: Vec::new() }
    }

    fn round(&mut self, clients: &Runtime, counts: bool) {
        let (singly, many) = match &mut self.target {
            Target::Ours(ours) => clients.block_on(async { (ours.singly().await, ours.many().await) }),
            Target::Stock(stock) => (stock.singly(), stock.many()),
        };
        if counts {
            self.singly.extend(singly);
            self.many.push(many);
        }
    }

    fn show(&mut self) {
        self.singly.sort_unstable();
        self.many.sort_unstable();
        let at = |percent: usize| self.singly[(self.singly.len() - 1) * percent / 100].as_secs_f64() * 1e3;
        let rate = MANY as f64 / self.many[self.many.len() / 2].as_secs_f64();
        println!("{:<62}{:>9.2} ms{:>9.2} ms{rate:>12.0}", self.name, at(50), at(99));
    }
}

fn main() {
    // Clients have threads of their own, as they would have elsewhere.
    let (servers, clients) = (support::runtime(), support::runtime());
    let redis: Vec<(&str, Arc<Redis>)> =
        REDIS.iter().map(|(name, arguments)| (*name, Redis::start_with(arguments))).collect();
    let ours = |count, redis: Option<&Redis>| Target::Ours(Box::new(servers.block_on(Ours::start(count, redis))));
    let mut all = vec![Measured::new("one embedded server, every message synced".into(), ours(1, None))];
    for (name, redis) in &redis {
        all.push(Measured::new(format!("two servers, {name}"), ours(2, Some(redis))));
        all.push(Measured::new(format!("stock server and Dispatcher, {name}"), Target::Stock(Stock::start(redis))));
    }
    for round in 0..ROUNDS {
        // By turns, so that whatever else goes on is shared by all.
        all.iter_mut().for_each(|measured| measured.round(&clients, round > 0));
    }
    println!("\n{:<62}{:>12}{:>12}{:>12}", "a dispatch until the client has it", "p50", "p99", "a second");
    all.iter_mut().for_each(Measured::show);
    println!("(one after the other; the last column with {AT_ONCE} under way, median of {} rounds)", ROUNDS - 1);
    for measured in all {
        if let Target::Ours(ours) = measured.target {
            let Ours { client, servers: served, .. } = *ours;
            drop(client);
            servers.block_on(async { join_all(served.into_iter().map(Served::stop)).await });
        }
    }
}
