//! Tests clients that store their position in the user's log.

use std::{
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use mesa::{
    client::{Client, Event, FilePositions, MemoryPositions, Options, PositionStore, token},
    message::{DeviceId, Seq},
};

use crate::{
    client::send_numbers,
    flaky_proxy::FlakyProxy,
    server::{TestServer, message, user_id, within},
    support::server::Home,
};

/// Connects a client that resumes from a store.
async fn connect(url: &str, positions: impl PositionStore) -> Client {
    let builder = Client::builder(url).reconnect_interval(Duration::from_millis(20)).positions(positions);
    let mut client = builder.connect().await.expect("a connection");
    let options = Options::default().device(DeviceId::new("phone-1").unwrap());
    client.authenticate(token("alice"), options).await.expect("an accepted token");
    client
}

/// Returns the data of the next message, and skips other events.
async fn next(client: &mut Client) -> u64 {
    loop {
        match within("event", client.next()).await.expect("the stream has not ended") {
            Event::Message(message) => return message.read().unwrap(),
            Event::Resumed { missed, .. } => assert!(missed.is_none(), "{missed:?}"),
            Event::Disconnected { will_reconnect, reason, .. } => assert!(will_reconnect, "{reason}"),
            _ => {}
        }
    }
}

/// The server is killed, connections break, and the client ends and starts again from its file. A client that dies
/// while it processes a message gets that message again, and no other.
// covers: G1, G2
#[tokio::test(flavor = "multi_thread")]
async fn client_with_file_positions_over_kills_handles_each_message_once() {
    const MESSAGES: u64 = 600;
    let home = Arc::new(Home::new());
    let server = home.start();
    let proxy = FlakyProxy::start(server.address).await;
    let address = Arc::new(Mutex::new(server.address));
    let mut server = Some(server);
    let backend = {
        let address = address.clone();
        tokio::task::spawn_blocking(move || send_numbers(&address, MESSAGES))
    };
    let path = home.path("positions");
    let mut client = connect(&proxy.url(), FilePositions::new(&path)).await;
    for expected in 1..=MESSAGES {
        assert_eq!(next(&mut client).await, expected, "no gap and no repeat");
        match expected % 100 {
            20 => {
                server.take().expect("a running server").process.kill();
                let home = home.clone();
                let started = tokio::task::spawn_blocking(move || home.start()).await.unwrap();
                *address.lock().unwrap() = started.address;
                proxy.set_target(started.address);
                server = Some(started);
            }
            40 => proxy.cut(),
            60 => {
                client.acknowledge().await.unwrap();
                drop(client);
                client = connect(&proxy.url(), FilePositions::new(&path)).await;
            }
            80 => {
                drop(client);
                client = connect(&proxy.url(), FilePositions::new(&path)).await;
                assert_eq!(next(&mut client).await, expected, "the message in progress is repeated");
            }
            _ => {}
        }
    }
    within("end of the backend", backend).await.unwrap();
    client.disconnect().await;
    assert_eq!(FilePositions::new(&path).load().unwrap(), Some(MESSAGES));
}

/// Fails to save on request.
#[derive(Debug, Default)]
struct FailingPositions {
    memory: MemoryPositions,
    fails: AtomicBool,
}

impl PositionStore for FailingPositions {
    fn load(&self) -> io::Result<Option<Seq>> {
        self.memory.load()
    }

    fn save(&self, position: Seq) -> io::Result<()> {
        if self.fails.load(Ordering::SeqCst) {
            return Err(io::Error::other("no space; free some"));
        }
        self.memory.save(position)
    }
}

/// The server may remove an acknowledged message, so an acknowledgement before the position is stored could lose it.
// covers: G2, G4
#[tokio::test(flavor = "multi_thread")]
async fn message_without_a_stored_position_is_not_acknowledged() {
    let server = TestServer::start(|builder| builder).await;
    for n in 1..=3 {
        server.handle.send(&message(n), &user_id("alice"), &[]).await.unwrap();
    }
    let positions = Arc::new(FailingPositions::default());
    let mut client = connect(&server.url(), positions.clone()).await;
    assert_eq!(next(&mut client).await, 1);
    assert_eq!(next(&mut client).await, 2);
    positions.fails.store(true, Ordering::SeqCst);
    assert!(client.acknowledge().await.unwrap_err().to_string().contains("no space"));
    match within("last event", client.next()).await {
        Some(Event::Disconnected { reason, will_reconnect: false, .. }) => {
            assert!(reason.contains("no space"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
    assert!(client.next().await.is_none());
    drop(client);
    server.wait_until_all_disconnected().await;
    let pending = server.handle.user(&user_id("alice")).await.unwrap().pending;
    assert!(pending >= 2, "only the first message may be acknowledged, but {pending} are pending");
    positions.fails.store(false, Ordering::SeqCst);
    let mut client = connect(&server.url(), positions).await;
    assert_eq!((next(&mut client).await, next(&mut client).await), (2, 3));
    server.stop().await;
}

/// A store that replaces another one has its own sequences. The client has to forget its old position as soon as it
/// knows, or it would skip messages once the new log has grown past it.
// covers: G4
#[tokio::test(flavor = "multi_thread")]
async fn position_in_a_replaced_log_skips_no_message() {
    let server = TestServer::start(|builder| builder).await;
    let positions = Arc::new(MemoryPositions::default());
    positions.save(5).unwrap();
    server.handle.send(&message(1), &user_id("alice"), &[]).await.unwrap();
    let mut client = connect(&server.url(), positions.clone()).await;
    while !matches!(within("event", client.next()).await, Some(Event::Resumed { .. })) {}
    client.acknowledge().await.unwrap();
    drop(client);
    for n in 2..=8 {
        server.handle.send(&message(n), &user_id("alice"), &[]).await.unwrap();
    }
    let mut client = connect(&server.url(), positions).await;
    for n in 1..=8 {
        assert_eq!(next(&mut client).await, n);
    }
    server.stop().await;
}
