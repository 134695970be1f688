//! Tests the client against a scripted server, and its encoding of frames.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json, value::to_raw_value};
use tokio::{
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_tungstenite::{
    WebSocketStream, accept_async,
    tungstenite::{
        Message,
        protocol::{CloseFrame, frame::coding::CloseCode},
    },
};

use super::{connect::Target, connection::EARLY_FRAMES_MAX, *};
use crate::message::DeviceId;

/// Time limit of a step.
const STEP_TIMEOUT: Duration = Duration::from_secs(120);
/// Time without a frame that counts as silence.
const SILENCE_TIMEOUT: Duration = Duration::from_millis(100);

const HELLO: &str = r#"{"op":10,"d":{"c_reconnect_interval":2500,"c_authentication_timeout":10000,"rules":[]}}"#;

/// The server's end of a connection.
struct Peer(WebSocketStream<TcpStream>);

impl Peer {
    async fn send(&mut self, text: &str) {
        self.0.send(Message::text(text)).await.unwrap();
    }

    /// Returns the next text from the client.
    async fn read(&mut self) -> String {
        match timeout(STEP_TIMEOUT, self.0.next())
            .await
            .expect("a frame within STEP_TIMEOUT")
            .expect("an open connection")
            .unwrap()
        {
            Message::Text(text) => text.as_str().to_owned(),
            other => panic!("{other:?}"),
        }
    }

    async fn is_silent(&mut self) -> bool {
        timeout(SILENCE_TIMEOUT, self.0.next()).await.is_err()
    }

    async fn close(&mut self, code: u16, reason: &'static str) {
        let frame = CloseFrame { code: CloseCode::from(code), reason: reason.into() };
        self.0.close(Some(frame)).await.unwrap();
    }
}

/// Connects a client to a server whose first frame is `first`.
async fn connected(first: &str) -> (Result<Connection, ClientError>, Peer) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let url = format!("ws://{}/", listener.local_addr().unwrap());
    let first = first.to_owned();
    let peer = async {
        let (stream, _) = listener.accept().await.unwrap();
        let mut peer = Peer(accept_async(stream).await.unwrap());
        peer.send(&first).await;
        peer
    };
    tokio::join!(Connection::connect(&url), peer)
}

/// Connects and authenticates a client.
async fn authenticated() -> (Connection, Peer) {
    let (client, mut peer) = connected(HELLO).await;
    let mut client = client.unwrap();
    let server = async {
        peer.read().await;
        peer.send(r#"{"op":22,"d":{"id":"alice"}}"#).await;
    };
    let (user, ()) = tokio::join!(client.authenticate(token("alice"), true), server);
    assert_eq!(Value::Object(user.unwrap()), json!({ "id": "alice" }));
    (client, peer)
}

/// Returns the next event as text.
async fn next(client: &mut Connection) -> String {
    match timeout(STEP_TIMEOUT, client.next()).await.expect("an event within STEP_TIMEOUT").unwrap() {
        ConnectionEvent::Message { op, data, kind, position } => format!("{op} {data} {kind:?} {position:?}"),
        ConnectionEvent::Resumed { first, last, missed } => {
            let missed = missed.map(|missed| format!("{}-{} {}", missed.from, missed.to, missed.reason));
            format!("resumed {first}-{last} {}", missed.unwrap_or_default())
        }
        ConnectionEvent::Closed { code, reason } => format!("closed {code} {reason}"),
    }
}

#[tokio::test]
async fn greeting_is_available_after_connect() {
    let (client, _peer) = connected(HELLO).await;
    let hello = client.unwrap().hello().clone();
    assert_eq!(hello.reconnect_interval, Some(Duration::from_millis(2500)));
    assert_eq!(hello.authentication_timeout, Some(Duration::from_secs(10)));
    assert_eq!((hello.heartbeat_interval, hello.rules), (None, vec![]));
}

#[tokio::test]
async fn connect_without_greeting_fails() {
    let (client, _peer) = connected(r#"{"op":0,"d":{}}"#).await;
    assert!(matches!(client, Err(ClientError::Protocol(_))), "{client:?}");
}

#[tokio::test]
async fn version_is_announced_if_server_enforces_it() {
    let (client, mut peer) = connected(r#"{"op":10,"d":{"rules":["enforce_equal_versions"]}}"#).await;
    client.unwrap();
    assert_eq!(peer.read().await, r#"{"op":0,"d":{"v":"1.5.3"},"t":"CLIENT_VERSION"}"#);
}

#[tokio::test]
async fn authentication_carries_data_and_options() {
    let (client, mut peer) = connected(HELLO).await;
    let mut client = client.unwrap();
    let mut data = token("alice");
    data.insert("device".into(), "phone-1".into());
    let server = async {
        let frame: Value = serde_json::from_str(&peer.read().await).unwrap();
        peer.send(r#"{"op":22,"d":{}}"#).await;
        frame
    };
    let (user, frame) = tokio::join!(client.authenticate(data, false), server);
    assert!(user.unwrap().is_empty());
    assert_eq!(frame, json!({ "op": 2, "d": { "token": "alice", "device": "phone-1", "shouldSync": false } }));
}

#[tokio::test]
async fn resuming_client_sends_position_and_acknowledges_explicitly() {
    let (client, mut peer) = connected(HELLO).await;
    let mut client = client.unwrap();
    let device = Some(DeviceId::new("phone-1").unwrap());
    let options = Options { after: Some(11), device, ..Options::default() };
    let server = async {
        let frame: Value = serde_json::from_str(&peer.read().await).unwrap();
        peer.send(r#"{"op":22,"d":{}}"#).await;
        peer.send(r#"{"op":13,"d":{"first":41,"last":57,"missed":{"from":12,"to":40,"reason":"quota"}}}"#).await;
        peer.send(r#"{"op":0,"d":1,"s":41}"#).await;
        peer.send(r#"{"op":13,"d":{"first":42,"last":57,"missed":null}}"#).await;
        frame
    };
    let (user, frame) = tokio::join!(client.authenticate_with(token("alice"), &options), server);
    user.unwrap();
    assert_eq!(
        frame,
        json!({ "op": 2, "d": { "token": "alice", "after": 11, "device": "phone-1", "shouldSync": true } })
    );
    assert_eq!(next(&mut client).await, "resumed 41-57 12-40 quota");
    assert_eq!(next(&mut client).await, "0 1 None Some(41)");
    assert_eq!(next(&mut client).await, "resumed 42-57 ");
    client.acknowledge(41).await.unwrap();
    assert_eq!(peer.read().await, r#"{"op":3,"d":{"s":41}}"#);
}

#[tokio::test]
async fn rejection_explains_close_code() {
    let (client, mut peer) = connected(HELLO).await;
    let mut client = client.unwrap();
    let server = async {
        peer.read().await;
        peer.close(1008, "").await;
    };
    let (user, ()) = tokio::join!(client.authenticate(token("mallory"), true), server);
    let error = user.unwrap_err();
    assert_eq!(error, ClientError::Closed { code: 1008, reason: String::new() });
    assert!(error.to_string().contains("1008") && error.to_string().contains("authentication"), "{error}");
}

#[tokio::test]
async fn messages_keep_order_data_and_position() {
    let (mut client, mut peer) = authenticated().await;
    peer.send(r#"{"op":0,"d":{"n":1.0},"t":"OFF","s":1}"#).await;
    peer.send(r#"{"op":100}"#).await;
    assert_eq!(next(&mut client).await, r#"0 {"n":1.0} Some("OFF") Some(1)"#);
    assert_eq!(next(&mut client).await, "100 null None None");
}

/// The server removes an acknowledged message, so the acknowledgement must wait until the program has processed it.
#[tokio::test]
async fn heartbeat_is_acknowledged_after_previous_message_is_processed() {
    let (mut client, mut peer) = authenticated().await;
    peer.send(r#"{"op":0,"d":1}"#).await;
    peer.send(r#"{"op":1,"d":{}}"#).await;
    assert_eq!(next(&mut client).await, "0 1 None None");
    assert!(peer.is_silent().await, "no acknowledgement before the program has processed the message");

    peer.send(r#"{"op":0,"d":2}"#).await;
    assert_eq!(next(&mut client).await, "0 2 None None");
    assert_eq!(peer.read().await, r#"{"op":11,"d":{}}"#);
}

/// The server withholds deliveries until the acknowledgement.
#[tokio::test]
async fn heartbeat_after_authenticated_is_acknowledged_before_events_are_read() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let url = format!("ws://{}/", listener.local_addr().unwrap());
    let server = async {
        let mut peer = Peer(accept_async(listener.accept().await.unwrap().0).await.unwrap());
        peer.send(HELLO).await;
        peer.read().await;
        peer.send(r#"{"op":22,"d":{"id":"alice"}}"#).await;
        peer.send(r#"{"op":1,"d":{}}"#).await;
        assert_eq!(peer.read().await, r#"{"op":11,"d":{}}"#);
        peer
    };
    let program = async {
        let mut client = Client::connect(&url).await.unwrap();
        client.authenticate(token("alice"), Options::default()).await.unwrap();
        client
    };
    let (mut client, mut peer) = tokio::join!(program, server);
    // A heartbeat after a message still waits for the program.
    peer.send(r#"{"op":0,"d":1}"#).await;
    peer.send(r#"{"op":1,"d":{}}"#).await;
    assert!(peer.is_silent().await);
    while !matches!(timeout(STEP_TIMEOUT, client.next()).await.unwrap(), Some(Event::Message(_))) {}
    _ = timeout(SILENCE_TIMEOUT, client.next()).await;
    assert_eq!(peer.read().await, r#"{"op":11,"d":{}}"#);
}

#[tokio::test]
async fn cancelled_next_loses_no_heartbeat_ack() {
    let (mut client, mut peer) = authenticated().await;
    for _ in 0..3 {
        peer.send(r#"{"op":1,"d":{"tries":1,"max":3}}"#).await;
    }
    // Cancelled repeatedly, as by another branch of a `select!`.
    for _ in 0..20 {
        _ = timeout(Duration::from_millis(5), client.next()).await;
    }
    for _ in 0..3 {
        assert_eq!(peer.read().await, r#"{"op":11,"d":{}}"#);
    }
    assert!(peer.is_silent().await);
}

#[tokio::test]
async fn frames_before_authenticated_are_returned_after_it_in_order() {
    let (client, mut peer) = connected(HELLO).await;
    let mut client = client.unwrap();
    let server = async {
        peer.read().await;
        for frame in [r#"{"op":0,"d":1}"#, r#"{"op":1,"d":{}}"#, r#"{"op":0,"d":2}"#, r#"{"op":22,"d":{}}"#] {
            peer.send(frame).await;
        }
    };
    let (user, ()) = tokio::join!(client.authenticate(token("alice"), true), server);
    user.unwrap();
    assert!(peer.is_silent().await, "no acknowledgement of an unread message");
    assert_eq!(next(&mut client).await, "0 1 None None");
    assert_eq!(next(&mut client).await, "0 2 None None");
    assert_eq!(peer.read().await, r#"{"op":11,"d":{}}"#);
}

#[tokio::test]
async fn frames_before_authenticated_are_bounded() {
    let (client, mut peer) = connected(HELLO).await;
    let mut client = client.unwrap();
    let server = async {
        for _ in 0..=EARLY_FRAMES_MAX {
            peer.send(r#"{"op":0,"d":1}"#).await;
        }
    };
    let (user, ()) = tokio::join!(client.authenticate(token("alice"), true), server);
    assert!(matches!(user, Err(ClientError::Protocol(_))), "{user:?}");
}

#[tokio::test]
async fn later_greeting_changes_interval() {
    let (mut client, mut peer) = authenticated().await;
    peer.send(r#"{"op":10,"d":{"c_reconnect_interval":60000,"rules":[]}}"#).await;
    peer.send(r#"{"op":0,"d":1}"#).await;
    next(&mut client).await;
    assert_eq!(client.hello().reconnect_interval, Some(Duration::from_secs(60)));
}

#[tokio::test]
async fn closed_event_is_repeated() {
    let (mut client, mut peer) = authenticated().await;
    peer.send(r#"{"op":0,"d":1}"#).await;
    peer.close(1012, "back soon").await;
    assert_eq!(next(&mut client).await, "0 1 None None");
    for _ in 0..2 {
        assert_eq!(next(&mut client).await, "closed 1012 back soon");
        client.send("LATE", &json!({})).await.unwrap();
    }
    assert!(close_code::should_reconnect(1012));
}

#[tokio::test]
async fn broken_connection_is_reported_as_lost() {
    let (mut client, peer) = authenticated().await;
    drop(peer);
    assert!(next(&mut client).await.starts_with("closed 1006 "));
}

#[tokio::test]
async fn malformed_frame_is_an_error() {
    for frame in ["", "no JSON", "[]", r#"{"d":{}}"#, r#"{"op":"0"}"#, r#"{"op":10,"d":7}"#] {
        let (mut client, mut peer) = authenticated().await;
        peer.send(frame).await;
        let event = timeout(STEP_TIMEOUT, client.next()).await.expect("an event within STEP_TIMEOUT");
        assert!(matches!(event, Err(ClientError::Protocol(_))), "{frame:?}: {event:?}");
    }
}

#[tokio::test]
async fn close_sends_close_frame() {
    let (client, mut peer) = authenticated().await;
    let server = async { timeout(STEP_TIMEOUT, peer.0.next()).await.expect("a frame within STEP_TIMEOUT") };
    let ((), last) = tokio::join!(client.close(), server);
    assert!(matches!(last, Some(Ok(Message::Close(Some(frame)))) if frame.code == CloseCode::Normal));
}

/// Accepts a connection of a client and greets it with `hello`.
async fn accept(listener: &TcpListener, hello: &str) -> Peer {
    let (stream, _) =
        timeout(STEP_TIMEOUT, listener.accept()).await.expect("a connection within STEP_TIMEOUT").unwrap();
    let mut peer = Peer(accept_async(stream).await.unwrap());
    peer.send(hello).await;
    peer
}

#[tokio::test]
async fn answer_to_heartbeat_of_client_is_no_message() {
    let (mut client, mut peer) = authenticated().await;
    client.send_frame(1, None, &json!({})).await.unwrap();
    assert_eq!(peer.read().await, r#"{"op":1,"d":{}}"#);
    peer.send(r#"{"op":11,"d":{}}"#).await;
    peer.send(r#"{"op":0,"d":1}"#).await;
    assert_eq!(next(&mut client).await, "0 1 None None");
}

/// A server that fails right after op 22 must not be asked again and again without pause.
#[tokio::test]
async fn delay_doubles_while_server_closes_right_after_authentication() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let url = format!("ws://{}/", listener.local_addr().unwrap());
    let server = async {
        let began = tokio::time::Instant::now();
        for connections in 0..=6 {
            let mut peer = accept(&listener, HELLO).await;
            peer.read().await;
            if connections == 6 {
                return began.elapsed();
            }
            peer.send(r#"{"op":22,"d":{}}"#).await;
            peer.close(1011, "").await;
        }
        unreachable!("the loop returns")
    };
    let program = async {
        let interval = Duration::from_millis(20);
        let mut client = Client::builder(&url).reconnect_interval(interval).connect().await.unwrap();
        client.authenticate(token("alice"), Options::default()).await.unwrap();
        while client.next().await.is_some() {}
    };
    tokio::select! {
        () = program => panic!("the client has ended"),
        // Halves of 20, 40, 80, 160, 320 and 640 ms.
        took = server => assert!(took >= Duration::from_millis(630), "{took:?}"),
    }
}

/// A dead server behind a proxy closes nothing.
#[tokio::test]
async fn silent_server_is_probed_and_then_left() {
    const HELLO: &str = r#"{"op":10,"d":{"c_heartbeat_interval":100,"c_reconnect_interval":20,"rules":[]}}"#;
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let url = format!("ws://{}/", listener.local_addr().unwrap());
    let server = async {
        let mut peer = accept(&listener, HELLO).await;
        for _ in 0..3 {
            assert_eq!(peer.read().await, r#"{"op":1,"d":{}}"#, "a probe");
            peer.send(r#"{"op":11,"d":{}}"#).await;
            // The WebSocket layer answers the ping that follows the first op 1.
            _ = timeout(SILENCE_TIMEOUT / 10, peer.0.next()).await;
        }
        // No longer reads and writes.
        let next = accept(&listener, HELLO).await;
        (peer, next)
    };
    let program = async {
        let mut client = Client::connect(&url).await.unwrap();
        let connected = client.next().await;
        assert!(matches!(connected, Some(Event::Connected { is_initial_connection: true, .. })), "{connected:?}");
        let left = client.next().await;
        let Some(Event::Disconnected { code: 1006, reason, will_reconnect: true }) = &left else { panic!("{left:?}") };
        assert!(reason.contains("did not answer"), "{reason}");
        client
    };
    timeout(STEP_TIMEOUT, async { tokio::join!(server, program) }).await.expect("the end within STEP_TIMEOUT");
}

#[tokio::test]
async fn unreachable_server_is_reported_with_advice() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let error = Connection::connect(&format!("ws://{address}/")).await.unwrap_err().to_string();
    assert!(error.contains(&address.to_string()) && error.contains("Is the server running"), "{error}");
}

#[test]
fn frames_are_encoded_as_documented() {
    let data = to_raw_value(&json!({ "n": 1 })).unwrap();
    assert_eq!(codec::encode(0, &data, Some("A\"B")), r#"{"op":0,"d":{"n":1},"t":"A\"B"}"#);
    assert_eq!(codec::encode(3, &data, None), r#"{"op":3,"d":{"n":1}}"#);
    assert_eq!(codec::heartbeat_ack(), r#"{"op":11,"d":{}}"#);
}

#[test]
fn address_is_parsed_or_rejected_with_reason() {
    for url in [
        "ws://127.0.0.1:4000/",
        "ws://localhost",
        "ws://[::1]:4000/socket?x=1",
        "WS://example.org/",
        "wss://example.org",
    ] {
        assert!(Target::parse(url).is_ok(), "{url}");
    }
    for (url, hint) in [
        ("http://127.0.0.1:4000", "ws://"),
        ("127.0.0.1:4000", "ws://"),
        ("", "ws://"),
        ("ws://", "ws://"),
        ("ws://user:secret@example.org/", "token"),
    ] {
        let error = Target::parse(url).unwrap_err().to_string();
        assert!(error.contains(hint), "{url}: {error}");
    }
}

#[test]
fn close_codes_have_meaning_and_reconnect_rule() {
    for (code, reconnects) in [
        (1000, false),
        (1001, true),
        (1002, false),
        (1003, false),
        (close_code::NO_CODE, true),
        (close_code::LOST, true),
        (1007, false),
        (1008, false),
        (1009, false),
        (1011, true),
        (1012, true),
        (1013, true),
        (4000, true),
    ] {
        assert_eq!(close_code::should_reconnect(code), reconnects, "{code}");
        assert!(!close_code::meaning(code).is_empty() && !close_code::meaning(code).ends_with('.'), "{code}");
    }
}
