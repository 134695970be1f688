//! Server inside the test process.

use std::{net::SocketAddr, time::Duration};

use mesa::{
    client::{Connection, token},
    config::Config,
    dispatcher::Dispatcher,
    message::UserId,
    server::{Handle, Server, bind},
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::oneshot,
    task::JoinHandle,
    time::timeout,
};

use super::wait::WAIT_TIMEOUT;

pub const KEY: &str = "0123456789abcdef";

/// A server with a store in a temporary directory.
pub struct TestServer {
    pub address: SocketAddr,
    /// Address of the Redis protocol, if it is enabled.
    pub redis_protocol: Option<SocketAddr>,
    pub handle: Handle,
    config: Config,
    stop: Option<oneshot::Sender<()>>,
    running: JoinHandle<()>,
    store: TempDir,
}

impl TestServer {
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
        Self::start_on(config, store).await
    }

    /// Starts another server on the same store, after this one has stopped.
    pub async fn restart(self) -> Self {
        Self::start_on(self.config, self.store).await
    }

    async fn start_on(config: Config, store: TempDir) -> Self {
        let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let server = Server::start(config.clone(), listener).await.unwrap();
        let (address, redis_protocol, handle) = (server.local_addr(), server.redis_protocol_addr(), server.handle());
        let (stop, stopped) = oneshot::channel();
        let running = tokio::spawn(async move {
            server.run(async { _ = stopped.await }).await.unwrap();
        });
        Self { address, redis_protocol, handle, config, stop: Some(stop), running, store }
    }

    pub fn dispatcher(&self) -> Dispatcher {
        Dispatcher::new(&format!("http://{}", self.address), KEY).unwrap()
    }

    /// Connects a client without authentication.
    pub async fn connect(&self) -> Connection {
        Connection::connect(&format!("ws://{}/", self.address)).await.unwrap()
    }

    /// Connects a client and authenticates it as `user`.
    pub async fn client(&self, user: &str) -> Connection {
        let mut client = self.connect().await;
        client.authenticate(token(user), true).await.unwrap();
        client
    }

    /// Returns the HTTP response of `/metrics`.
    pub async fn metrics(&self) -> String {
        let mut socket = TcpStream::connect(self.address).await.unwrap();
        socket.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut response = String::new();
        timeout(WAIT_TIMEOUT, socket.read_to_string(&mut response)).await.expect("a response in time").unwrap();
        response
    }

    /// Waits until the metrics contain `line`.
    pub async fn wait_for_metric(&self, line: &str) {
        let line = format!("\n{line}\n");
        let found = timeout(WAIT_TIMEOUT, async {
            while !self.metrics().await.contains(&line) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        found.await.unwrap_or_else(|_| panic!("no such metric within {WAIT_TIMEOUT:?}: {line}"));
    }

    /// Returns the data of a user's pending entries, in order.
    pub async fn pending_numbers(&self, user: &str) -> Vec<u64> {
        pending_numbers(&self.dispatcher(), user).await
    }

    /// Requests the server to stop.
    pub fn begin_stop(&mut self) {
        drop(self.stop.take());
    }

    /// Stops the server and waits until it has stopped.
    pub async fn stop(&mut self) {
        self.begin_stop();
        timeout(WAIT_TIMEOUT, &mut self.running).await.expect("the server stops").unwrap();
    }
}

/// Returns the data of a user's pending entries, in order.
pub async fn pending_numbers(dispatcher: &Dispatcher, user: &str) -> Vec<u64> {
    let (user, mut numbers, mut after) = (UserId::new(user).unwrap(), Vec::new(), 0);
    loop {
        let page = dispatcher.messages(&user, after, Some(1000)).await.unwrap().messages;
        let Some(last) = page.last() else { return numbers };
        after = last.s;
        numbers.extend(page.iter().map(|message| message.d.as_ref().unwrap().get().parse::<u64>().unwrap()));
    }
}
