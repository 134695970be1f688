//! Tests NDJSON dispatch streams over sockets: long, malformed, slow and interrupted streams.
#![allow(missing_docs)]

mod raw_http;
#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "each suite uses a part of it")]
mod support;

use std::time::Duration;

use mesa::{
    dispatcher::Dispatch,
    message::{DispatchId, Message, Recipients, UserId},
};
use raw_http::open_stream;
use serde_json::{Value, json};
use support::{http::chunk, in_process::TestServer, wait::WAIT_TIMEOUT};
use tokio::{io::AsyncWriteExt as _, time::timeout};

fn user(name: &str) -> UserId {
    UserId::new(name).unwrap()
}

fn line(n: usize, user: &str) -> String {
    format!("{{\"message\":{{\"d\":{n}}},\"recipients\":[\"{user}\"]}}\n")
}

fn code(result: &Value) -> &str {
    result["error"]["code"].as_str().unwrap_or("")
}

// covers: G4
#[tokio::test(flavor = "multi_thread")]
async fn malformed_line_gets_an_error_result_and_the_stream_continues() {
    let server = TestServer::start(|config| config.limits.request_bytes = 1024).await;
    let (mut requests, mut results) = open_stream(&server, "").await;
    let long = format!("{{\"message\":{{\"d\":\"{}\"}},\"recipients\":[]}}\n", "x".repeat(3000));
    requests.send(&line(1, "alice")).await;
    requests.send("no JSON\n\n  \r\n{}\r\n").await;
    requests.send(&long[..2000]).await;
    requests.send(&long[2000..]).await;
    requests.send(&line(2, "alice")).await;
    requests.send("{\"message\":{\"o\":{\"sync\":false}},\"recipients\":[\"alice\",\"bob\"]}\n").await;
    requests.send("{\"message\":{\"op\":5,\"t\":\"DISCONNECT_CLIENT\"},\"recipients\":[\"alice\",\"\"]}\n").await;
    requests.0.write_all(b"2\r\n\xc3\n\r\n").await.unwrap();
    requests.send(line(3, "alice").trim_end()).await;
    requests.end().await;
    assert_eq!(results.head().await, "HTTP/1.1 200 OK");
    let results = results.rest().await;
    let stored = json!({"recipients": 1, "online": 0, "offline": 1, "stored": 1, "rejected": [], "duplicate": false});
    assert_eq!(results[0], stored);
    assert_eq!(results[1..4].iter().map(code).collect::<Vec<_>>(), ["bad_json", "bad_dispatch", "request_too_large"]);
    assert!(results[1]["error"]["message"].as_str().unwrap().contains("not JSON"), "{}", results[1]);
    assert_eq!(results[4], stored);
    assert_eq!(results[5]["offline"], 2);
    let disconnected = json!({"recipients": 2, "online": 0, "offline": 1, "stored": 0, "duplicate": false,
        "rejected": [{"user": "", "reason": "invalid"}]});
    assert_eq!(results[6], disconnected);
    assert_eq!(code(&results[7]), "bad_json");
    assert_eq!((&results[8], results.len()), (&stored, 9), "the last line needs no newline");
    assert_eq!(server.pending_numbers("alice").await, [1, 2, 3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn results_arrive_while_lines_are_sent() {
    let server = TestServer::start(|_| {}).await;
    let (mut requests, mut results) = open_stream(&server, "").await;
    assert_eq!(results.head().await, "HTTP/1.1 200 OK", "a response head before the first line");
    for n in 0..10 {
        requests.send(&line(n, "alice")).await;
        assert_eq!(results.next().await.unwrap()["offline"], 1);
        assert_eq!(server.pending_numbers("alice").await.len(), n + 1, "an answered dispatch is stored");
    }
    requests.end().await;
    assert_eq!(results.next().await, None);
    // The connection can be reused.
    requests.0.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    assert_eq!(results.head().await, "HTTP/1.1 200 OK");
}

#[tokio::test(flavor = "multi_thread")]
async fn expect_100_continue_returns_continue() {
    let server = TestServer::start(|_| {}).await;
    let (mut requests, mut results) = open_stream(&server, "Expect: 100-continue\r\n").await;
    assert_eq!(results.head().await, "HTTP/1.1 100 Continue");
    requests.send(&line(0, "alice")).await;
    requests.end().await;
    assert_eq!(results.head().await, "HTTP/1.1 200 OK");
    assert_eq!(results.rest().await.len(), 1);
}

/// The commit queue holds one operation, and other backends keep it full. The order of lines must not depend on free
/// space.
// covers: G2
#[tokio::test(flavor = "multi_thread")]
async fn lines_of_a_long_stream_keep_their_order_per_user() {
    const LINES: usize = 100_000;
    const USERS: usize = 50;
    let server = TestServer::start(|config| config.limits.queue = 1).await;
    let noise: Vec<_> = (0..4)
        .map(|_| {
            let dispatcher = server.dispatcher();
            let recipients = Recipients::Users(vec![user("noise")]);
            tokio::spawn(async move {
                let message = Message::new("NOISE", &json!(0)).unwrap();
                loop {
                    dispatcher.dispatch(&message, &recipients, &[]).await.unwrap();
                }
            })
        })
        .collect();
    let name = |n: usize| format!("user-{}", n % USERS);
    let (mut requests, mut results) = open_stream(&server, "").await;
    results.head().await;
    let send = async {
        let all: String = (0..LINES).map(|n| line(n, &name(n))).collect();
        // Chunks that rarely end at the end of a line.
        for piece in all.as_bytes().chunks(9973) {
            requests.send(std::str::from_utf8(piece).unwrap()).await;
        }
        requests.end().await;
    };
    let ((), results) = tokio::join!(send, results.rest());
    noise.iter().for_each(tokio::task::JoinHandle::abort);
    assert_eq!(results.len(), LINES);
    assert!(results.iter().all(|result| result["offline"] == 1));
    for of in 0..USERS {
        let expected: Vec<u64> = (of as u64..LINES as u64).step_by(USERS).collect();
        assert_eq!(server.pending_numbers(&name(of)).await, expected, "{}", name(of));
    }
}

/// One stream has synced messages, unsynced messages, and a disconnect at the end.
#[tokio::test(flavor = "multi_thread")]
async fn synced_and_unsynced_messages_keep_their_order() {
    let server = TestServer::start(|_| {}).await;
    let mut client = mesa::client::Connection::connect(&format!("ws://{}/", server.address)).await.unwrap();
    client.authenticate(mesa::client::token("alice"), true).await.unwrap();
    let (mut requests, mut results) = open_stream(&server, "").await;
    for n in 0..200 {
        let sync = if n % 3 == 0 { r#","o":{"sync":false}"# } else { "" };
        requests.send(&format!("{{\"message\":{{\"d\":{n}{sync}}},\"recipients\":[\"alice\"]}}\n")).await;
    }
    requests.send("{\"message\":{\"op\":5,\"t\":\"DISCONNECT_CLIENT\"},\"recipients\":[\"alice\"]}\n").await;
    requests.end().await;
    results.head().await;
    assert_eq!(results.rest().await.len(), 201);
    let (mut synced, mut unsynced) = (Vec::new(), Vec::new());
    let code = loop {
        match timeout(WAIT_TIMEOUT, client.next()).await.unwrap().unwrap() {
            mesa::client::ConnectionEvent::Message { data, .. } => {
                let n: usize = data.get().parse().unwrap();
                if n.is_multiple_of(3) { unsynced.push(n) } else { synced.push(n) }
            }
            mesa::client::ConnectionEvent::Closed { code, .. } => break code,
            other @ mesa::client::ConnectionEvent::Resumed { .. } => panic!("{other:?}"),
        }
    };
    assert_eq!(code, 1000);
    assert!(synced.is_sorted() && unsynced.is_sorted(), "{synced:?} {unsynced:?}");
    // Synced messages that were not sent before the disconnect stay pending.
    let rest = server.pending_numbers("alice").await;
    assert!(rest.iter().all(|n| n % 3 != 0), "{rest:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn unread_results_apply_backpressure_and_lose_nothing() {
    let server = TestServer::start(|config| config.sync.max_messages = 10_000_000).await;
    let (mut requests, mut results) = open_stream(&server, "").await;
    let piece: String = (0..500).map(|n| line(n, "alice")).collect();
    let piece = chunk(&piece);
    let mut sent: usize = 0;
    // Far more bytes than all buffers between client and server hold.
    let blocked = timeout(WAIT_TIMEOUT, async {
        while timeout(Duration::from_secs(3), requests.0.write_all(piece.as_bytes())).await.is_ok() {
            sent += 1;
            assert!(sent < 4_000, "the server read two million lines although no result was read");
        }
    });
    blocked.await.expect("backpressure within `WAIT_TIMEOUT`");
    drop(requests);
    results.head().await;
    for _ in 0..sent * 500 {
        assert_eq!(results.next().await.unwrap()["offline"], 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_read_before_a_shutdown_are_stored_and_answered() {
    let mut server = TestServer::start(|_| {}).await;
    let (mut requests, mut results) = open_stream(&server, "").await;
    results.head().await;
    let (stop, mut stopping) = tokio::sync::oneshot::channel();
    let send = async move {
        let piece: String = (0..100).map(|n| line(n, "alice")).collect();
        let piece = chunk(&piece);
        // Until the server closes the connection.
        while requests.0.write_all(piece.as_bytes()).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    let mut stop = Some(stop);
    let receive = async {
        let mut received = 0_usize;
        while let Some(result) = results.next().await {
            assert_eq!(result["offline"], 1, "{result}");
            received += 1;
            if received == 1000 {
                stop.take().map(|stop| stop.send(()));
            }
        }
        received
    };
    let shut_down = async {
        (&mut stopping).await.unwrap();
        server.begin_stop();
    };
    let ((), received, ()) = timeout(WAIT_TIMEOUT, async { tokio::join!(send, receive, shut_down) }).await.unwrap();
    server.stop().await;
    let again = Box::pin(server.restart()).await;
    assert_eq!(again.pending_numbers("alice").await.len(), received, "each answered dispatch is stored");
}

#[tokio::test(flavor = "multi_thread")]
async fn dispatch_all_returns_a_result_per_dispatch_in_order() {
    let server = TestServer::start(|config| config.limits.recipients = 3).await;
    let dispatch = |n: usize| {
        let to = if n % 1000 == 7 { vec![user("a"), user("b"), user("c"), user("d")] } else { vec![user("alice")] };
        let id = (n % 1000 == 9).then(|| DispatchId::new(&format!("id-{}", n % 3)).unwrap());
        let mut dispatch = Dispatch::new(Message::new("N", &n).unwrap(), Recipients::Users(to));
        dispatch.id = id;
        dispatch
    };
    let results = server.dispatcher().dispatch_all((0..5000).map(dispatch)).await.unwrap();
    assert_eq!(results.len(), 5000);
    for (n, result) in results.iter().enumerate() {
        match result {
            Err(error) => assert_eq!((n % 1000, error.code.as_str()), (7, "too_many_recipients")),
            // 9, 1009 and 2009 have three ids; 3009 and 4009 repeat the first two of them.
            Ok(result) => assert_eq!((result.offline, result.duplicate), (1, n == 3009 || n == 4009), "{n}"),
        }
    }
    let expected: Vec<u64> = (0..5000).filter(|n| n % 1000 != 7 && *n != 3009 && *n != 4009).collect();
    assert_eq!(server.pending_numbers("alice").await, expected);
    assert!(server.dispatcher().dispatch_all([]).await.unwrap().is_empty());
    let unauthorized =
        mesa::dispatcher::Dispatcher::new(&format!("http://{}", server.address), "another-key-of-16").unwrap();
    let error = unauthorized.dispatch_all((0..5000).map(dispatch)).await.unwrap_err().to_string();
    assert!(error.contains("unauthorized"), "{error}");
}
