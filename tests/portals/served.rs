//! A server in this process.

// `tests/wire` uses it too, and another part of it.
#![allow(dead_code)]

use std::{net::SocketAddr, time::Duration};

use mesa::{
    client::{Connection, token},
    config::Config,
    dispatcher::Dispatcher,
    server::{Server, bind},
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::oneshot,
    task::JoinHandle,
    time::timeout,
};

pub const KEY: &str = "0123456789abcdef";

/// Longer than anything here takes, on a loaded machine too.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A server with a store in a temporary directory.
pub struct Served {
    pub address: SocketAddr,
    /// Where it speaks the Redis protocol, if it does.
    pub wire: Option<SocketAddr>,
    config: Config,
    stop: Option<oneshot::Sender<()>>,
    running: JoinHandle<()>,
    store: TempDir,
}

impl Served {
    pub async fn start(change: impl FnOnce(&mut Config)) -> Self {
        let store = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.host = "127.0.0.1".into();
        config.sync.enabled = true;
        config.portal.enabled = true;
        config.authentication.insecure = true;
        config.api.keys.push(KEY.into());
        config.store.path = store.path().join("store");
        change(&mut config);
        Self::over(config, store).await
    }

    /// Another one over the same store, once this one has stopped.
    pub async fn restart(self) -> Self {
        Self::over(self.config, self.store).await
    }

    async fn over(config: Config, store: TempDir) -> Self {
        let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let server = Server::start(config.clone(), listener).await.unwrap();
        let (address, wire) = (server.local_addr(), server.wire_addr());
        let (stop, stopped) = oneshot::channel();
        let running = tokio::spawn(async move {
            server.run(async { _ = stopped.await }).await.unwrap();
        });
        Self { address, wire, config, stop: Some(stop), running, store }
    }

    pub fn dispatcher(&self) -> Dispatcher {
        Dispatcher::new(&format!("http://{}", self.address), KEY).unwrap()
    }

    /// A client that nobody knows yet.
    pub async fn stranger(&self) -> Connection {
        Connection::connect(&format!("ws://{}/", self.address)).await.unwrap()
    }

    pub async fn client(&self, user: &str) -> Connection {
        let mut client = self.stranger().await;
        client.authenticate(token(user), true).await.unwrap();
        client
    }

    /// What it counts.
    pub async fn metrics(&self) -> String {
        let mut socket = TcpStream::connect(self.address).await.unwrap();
        socket.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        timeout(PATIENCE, socket.read_to_string(&mut answer)).await.expect("in time").unwrap();
        answer
    }

    /// Waits until it counts that.
    pub async fn metric(&self, line: &str) {
        let line = format!("\n{line}\n");
        let counted = timeout(PATIENCE, async {
            while !self.metrics().await.contains(&line) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        counted.await.unwrap_or_else(|_| panic!("never counted: {line}"));
    }

    /// Tells it to stop, and waits until it has.
    pub async fn stopped(&mut self) {
        drop(self.stop.take());
        timeout(PATIENCE, &mut self.running).await.expect("the server stops").unwrap();
    }
}
