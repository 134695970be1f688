//! Tests the owner check before the socket: a server on a store that returns entries of another user.

use std::{sync::Arc, time::Duration};

use tokio::{sync::oneshot, time::timeout};

use super::Server;
use crate::{
    client::{Connection, ConnectionEvent, Options as Resume, token},
    embedded::{
        Options,
        tables::memory::{self, Memory},
    },
    message::{Message, Seq, UserId},
    protocol::close_code::CloseCode,
    store::{Entry, ReadLimit, ReadResult, Store, StoreError, intercept::InterceptStore},
};

/// Longest wait for one frame.
const FRAME_TIMEOUT: Duration = Duration::from_secs(20);

/// A store whose reads of Alice's log return entries that `alter` has changed. Everything else is the store's own.
struct Altered {
    store: Arc<dyn Store>,
    alter: fn(&mut Entry),
}

impl Altered {
    fn alter(&self, user: &UserId, mut result: ReadResult) -> ReadResult {
        if *user == alice() {
            result.entries.iter_mut().for_each(self.alter);
        }
        result
    }
}

impl InterceptStore for Altered {
    fn store(&self) -> &dyn Store {
        &*self.store
    }

    fn on_read(&self, user: &UserId, after: Seq, limit: ReadLimit) -> Result<ReadResult, StoreError> {
        self.store.read(user, after, limit).map(|result| self.alter(user, result))
    }

    fn on_read_cached(&self, user: &UserId, after: Seq, limit: ReadLimit) -> Option<ReadResult> {
        self.store.read_cached(user, after, limit).map(|result| self.alter(user, result))
    }
}

fn alice() -> UserId {
    UserId::new("alice").unwrap()
}

/// Returns the next event after the answer to the authentication.
async fn next(client: &mut Connection) -> ConnectionEvent {
    timeout(FRAME_TIMEOUT, client.next()).await.expect("a frame within 20 s").unwrap()
}

/// Asserts that the server closes the connection with 1011 before it sends any message.
async fn assert_closed_without_a_message(client: &mut Connection) {
    loop {
        match next(client).await {
            ConnectionEvent::Closed { code, .. } => {
                assert_eq!(code, CloseCode::Internal.code());
                break;
            }
            ConnectionEvent::Resumed { .. } => {}
            message @ ConnectionEvent::Message { .. } => panic!("expected no message, received {message:?}"),
        }
    }
}

// covers: G3
#[tokio::test(flavor = "multi_thread")]
async fn entry_of_another_owner_or_namespace_closes_the_connection_and_is_not_sent() {
    let alterations: [fn(&mut Entry); 2] =
        [|entry| entry.owner = bytes::Bytes::from_static(b"bob"), |entry| entry.namespace ^= 1];
    for alter in alterations {
        let store = memory::open(&Memory::default(), Options::default()).unwrap();
        let configured = Server::builder().store(Arc::new(Altered { store, alter })).configure(|config| {
            config.host = "127.0.0.1".into();
            config.port = 0;
            config.sync.enabled = true;
            config.authentication.insecure = true;
            config.api.keys.push("0123456789abcdef".into());
        });
        let server = configured.start().await.unwrap();
        let (url, handle) = (format!("ws://{}/", server.local_addr()), server.handle());
        let metrics = server.runtime.context.metrics.clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let running = tokio::spawn(server.run(async { _ = stopped.await }));
        let bob = UserId::new("bob").unwrap();

        let mut alices = Connection::connect(&url).await.unwrap();
        alices.authenticate(token("alice"), true).await.unwrap();
        let mut bobs = Connection::connect(&url).await.unwrap();
        bobs.authenticate(token("bob"), true).await.unwrap();
        handle.send(&Message::new("TEST", &1).unwrap(), vec![alice(), bob], &[]).await.unwrap();
        assert_closed_without_a_message(&mut alices).await;
        assert_eq!(metrics.foreign_entries.get(), 1, "expected the live entry to be counted");
        assert!(matches!(next(&mut bobs).await, ConnectionEvent::Message { .. }), "expected Bob to receive the entry");

        // The same for the backlog, of a client that resumes and of one that does not.
        for (after, count) in [(Some(0), 2), (None, 3)] {
            let mut alices = Connection::connect(&url).await.unwrap();
            let resume = Resume { after, ..Resume::default() };
            // The connection may be closed before the client has read the answer.
            _ = alices.authenticate_with(token("alice"), &resume).await;
            assert_closed_without_a_message(&mut alices).await;
            assert_eq!(metrics.foreign_entries.get(), count, "expected the backlog entry to be counted");
        }
        bobs.close().await;
        let pending = handle.user(&alice()).await.unwrap().pending;
        assert_eq!(pending, 1, "expected the entry not to count as received");
        _ = stop.send(());
        running.await.unwrap().unwrap();
    }
}
