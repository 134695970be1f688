//! Tests the dispatcher against a server that answers one request.

use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::JoinHandle,
};

use super::*;

const KEY: &str = "0123456789abcdef";

/// Holds a request: first line, head and body.
struct ReceivedRequest {
    line: String,
    head: String,
    body: String,
}

/// Answers one request with `status` and `body`.
async fn responder(status: &str, body: &str) -> (String, JoinHandle<ReceivedRequest>) {
    let length = body.len();
    respond(format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}")).await
}

/// Answers one request with these bytes.
async fn respond(answer: String) -> (String, JoinHandle<ReceivedRequest>) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let task = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut read = Vec::new();
        let request = loop {
            assert!(
                stream.read_buf(&mut read).await.unwrap() > 0,
                "expected a complete request before the connection ends"
            );
            let text = String::from_utf8(read.clone()).unwrap();
            if let Some(request) = complete(&text) {
                break request;
            }
        };
        stream.write_all(answer.as_bytes()).await.unwrap();
        request
    });
    (url, task)
}

/// Parses the request, once it is complete.
fn complete(text: &str) -> Option<ReceivedRequest> {
    let (head, body) = text.split_once("\r\n\r\n")?;
    let head = head.to_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).map_or(0, |n| n.parse().unwrap());
    let line = text.lines().next().unwrap_or_default().to_owned();
    (body.len() >= length).then(|| ReceivedRequest { line, head, body: body.to_owned() })
}

fn dispatcher(url: &str) -> Dispatcher {
    Dispatcher::new(url, KEY).unwrap()
}

fn id(id: &str) -> UserId {
    UserId::new(id).unwrap()
}

#[tokio::test]
async fn dispatch_sends_documented_request() {
    let answer = json!({ "recipients": 3, "online": 1, "offline": 1, "stored": 2, "duplicate": false,
        "rejected": [{ "user": "c", "reason": "quota" }], "addedLater": 1 });
    let (url, request) = responder("200 OK", &answer.to_string()).await;
    let mut message = Message::new("X", &json!({ "n": 1 })).unwrap();
    message.o.sync = false;
    let recipients = Recipients::Users(vec![id("a"), id("b")]);
    let result = dispatcher(&url).dispatch(&message, &recipients, &[id("c")]).await.unwrap();
    assert_eq!((result.recipients, result.online, result.offline, result.duplicate), (3, 1, 1, false));
    assert_eq!(result.stored, 2);
    assert_eq!(result.rejected, [Rejected { user: "c".into(), reason: "quota".into() }]);

    let request = request.await.unwrap();
    assert_eq!(request.line, "POST /v1/dispatch HTTP/1.1");
    assert!(request.head.contains(&format!("\r\nauthorization: bearer {KEY}")), "{}", request.head);
    assert!(request.head.contains("\r\ncontent-type: application/json"), "{}", request.head);
    let body: serde_json::Value = serde_json::from_str(&request.body).unwrap();
    let expected = json!({ "message": { "op": 0, "d": { "n": 1 }, "t": "X", "o": { "sync": false } },
        "recipients": ["a", "b"], "excluding": ["c"] });
    assert_eq!(body, expected);
}

#[tokio::test]
async fn broadcast_recipient_is_star() {
    let (url, request) = responder("200 OK", r#"{"recipients":0,"online":0,"offline":0}"#).await;
    let message = Message::new("X", &json!({})).unwrap();
    dispatcher(&url).dispatch(&message, &Recipients::Everyone, &[]).await.unwrap();
    let body = request.await.unwrap().body;
    assert_eq!(body, r#"{"message":{"op":0,"d":{},"t":"X"},"recipients":["*"]}"#);
}

#[tokio::test]
async fn each_call_uses_its_endpoint() {
    let user = r#"{"id":"a/b c","online":true,"connections":1,"pending":2,"pendingBytes":30,"lastSequence":7}"#;
    let (url, request) = responder("200 OK", user).await;
    let user = dispatcher(&url).user(&id("a/b c")).await.unwrap();
    assert_eq!((user.id.as_str(), user.pending, user.last_sequence), ("a/b c", 2, 7));
    assert_eq!(request.await.unwrap().line, "GET /v1/users/a%2Fb%20c HTTP/1.1");

    let (url, request) =
        responder("200 OK", r#"{"users":[{"id":"a","online":true,"pending":0}],"cursor":"x&y"}"#).await;
    let page = dispatcher(&url).users(true, Some("w&x"), Some(2)).await.unwrap();
    assert_eq!((page.users.len(), page.cursor.as_deref()), (1, Some("x&y")));
    assert_eq!(request.await.unwrap().line, "GET /v1/users?online=true&cursor=w%26x&limit=2 HTTP/1.1");

    let (url, request) = responder("200 OK", r#"{"users":[],"cursor":null}"#).await;
    dispatcher(&url).users(false, None, None).await.unwrap();
    assert_eq!(request.await.unwrap().line, "GET /v1/users HTTP/1.1");

    let (url, request) = responder("200 OK", r#"{"messages":[{"s":4,"op":0,"d":{"n":1.0},"t":"X"}]}"#).await;
    let page = dispatcher(&url).messages(&id("a"), 3, None).await.unwrap();
    assert_eq!((page.messages[0].s, page.messages[0].d.as_ref().unwrap().get()), (4, r#"{"n":1.0}"#));
    assert_eq!(request.await.unwrap().line, "GET /v1/users/a/messages?after=3 HTTP/1.1");

    let (url, request) = responder("200 OK", r#"{"cleared":5}"#).await;
    assert_eq!(dispatcher(&url).clear(&id("a")).await.unwrap(), Cleared { cleared: 5 });
    assert_eq!(request.await.unwrap().line, "DELETE /v1/users/a/messages HTTP/1.1");

    let (url, request) = responder("200 OK", r#"{"disconnected":2}"#).await;
    assert_eq!(dispatcher(&url).disconnect(&id("a")).await.unwrap(), Disconnected { disconnected: 2 });
    assert_eq!(request.await.unwrap().line, "POST /v1/users/a/disconnect HTTP/1.1");

    let (url, request) = responder("200 OK", r#"{"disconnected":0}"#).await;
    assert_eq!(dispatcher(&url).disconnect_with(&id("a"), "a&b c").await.unwrap().disconnected, 0);
    assert_eq!(request.await.unwrap().line, "POST /v1/users/a/disconnect?reason=a%26b+c HTTP/1.1");

    let (url, request) = responder("200 OK", r#"{"version":"1","ready":true}"#).await;
    assert!(dispatcher(&url).status().await.unwrap().ready);
    assert_eq!(request.await.unwrap().line, "GET /v1/status HTTP/1.1");
}

/// In a path `..` is a relative segment, even if it is escaped, so it must not be sent.
#[tokio::test]
async fn user_named_like_relative_path_is_rejected() {
    for name in [".", ".."] {
        let error = dispatcher("http://127.0.0.1:9").clear(&id(name)).await.unwrap_err();
        assert_eq!(error, DispatchError::Unaddressable(name.into()));
    }
    assert!(dispatcher("http://127.0.0.1:9").user_url(&id("..."), None).is_ok());
}

#[tokio::test]
async fn rejection_carries_server_message_and_hint() {
    let body = r#"{"error":{"code":"unauthorized","message":"no such key"}}"#;
    let (url, _request) = responder("401 Unauthorized", body).await;
    let error = dispatcher(&url).user(&id("a")).await.unwrap_err();
    assert!(matches!(&error, DispatchError::Rejected { status: 401, code, .. } if code == "unauthorized"), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("no such key") && text.contains("api.keys"), "{text}");
}

#[tokio::test]
async fn unreachable_server_is_reported_with_advice() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let text = dispatcher(&url).user(&id("a")).await.unwrap_err().to_string();
    assert!(text.contains(&format!("Is the server running at {url}?")), "{text}");
}

/// A port that speaks TLS answers plain HTTP with a sentence, which is the remedy.
#[tokio::test]
async fn response_of_tls_port_is_quoted() {
    let (url, _request) = responder("400 Bad Request", "This port speaks TLS: connect by https:// or wss://.\n").await;
    let text = dispatcher(&url).user(&id("a")).await.unwrap_err().to_string();
    assert!(text.contains("400 Bad Request") && text.contains("\"This port speaks TLS: connect by https://"), "{text}");
    let (url, _request) = responder("502 Bad Gateway", "<html>").await;
    let text = dispatcher(&url).user(&id("a")).await.unwrap_err().to_string();
    assert!(!text.contains("html"), "{text}");
}

#[tokio::test]
async fn port_without_tls_is_reported_with_remedy() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        stream
    });
    let error = dispatcher(&url).user(&id("a")).await.unwrap_err();
    assert!(matches!(&error, DispatchError::Tls { .. }) && error.to_string().contains("by http://"), "{error}");
    server.await.unwrap();
}

#[test]
fn failed_handshake_is_described_with_remedy() {
    let problem = |reason: &str| error::tls_problem(reason).unwrap_or_default();
    assert!(problem("invalid peer certificate: UnknownIssuer").contains("--ca FILE"));
    let expired = problem("invalid peer certificate: Expired");
    assert!(expired.contains("Expired") && !expired.contains("--ca"), "{expired}");
    assert!(problem("received fatal alert: ProtocolVersion").contains("by http://"));
    assert_eq!(error::tls_problem("connection refused"), None);
}

#[tokio::test]
async fn response_of_other_server_is_invalid() {
    for (status, body) in [
        ("200 OK", "<html>"),
        ("200 OK", ""),
        ("502 Bad Gateway", "<html>"),
        // The key must not be sent to the redirect's target.
        ("302 Found\r\nlocation: http://127.0.0.1:9/", ""),
    ] {
        let (url, _request) = responder(status, body).await;
        let error = dispatcher(&url).user(&id("a")).await.unwrap_err();
        assert!(matches!(error, DispatchError::InvalidResponse { .. }), "{status}: {error:?}");
    }
}

#[tokio::test]
async fn endless_response_is_bounded() {
    let body = " ".repeat(RESPONSE_BYTES_MAX + 1);
    let (url, request) = responder("200 OK", &body).await;
    let error = dispatcher(&url).user(&id("a")).await.unwrap_err();
    assert!(error.to_string().contains("16 MiB"), "{error}");
    request.abort();
}

#[tokio::test]
async fn broken_connection_reports_possible_acceptance() {
    let (url, _request) = respond("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{".into()).await;
    let error = dispatcher(&url).user(&id("a")).await.unwrap_err();
    assert!(matches!(error, DispatchError::Broken { .. }), "{error:?}");
    assert!(error.to_string().contains("may have been accepted"), "{error}");
}

#[test]
fn invalid_address_or_key_is_rejected_at_construction() {
    for url in ["", "127.0.0.1:4000", "ws://127.0.0.1:4000", "http://", "http://me:secret@127.0.0.1:4000"] {
        let error = Dispatcher::new(url, KEY).unwrap_err();
        assert!(matches!(error, DispatchError::Address(_)) && !error.to_string().contains("secret"), "{url}: {error}");
    }
    for key in ["", "with space", "new\nline", "ümlaut"] {
        assert!(matches!(Dispatcher::new("http://127.0.0.1:4000", key), Err(DispatchError::Key)), "{key:?}");
    }
    assert!(Dispatcher::new("https://example.org/prefix/", KEY).is_ok());
}

#[test]
fn path_prefix_is_used_and_key_is_hidden() {
    let bases = ["http://example.org/prefix", "http://example.org/prefix/", "http://example.org/prefix/v1"];
    for base in bases.into_iter().chain(["http://example.org/prefix/v1/"]) {
        let dispatcher = dispatcher(base);
        assert_eq!(dispatcher.url(&["users"]).unwrap().as_str(), "http://example.org/prefix/v1/users");
        assert!(!format!("{dispatcher:?}").contains(KEY));
    }
}
