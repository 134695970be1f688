//! Tests that a dispatch is traced, with a small collector.

use std::{
    fmt::Write as _,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpListener,
    sync::mpsc,
    thread,
    time::Duration,
};

use tracing_subscriber::layer::SubscriberExt as _;

use super::*;
use crate::telemetry::Traces;

/// Time for a span to arrive at the collector.
const WAIT_TIMEOUT: Duration = Duration::from_secs(30);

const TRACE: [u8; 16] =
    [0x4b, 0xf9, 0x2f, 0x35, 0x77, 0xb3, 0x4d, 0xa6, 0xa3, 0xce, 0x92, 0x9d, 0x0e, 0x0e, 0x47, 0x36];
const PARENT: [u8; 8] = [0x00, 0xf0, 0x67, 0xaa, 0x0b, 0xa9, 0x02, 0xb7];

fn hex(bytes: &[u8]) -> String {
    // Writing to a String cannot fail.
    bytes.iter().fold(String::new(), |mut text, byte| {
        _ = write!(text, "{byte:02x}");
        text
    })
}

/// Starts a collector that passes on the head and the body of each request.
fn collector() -> (String, mpsc::Receiver<(String, Vec<u8>)>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/v1/traces", listener.local_addr().unwrap());
    let (sender, received) = mpsc::channel();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = BufReader::new(stream.unwrap());
            let (mut head, mut length) = (String::new(), 0);
            while stream.read_line(&mut head).unwrap() > 2 {
                let last = head.lines().last().unwrap_or_default().to_ascii_lowercase();
                length = last.strip_prefix("content-length: ").map_or(length, |length| length.parse().unwrap());
            }
            let mut body = vec![0; length];
            stream.read_exact(&mut body).unwrap();
            stream.get_mut().write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").unwrap();
            if sender.send((head, body)).is_err() {
                return;
            }
        }
    });
    (url, received)
}

/// Runs `calls` while a collector receives spans; returns the first request to the collector.
fn traced(calls: impl AsyncFnOnce(&TestApi)) -> (String, Vec<u8>) {
    let (url, received) = collector();
    let traces = Traces::to(&url, "my-mesa").unwrap();
    let subscriber = tracing_subscriber::registry().with(traces.layer());
    tracing::subscriber::with_default(subscriber, || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { calls(&TestApi::new()).await });
    });
    // Sends the spans.
    traces.shutdown();
    received.recv_timeout(WAIT_TIMEOUT).expect("spans arrive")
}

#[test]
fn dispatch_is_traced_as_a_child_of_its_traceparent() {
    let (head, body) = traced(async |api| {
        let parent = format!("00-{}-{}-01", hex(&TRACE), hex(&PARENT));
        let body = r#"{"message":{"d":1},"recipients":["alice"]}"#;
        let answer = api.call("POST", "/v1/dispatch", &[("traceparent", &parent)], body).await;
        assert_eq!(answer.status, StatusCode::OK);
    });
    assert!(head.starts_with("POST /v1/traces ") && head.contains("application/x-protobuf"), "{head}");
    let count = |part: &[u8]| body.windows(part.len()).filter(|window| *window == part).count();
    for name in ["request", "dispatch", "commit", "my-mesa", "/v1/dispatch"] {
        assert!(count(name.as_bytes()) > 0, "no {name} in {}", String::from_utf8_lossy(&body));
    }
    assert_eq!(count(&TRACE), 3, "three spans of the trace of the caller");
    assert_eq!(count(&PARENT), 1, "the request is a child of the span of the caller");
}

#[test]
fn span_of_a_request_has_excerpts_of_what_a_stranger_sends() {
    let (_, body) = traced(async |api| {
        let (method, path) = ("M".repeat(10_000), "/p".repeat(5_000));
        let answer = api.call(&method, &path, &[("authorization", "")], Body::empty()).await;
        assert!(answer.status.is_client_error(), "{}", answer.status);
    });
    assert!(body.len() < 1000, "a span of {} bytes", body.len());
}
