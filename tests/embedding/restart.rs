//! Tests that handlers and portals are notified of the users whom a kill of the previous start has disconnected.

use std::sync::Arc;

use mesa::{
    message::UserId,
    portal::{Event, Portal},
    server::{Handle, Handler, Peer},
};
use tokio::sync::{
    Semaphore,
    mpsc::{UnboundedSender, unbounded_channel},
};

use crate::{
    server::{KEY, TestServer, within},
    support::connected::leave_connected,
};

/// Records the users of disconnections by a restart.
struct RestartHandler(UnboundedSender<UserId>);

impl Handler for RestartHandler {
    async fn restart_disconnection(&self, _: Handle, user: UserId) {
        assert_ne!(user.as_str(), "bob", "a panic of the handler, which ends this call only");
        _ = self.0.send(user);
    }
}

// covers: G4
#[tokio::test(flavor = "multi_thread")]
async fn users_connected_at_a_kill_are_reported_once_to_handlers_and_to_the_first_portal() {
    let home = tempfile::tempdir().unwrap();
    leave_connected(&home.path().join("store"), &["alice", "bob", "carol"]);
    let (record, mut recorded) = unbounded_channel();
    let handler = RestartHandler(record);
    let server =
        TestServer::start_in(home, |builder| builder.configure(|config| config.portal.enabled = true).handler(handler))
            .await;
    for user in ["alice", "carol"] {
        assert_eq!(within("user", recorded.recv()).await.unwrap().as_str(), user);
    }
    // A client that is back before the portal comes later in its queue.
    let _alice = server.connect("alice").await;
    let mut portal = Portal::builder(&format!("http://{}", server.address), KEY).connect().await.unwrap();
    for expected in ["alice", "bob", "carol"] {
        match within("event", portal.next()).await.unwrap().unwrap() {
            Event::Disconnection { connection, user, reason } => {
                assert_eq!(
                    (&*connection, user.as_deref(), reason.as_deref()),
                    ("", Some(expected), Some("server_restart"))
                );
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(matches!(within("event", portal.next()).await.unwrap().unwrap(), Event::Connection { .. }));
    drop(portal);
    let home = server.stop().await;

    // Clients were closed normally, so the next start reports none of them.
    let (record, mut recorded) = unbounded_channel();
    let server = TestServer::start_in(home, |builder| builder.handler(RestartHandler(record))).await;
    server.stop().await;
    assert!(recorded.try_recv().is_err());
}

/// Records events, and ends a call for a disconnection by a restart only with a permit.
struct SlowHandler {
    record: UnboundedSender<(&'static str, UserId)>,
    permits: Arc<Semaphore>,
}

impl Handler for SlowHandler {
    async fn restart_disconnection(&self, _: Handle, user: UserId) {
        self.permits.acquire().await.expect("the semaphore is never closed").forget();
        _ = self.record.send(("disconnected", user));
    }

    async fn authentication(&self, client: Peer) {
        _ = self.record.send(("authenticated", client.user().expect("a user")));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn authentication_is_handled_after_the_disconnection_by_a_restart() {
    let home = tempfile::tempdir().unwrap();
    leave_connected(&home.path().join("store"), &["alice", "bob", "carol", "dave"]);
    let (record, mut recorded) = unbounded_channel();
    let permits = Arc::new(Semaphore::new(0));
    let handler = SlowHandler { record, permits: permits.clone() };
    let server = TestServer::start_in(home, |builder| builder.handler(handler)).await;
    let mut next = async || {
        let (event, user) = within("event", recorded.recv()).await.unwrap();
        format!("{event} {user}")
    };
    // The call for alice has not ended. Users who are back wait for the calls for them.
    let clients = [server.connect("dave").await, server.connect("dave").await, server.connect("carol").await];
    // Other users do not wait.
    let erin = server.connect("erin").await;
    assert_eq!(next().await, "authenticated erin");
    permits.add_permits(4);
    let mut order = Vec::new();
    for _ in 0..7 {
        order.push(next().await);
    }
    for user in ["carol", "dave"] {
        let of_user: Vec<_> = order.iter().filter(|event| event.ends_with(user)).collect();
        assert!(of_user[0].starts_with("disconnected"), "{order:?}");
        assert!(of_user[1..].iter().all(|event| event.starts_with("authenticated")), "{order:?}");
    }
    drop((clients, erin));
}
