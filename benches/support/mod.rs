//! Helpers of the benchmarks: a runtime, servers in temporary directories, clients, and a table of medians.

// Each benchmark is a separate program and uses a part of this.
#![allow(dead_code, missing_docs)]

pub mod svg;

use std::{net::SocketAddr, path::Path, time::Duration};

use criterion::Criterion;
use mesa::{
    client::{Connection, ConnectionEvent, token},
    config::Config,
    dispatcher::Dispatcher,
    message::{Message, Payload, UserId},
    server::{Server, bind},
};
use tempfile::TempDir;
use tokio::{runtime::Runtime, sync::oneshot, task::JoinHandle};

/// Bytes of data in each message.
pub const DATA_BYTES: usize = 256;

pub const KEY: &str = "a-key-for-benchmarks";

/// Configures short measurements, so that all benchmarks take a few minutes. Options on the command line override it.
pub fn criterion() -> Criterion {
    Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(3))
        .configure_from_args()
}

pub fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}

pub fn user(n: usize) -> UserId {
    UserId::new(&format!("user-{n:05}")).expect("an id")
}

pub fn payload() -> Payload {
    message().payload().expect("a payload")
}

pub fn message() -> Message {
    Message::new("BENCH", &"x".repeat(DATA_BYTES)).expect("a message")
}

/// A server in this process, with a store in a temporary directory.
pub struct TestServer {
    pub address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    running: Option<JoinHandle<()>>,
    _store: TempDir,
}

impl TestServer {
    pub async fn start() -> Self {
        Self::start_on(tempfile::tempdir().expect("a directory")).await
    }

    /// Starts a server on an existing store.
    pub async fn start_on(store: TempDir) -> Self {
        Self::start_with(store, |_| {}).await
    }

    /// Starts a server on a store, with changes of the configuration.
    pub async fn start_with(store: TempDir, configure: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config::default();
        config.host = "127.0.0.1".into();
        config.sync.enabled = true;
        config.authentication.insecure = true;
        config.api.keys.push(KEY.into());
        config.limits.frames_per_second = 100_000;
        config.store.path = store.path().into();
        configure(&mut config);
        let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a port");
        let server = Server::start(config, listener).await.expect("a server");
        let address = server.local_addr();
        let (stop, stopped) = oneshot::channel();
        let running = tokio::spawn(async move {
            server.run(async { _ = stopped.await }).await.expect("no error of the server");
        });
        Self { address, stop: Some(stop), running: Some(running), _store: store }
    }

    pub fn dispatcher(&self) -> Dispatcher {
        Dispatcher::new(&format!("http://{}", self.address), KEY).expect("a dispatcher")
    }

    /// Connects a client and authenticates it as `user`.
    pub async fn client(&self, user: &UserId) -> Connection {
        let mut client = Connection::connect(&format!("ws://{}/", self.address)).await.expect("a connection");
        client.authenticate(token(user.as_str()), true).await.expect("a session");
        client
    }

    pub async fn stop(mut self) {
        drop(self.stop.take());
        if let Some(running) = self.running.take() {
            running.await.expect("a stop without a panic");
        }
    }
}

/// Waits for the next message.
pub async fn next(client: &mut Connection) {
    match client.next().await.expect("an event") {
        ConnectionEvent::Message { .. } => {}
        other => panic!("{other:?}"),
    }
}

/// Prints the medians of the groups that were just measured.
pub fn table(groups: &[&str]) {
    println!("\n{:<58}{:>14}", "median", "time");
    for group in groups {
        let mut rows = Vec::new();
        collect(&target().join("criterion").join(group), group, &mut rows);
        rows.sort_by(|one, other| one.0.cmp(&other.0));
        for (name, nanos) in rows {
            println!("{name:<58}{:>14}", human(nanos));
        }
    }
}

fn target() -> std::path::PathBuf {
    // The program is in `TARGET/release/deps`.
    let program = std::env::current_exe().expect("a path");
    program.ancestors().nth(3).expect("a target directory").to_owned()
}

fn collect(directory: &Path, name: &str, rows: &mut Vec<(String, f64)>) {
    let estimates = directory.join("new/estimates.json");
    if let Ok(text) = std::fs::read_to_string(estimates) {
        let value: serde_json::Value = serde_json::from_str(&text).expect("estimates");
        rows.push((name.to_owned(), value["median"]["point_estimate"].as_f64().expect("a median")));
    }
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let part = entry.file_name().to_string_lossy().into_owned();
        if entry.path().is_dir() && part != "new" && part != "base" && part != "report" && part != "change" {
            collect(&entry.path(), &format!("{name}/{part}"), rows);
        }
    }
}

fn human(nanos: f64) -> String {
    match nanos {
        n if n < 1e3 => format!("{n:.0} ns"),
        n if n < 1e6 => format!("{:.1} µs", n / 1e3),
        n => format!("{:.2} ms", n / 1e6),
    }
}
