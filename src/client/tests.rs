//! The client against a server made of a list of frames, and its half of the wire.

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

use super::{connection::EARLY_MESSAGES_MAX, dial::Target, *};
use crate::message::DeviceId;

/// Longest wait for an event. A busy machine may need seconds for what takes milliseconds.
const SOON: Duration = Duration::from_secs(120);
/// How long nothing has to happen to be called silence.
const A_MOMENT: Duration = Duration::from_millis(100);

const HELLO: &str = r#"{"op":10,"d":{"c_reconnect_interval":2500,"c_authentication_timeout":10000,"rules":[]}}"#;

/// The other end of a client's connection.
struct Peer(WebSocketStream<TcpStream>);

impl Peer {
    async fn send(&mut self, text: &str) {
        self.0.send(Message::text(text)).await.unwrap();
    }

    /// The next text from the client.
    async fn read(&mut self) -> String {
        match timeout(SOON, self.0.next()).await.expect("in time").expect("not closed").unwrap() {
            Message::Text(text) => text.as_str().to_owned(),
            other => panic!("{other:?}"),
        }
    }

    async fn is_silent(&mut self) -> bool {
        timeout(A_MOMENT, self.0.next()).await.is_err()
    }

    async fn close(&mut self, code: u16, reason: &'static str) {
        let frame = CloseFrame { code: CloseCode::from(code), reason: reason.into() };
        self.0.close(Some(frame)).await.unwrap();
    }
}

/// A client and the other end, where `first` is what the server says first.
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

/// The same, after the client was let in.
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

/// The next event as one text.
async fn next(client: &mut Connection) -> String {
    match timeout(SOON, client.next()).await.expect("in time").unwrap() {
        ConnectionEvent::Message { op, data, kind, position } => format!("{op} {data} {kind:?} {position:?}"),
        ConnectionEvent::Resumed { first, last, missed } => {
            let missed = missed.map(|missed| format!("{}-{} {}", missed.from, missed.to, missed.reason));
            format!("resumed {first}-{last} {}", missed.unwrap_or_default())
        }
        ConnectionEvent::Closed { code, reason } => format!("closed {code} {reason}"),
    }
}

#[tokio::test]
async fn the_greeting_is_kept() {
    let (client, _peer) = connected(HELLO).await;
    let hello = client.unwrap().hello().clone();
    assert_eq!(hello.reconnect_interval, Some(Duration::from_millis(2500)));
    assert_eq!(hello.authentication_timeout, Some(Duration::from_secs(10)));
    assert_eq!((hello.heartbeat_interval, hello.rules), (None, vec![]));
}

#[tokio::test]
async fn who_does_not_greet_is_no_server_of_ours() {
    let (client, _peer) = connected(r#"{"op":0,"d":{}}"#).await;
    assert!(matches!(client, Err(ClientError::Protocol(_))), "{client:?}");
}

#[tokio::test]
async fn the_version_is_announced_to_servers_that_insist() {
    let (client, mut peer) = connected(r#"{"op":10,"d":{"rules":["enforce_equal_versions"]}}"#).await;
    client.unwrap();
    assert_eq!(peer.read().await, r#"{"op":0,"d":{"v":"1.5.3"},"t":"CLIENT_VERSION"}"#);
}

#[tokio::test]
async fn an_authentication_carries_what_the_application_passed() {
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
async fn who_resumes_says_where_from_and_confirms_by_hand() {
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
    client.confirm(41).await.unwrap();
    assert_eq!(peer.read().await, r#"{"op":3,"d":{"s":41}}"#);
}

#[tokio::test]
async fn a_refusal_says_what_the_code_means() {
    let (client, mut peer) = connected(HELLO).await;
    let mut client = client.unwrap();
    let server = async {
        peer.read().await;
        peer.close(1008, "").await;
    };
    let (user, ()) = tokio::join!(client.authenticate(token("mallory"), true), server);
    let error = user.unwrap_err();
    assert_eq!(error, ClientError::Refused { code: 1008, reason: String::new() });
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

/// A receipt lets the server forget: it must not be sent while the application may still die with the message in hand.
#[tokio::test]
async fn a_receipt_waits_until_the_message_before_it_was_taken() {
    let (mut client, mut peer) = authenticated().await;
    peer.send(r#"{"op":0,"d":1}"#).await;
    peer.send(r#"{"op":1,"d":{}}"#).await;
    assert_eq!(next(&mut client).await, "0 1 None None");
    assert!(peer.is_silent().await, "confirmed what the application had only just been given");

    peer.send(r#"{"op":0,"d":2}"#).await;
    assert_eq!(next(&mut client).await, "0 2 None None");
    assert_eq!(peer.read().await, r#"{"op":11,"d":{}}"#);
}

/// The server holds deliveries back until then.
#[tokio::test]
async fn op_1_after_op_22_is_answered_before_the_program_takes_an_event() {
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
    // One that follows a message still waits for the program.
    peer.send(r#"{"op":0,"d":1}"#).await;
    peer.send(r#"{"op":1,"d":{}}"#).await;
    assert!(peer.is_silent().await);
    while !matches!(timeout(SOON, client.next()).await.unwrap(), Some(Event::Message(_))) {}
    _ = timeout(A_MOMENT, client.next()).await;
    assert_eq!(peer.read().await, r#"{"op":11,"d":{}}"#);
}

#[tokio::test]
async fn each_heartbeat_is_answered_once_and_a_dropped_wait_loses_none() {
    let (mut client, mut peer) = authenticated().await;
    for _ in 0..3 {
        peer.send(r#"{"op":1,"d":{"tries":1,"max":3}}"#).await;
    }
    // Dropped again and again, as in a `select!` with another branch that is busy.
    for _ in 0..20 {
        _ = timeout(Duration::from_millis(5), client.next()).await;
    }
    for _ in 0..3 {
        assert_eq!(peer.read().await, r#"{"op":11,"d":{}}"#);
    }
    assert!(peer.is_silent().await);
}

#[tokio::test]
async fn what_comes_before_the_acknowledgement_is_handed_out_after_it_in_order() {
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
    assert!(peer.is_silent().await, "confirmed what nobody had taken");
    assert_eq!(next(&mut client).await, "0 1 None None");
    assert_eq!(next(&mut client).await, "0 2 None None");
    assert_eq!(peer.read().await, r#"{"op":11,"d":{}}"#);
}

#[tokio::test]
async fn a_server_cannot_fill_the_memory_before_the_acknowledgement() {
    let (client, mut peer) = connected(HELLO).await;
    let mut client = client.unwrap();
    let server = async {
        for _ in 0..=EARLY_MESSAGES_MAX {
            peer.send(r#"{"op":0,"d":1}"#).await;
        }
    };
    let (user, ()) = tokio::join!(client.authenticate(token("alice"), true), server);
    assert!(matches!(user, Err(ClientError::Protocol(_))), "{user:?}");
}

#[tokio::test]
async fn another_greeting_changes_the_interval() {
    let (mut client, mut peer) = authenticated().await;
    peer.send(r#"{"op":10,"d":{"c_reconnect_interval":60000,"rules":[]}}"#).await;
    peer.send(r#"{"op":0,"d":1}"#).await;
    next(&mut client).await;
    assert_eq!(client.hello().reconnect_interval, Some(Duration::from_secs(60)));
}

#[tokio::test]
async fn an_end_stays_an_end() {
    let (mut client, mut peer) = authenticated().await;
    peer.send(r#"{"op":0,"d":1}"#).await;
    peer.close(1012, "back soon").await;
    assert_eq!(next(&mut client).await, "0 1 None None");
    for _ in 0..2 {
        assert_eq!(next(&mut client).await, "closed 1012 back soon");
        client.send("LATE", &json!({})).await.unwrap();
    }
    assert!(close::comes_back(1012));
}

#[tokio::test]
async fn a_connection_that_breaks_is_an_end_without_a_word() {
    let (mut client, peer) = authenticated().await;
    drop(peer);
    assert!(next(&mut client).await.starts_with("closed 1006 "));
}

#[tokio::test]
async fn a_frame_that_is_none_is_an_error() {
    for frame in ["", "no JSON", "[]", r#"{"d":{}}"#, r#"{"op":"0"}"#, r#"{"op":10,"d":7}"#] {
        let (mut client, mut peer) = authenticated().await;
        peer.send(frame).await;
        let event = timeout(SOON, client.next()).await.expect("in time");
        assert!(matches!(event, Err(ClientError::Protocol(_))), "{frame:?}: {event:?}");
    }
}

#[tokio::test]
async fn closing_says_goodbye() {
    let (client, mut peer) = authenticated().await;
    let server = async { timeout(SOON, peer.0.next()).await.expect("in time") };
    let ((), goodbye) = tokio::join!(client.close(), server);
    assert!(matches!(goodbye, Some(Ok(Message::Close(Some(frame)))) if frame.code == CloseCode::Normal));
}

#[tokio::test]
async fn nobody_there_is_said_with_a_question() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let error = Connection::connect(&format!("ws://{address}/")).await.unwrap_err().to_string();
    assert!(error.contains(&address.to_string()) && error.contains("Is the server running"), "{error}");
}

#[test]
fn frames_are_written_as_servers_read_them() {
    let data = to_raw_value(&json!({ "n": 1 })).unwrap();
    assert_eq!(frame::encode(0, &data, Some("A\"B")), r#"{"op":0,"d":{"n":1},"t":"A\"B"}"#);
    assert_eq!(frame::encode(3, &data, None), r#"{"op":3,"d":{"n":1}}"#);
    assert_eq!(frame::receipt(), r#"{"op":11,"d":{}}"#);
}

#[test]
fn an_address_names_scheme_host_port_and_path() {
    for url in ["ws://127.0.0.1:4000/", "ws://localhost", "ws://[::1]:4000/socket?x=1", "WS://example.org/"] {
        assert!(Target::parse(url).is_ok(), "{url}");
    }
    for (url, hint) in [
        ("wss://example.org/", "TLS"),
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
fn each_code_has_a_meaning_and_says_whether_to_come_back() {
    for (code, back) in [
        (1000, false),
        (1001, true),
        (1002, false),
        (1003, false),
        (close::NO_CODE, true),
        (close::LOST, true),
        (1007, false),
        (1008, false),
        (1009, false),
        (1011, true),
        (1012, true),
        (1013, true),
        (4000, true),
    ] {
        assert_eq!(close::comes_back(code), back, "{code}");
        assert!(!close::meaning(code).is_empty() && !close::meaning(code).ends_with('.'), "{code}");
    }
}
