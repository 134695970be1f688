//! A server in this process, on a store and a port of its own, and what it takes to watch it.

use std::{fmt::Debug, future::Future, net::SocketAddr, time::Duration};

use mesa::{
    client::{Connection, ConnectionEvent, token},
    message::{Message, UserId},
    server::{Builder, Handle, Server, ServerError},
};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::timeout,
};

/// Longer than anything here takes.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A running server.
pub struct Served {
    pub address: SocketAddr,
    pub handle: Handle,
    stop: oneshot::Sender<()>,
    running: JoinHandle<Result<(), ServerError>>,
    pub home: TempDir,
}

/// A builder of a server that keeps messages, believes every token, and lives in `home`.
pub fn builder(home: &TempDir) -> Builder {
    Server::builder().store_path(home.path().join("store")).configure(|config| {
        config.host = "127.0.0.1".into();
        config.port = 0;
        config.sync.enabled = true;
        config.authentication.insecure = true;
        config.api.keys.push(KEY.into());
    })
}

pub const KEY: &str = "a-key-for-the-library";

impl Served {
    /// Starts what `build` makes of [`builder`].
    pub async fn start(build: impl FnOnce(Builder) -> Builder) -> Self {
        Self::start_in(tempfile::tempdir().expect("a directory"), build).await
    }

    /// The same in a home that may have a store already.
    pub async fn start_in(home: TempDir, build: impl FnOnce(Builder) -> Builder) -> Self {
        let server = build(builder(&home)).start().await.expect("a server");
        let (address, handle) = (server.local_addr(), server.handle());
        let (stop, stopped) = oneshot::channel();
        let running = tokio::spawn(server.run(async { _ = stopped.await }));
        Self { address, handle, stop, running, home }
    }

    pub fn url(&self) -> String {
        format!("ws://{}/", self.address)
    }

    /// A connection that is authenticated as `user`.
    pub async fn connect(&self, user: &str) -> Connection {
        let mut client = Connection::connect(&self.url()).await.expect("a connection");
        client.authenticate(token(user), true).await.expect("let in");
        client
    }

    /// Stops the server in order, and leaves its home.
    pub async fn stop(self) -> TempDir {
        _ = self.stop.send(());
        within("the server to stop", self.running).await.expect("no panic").expect("in order");
        self.home
    }
}

/// What comes of `future`, which has to come soon.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

/// The data of the next message.
pub async fn next(client: &mut Connection) -> Value {
    match within("a message", client.next()).await.expect("a frame") {
        ConnectionEvent::Message { data, .. } => serde_json::from_str(data.get()).expect("JSON"),
        other => panic!("{other:?}"),
    }
}

/// How the connection ends.
pub async fn end(client: &mut Connection) -> (u16, String) {
    loop {
        if let ConnectionEvent::Closed { code, reason } = within("the end", client.next()).await.expect("a frame") {
            return (code, reason);
        }
    }
}

/// What handlers write down, in order.
pub struct Diary<T>(mpsc::UnboundedReceiver<T>);

/// A diary, and what writes into it.
pub fn diary<T: Debug>() -> (mpsc::UnboundedSender<T>, Diary<T>) {
    let (write, read) = mpsc::unbounded_channel();
    (write, Diary(read))
}

impl<T: Debug> Diary<T> {
    pub async fn next(&mut self) -> T {
        within("an entry of the diary", self.0.recv()).await.expect("somebody writes")
    }

    /// What has been written and not read.
    pub fn rest(&mut self) -> Vec<T> {
        std::iter::from_fn(|| self.0.try_recv().ok()).collect()
    }
}

pub fn id(user: &str) -> UserId {
    UserId::new(user).expect("a user id")
}

pub fn message(data: impl serde::Serialize) -> Message {
    Message::new("TEST", &data).expect("a message")
}
