//! Server inside the test process, with its own store and port, and helpers to observe it.

use std::{fmt::Debug, future::Future, net::SocketAddr};

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

use crate::support::wait::WAIT_TIMEOUT;

/// A running server.
pub struct TestServer {
    pub address: SocketAddr,
    pub handle: Handle,
    stop: oneshot::Sender<()>,
    running: JoinHandle<Result<(), ServerError>>,
    pub home: TempDir,
}

/// Creates a builder for a server with sync, insecure authentication and its store in `home`.
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

impl TestServer {
    /// Starts a server as `build` changes [`builder`].
    pub async fn start(build: impl FnOnce(Builder) -> Builder) -> Self {
        Self::start_in(tempfile::tempdir().expect("a directory"), build).await
    }

    /// Starts a server in a directory that may contain a store.
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

    /// Connects a client and authenticates it as `user`.
    pub async fn connect(&self, user: &str) -> Connection {
        let mut client = Connection::connect(&self.url()).await.expect("a connection");
        client.authenticate(token(user), true).await.expect("authenticated");
        client
    }

    /// Waits until no client is connected.
    pub async fn wait_until_all_disconnected(&self) {
        let disconnected = async {
            while self.handle.connections() > 0 {
                tokio::task::yield_now().await;
            }
        };
        within("disconnection", disconnected).await;
    }

    /// Stops the server gracefully and returns its directory.
    pub async fn stop(self) -> TempDir {
        _ = self.stop.send(());
        within("stop of the server", self.running).await.expect("no panic").expect("a graceful stop");
        self.home
    }
}

/// Returns the output of `future`. Panics after [`WAIT_TIMEOUT`].
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(WAIT_TIMEOUT, future).await.unwrap_or_else(|_| panic!("no {what} within {WAIT_TIMEOUT:?}"))
}

/// Returns the data of the next message.
pub async fn next(client: &mut Connection) -> Value {
    match within("message", client.next()).await.expect("a frame") {
        ConnectionEvent::Message { data, .. } => serde_json::from_str(data.get()).expect("JSON"),
        other => panic!("{other:?}"),
    }
}

/// Waits until the server closes the connection; returns the close code and reason.
pub async fn wait_for_close(client: &mut Connection) -> (u16, String) {
    loop {
        if let ConnectionEvent::Closed { code, reason } = within("close frame", client.next()).await.expect("a frame") {
            return (code, reason);
        }
    }
}

/// Values that handlers have recorded, in order.
pub struct Records<T>(mpsc::UnboundedReceiver<T>);

/// Creates a sender for handlers, and the values that it records.
pub fn records<T: Debug>() -> (mpsc::UnboundedSender<T>, Records<T>) {
    let (record, recorded) = mpsc::unbounded_channel();
    (record, Records(recorded))
}

impl<T: Debug> Records<T> {
    pub async fn next(&mut self) -> T {
        within("record", self.0.recv()).await.expect("a sender exists")
    }

    /// Returns all values that were recorded and not read.
    pub fn rest(&mut self) -> Vec<T> {
        std::iter::from_fn(|| self.0.try_recv().ok()).collect()
    }
}

pub fn user_id(user: &str) -> UserId {
    UserId::new(user).expect("a user id")
}

pub fn message(data: impl serde::Serialize) -> Message {
    Message::new("TEST", &data).expect("a message")
}
