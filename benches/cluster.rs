//! Measures a dispatch to one server for a client of another server, over one Redis.
//!
//! Reports the time until the client has the message, and the throughput with 50 dispatches in flight. The same work is
//! done on one embedded server, and on a server of the original Mesa (`@cryb/mesa`) with its Dispatcher on the same
//! Redis. They take turns within one run. Needs `redis-server`; the original needs Node and `npm ci` in
//! `tests/node_clients`.
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
use support::{TestServer, message, next, user};
use tokio::runtime::Runtime;

/// Allocator of the binary.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Rounds. The first warms up and is not counted.
const ROUNDS: usize = 6;
/// Sequential dispatches per round.
const SEQUENTIAL: usize = 300;
/// Concurrent dispatches per round.
const CONCURRENT: usize = 2_000;
/// Concurrent dispatches in flight.
const IN_FLIGHT: usize = 50;

/// Persistence settings of Redis: name, and arguments of `redis-server`.
const REDIS_SETTINGS: [(&str, &[&str]); 3] = [
    ("Redis, every write synced", &["--appendfsync", "always"]),
    ("Redis, a sync per second", &["--appendfsync", "everysec"]),
    ("Redis, nothing on disk", &["--appendonly", "no"]),
];

/// Servers of this crate, with a dispatcher for the first and a client of the last.
struct MesaTarget {
    dispatcher: Dispatcher,
    client: Connection,
    servers: Vec<TestServer>,
}

impl MesaTarget {
    async fn start(count: usize, redis: Option<&Redis>) -> Self {
        let mut servers = Vec::new();
        for _ in 0..count {
            let directory = tempfile::tempdir().expect("a directory");
            let configure = |config: &mut mesa::config::Config| {
                config.redis = redis.map(|redis| Address::One(redis.url()));
            };
            servers.push(TestServer::start_with(directory, configure).await);
        }
        let client = servers[count - 1].client(&user(1)).await;
        Self { dispatcher: servers[0].dispatcher(), client, servers }
    }

    /// Measures sequential dispatches, each until the client has the message.
    async fn sequential(&mut self) -> Vec<Duration> {
        let (message, recipients) = (message(), Recipients::Users(vec![user(1)]));
        let mut latencies = Vec::with_capacity(SEQUENTIAL);
        for _ in 0..SEQUENTIAL {
            let began = Instant::now();
            let dispatch =
                async { self.dispatcher.dispatch(&message, &recipients, &[]).await.expect("an accepted dispatch") };
            let arrive = async {
                next(&mut self.client).await;
                began.elapsed()
            };
            latencies.push(tokio::join!(dispatch, arrive).1);
        }
        latencies
    }

    /// Measures concurrent dispatches until all are answered and the client has the last message.
    async fn concurrent(&mut self) -> Duration {
        let (message, recipients) = (message(), Recipients::Users(vec![user(1)]));
        let began = Instant::now();
        let dispatches = join_all((0..IN_FLIGHT).map(async |_| {
            for _ in 0..CONCURRENT / IN_FLIGHT {
                self.dispatcher.dispatch(&message, &recipients, &[]).await.expect("an accepted dispatch");
            }
        }));
        let arrive = async {
            for _ in 0..CONCURRENT {
                next(&mut self.client).await;
            }
        };
        tokio::join!(dispatches, arrive);
        began.elapsed()
    }
}

/// Driver process with a server of the original, its Dispatcher and a client.
struct OriginalTarget {
    process: Child,
    commands: ChildStdin,
    results: BufReader<ChildStdout>,
}

impl OriginalTarget {
    fn start(redis: &Redis) -> Self {
        let driver = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/cluster.js");
        let command = Command::new("node")
            .arg(driver)
            .args([redis.url(), support::DATA_BYTES.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let mut process = command.expect("node is installed");
        let (commands, results) = (process.stdin.take().expect("a pipe"), process.stdout.take().expect("a pipe"));
        let mut original = Self { process, commands, results: BufReader::new(results) };
        assert_eq!(original.call(&json!({ "command": "start" })), json!("started"));
        original
    }

    /// Sends a command to the driver and waits for its result.
    fn call(&mut self, command: &Value) -> Value {
        writeln!(self.commands, "{command}").expect("a running driver");
        let mut result = String::new();
        self.results.read_line(&mut result).expect("a running driver");
        serde_json::from_str(&result).expect("a result; if the driver has failed, run `npm ci` in tests/node_clients")
    }

    fn sequential(&mut self) -> Vec<Duration> {
        let latencies = self.call(&json!({ "command": "sequential", "count": SEQUENTIAL }));
        latencies.as_array().expect("times").iter().map(milliseconds).collect()
    }

    fn concurrent(&mut self) -> Duration {
        milliseconds(&self.call(&json!({ "command": "concurrent", "count": CONCURRENT, "inFlight": IN_FLIGHT })))
    }
}

impl Drop for OriginalTarget {
    fn drop(&mut self) {
        // The driver kills the original's server when it exits.
        _ = self.commands.write_all(b"{\"command\":\"exit\"}\n");
        _ = self.process.wait();
    }
}

fn milliseconds(value: &Value) -> Duration {
    Duration::from_secs_f64(value.as_f64().expect("a number") / 1e3)
}

enum Target {
    Mesa(Box<MesaTarget>),
    Original(OriginalTarget),
}

/// A target and its measured times.
struct Measurement {
    name: String,
    target: Target,
    sequential: Vec<Duration>,
    concurrent: Vec<Duration>,
}

impl Measurement {
    fn new(name: String, target: Target) -> Self {
        Self { name, target, sequential: Vec::new(), concurrent: Vec::new() }
    }

    fn round(&mut self, clients: &Runtime, counts: bool) {
        let (sequential, concurrent) = match &mut self.target {
            Target::Mesa(mesa) => clients.block_on(async { (mesa.sequential().await, mesa.concurrent().await) }),
            Target::Original(original) => (original.sequential(), original.concurrent()),
        };
        if counts {
            self.sequential.extend(sequential);
            self.concurrent.push(concurrent);
        }
    }

    fn print_row(&mut self) {
        self.sequential.sort_unstable();
        self.concurrent.sort_unstable();
        let at = |percent: usize| self.sequential[(self.sequential.len() - 1) * percent / 100].as_secs_f64() * 1e3;
        let rate = CONCURRENT as f64 / self.concurrent[self.concurrent.len() / 2].as_secs_f64();
        println!("{:<62}{:>9.2} ms{:>9.2} ms{rate:>12.0}", self.name, at(50), at(99));
    }
}

fn main() {
    // Clients have their own threads, as they would on another machine.
    let (servers, clients) = (support::runtime(), support::runtime());
    let redis: Vec<(&str, Arc<Redis>)> =
        REDIS_SETTINGS.iter().map(|(name, arguments)| (*name, Redis::start_with(arguments))).collect();
    let start =
        |count, redis: Option<&Redis>| Target::Mesa(Box::new(servers.block_on(MesaTarget::start(count, redis))));
    let mut all = vec![Measurement::new("one embedded server, every message synced".into(), start(1, None))];
    for (name, redis) in &redis {
        all.push(Measurement::new(format!("two servers, {name}"), start(2, Some(redis))));
        let original = Target::Original(OriginalTarget::start(redis));
        all.push(Measurement::new(format!("the original, {name}"), original));
    }
    for round in 0..ROUNDS {
        // The targets take turns, so that other load on the machine affects all of them.
        all.iter_mut().for_each(|measurement| measurement.round(&clients, round > 0));
    }
    println!("\n{:<62}{:>12}{:>12}{:>12}", "dispatch until the client has it", "p50", "p99", "per second");
    all.iter_mut().for_each(Measurement::print_row);
    println!("(sequential; last column: {IN_FLIGHT} in flight, median of {} rounds)", ROUNDS - 1);
    for measurement in all {
        if let Target::Mesa(mesa) = measurement.target {
            let MesaTarget { client, servers: started, .. } = *mesa;
            drop(client);
            servers.block_on(async { join_all(started.into_iter().map(TestServer::stop)).await });
        }
    }
}
