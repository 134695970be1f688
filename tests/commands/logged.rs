//! `mesa serve`: what is in its log, and what becomes of the server when the log cannot be written.

use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::json;
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::tungstenite::Message;

use crate::support::server::Home;

/// Longer than any answer may take.
const PATIENCE: Duration = Duration::from_secs(120);

#[tokio::test]
async fn frame_of_a_stranger_is_logged_as_a_short_line() {
    // At `info` they would be one line.
    let home = Home::with("log: { level: 'mesa=debug' },");
    let server = home.start();
    let long = "x".repeat(60_000);
    for frame in [json!({ "op": long }), json!({ "op": 0, "t": { long.as_str(): 1 } }), json!(long)] {
        let stream = TcpStream::connect(server.address).await.unwrap();
        let url = format!("ws://{}/", server.address);
        let (mut socket, _) = tokio_tungstenite::client_async(url, stream).await.unwrap();
        socket.send(Message::text(frame.to_string())).await.unwrap();
        // Until the server closes the connection.
        while let Some(Ok(_)) = timeout(PATIENCE, socket.next()).await.expect("in time") {}
    }
    let log = home.log_once(|log| log.matches("a client sent a frame that cannot be taken").count() == 3);
    let longest = log.lines().map(str::len).max().unwrap_or(0);
    assert!(longest < 600, "a line of {longest} bytes");
}

/// What strangers do, how often, and the lines that they may cause: one in ten seconds, in less than a minute.
const STRANGERS: usize = 40;
const LINES_MAX: usize = 6;

#[tokio::test]
async fn strangers_cause_few_lines_and_their_number_is_logged() {
    let home = Home::with("wire: { port: 0 },");
    let server = home.start();
    let lines = [
        "a client sent a frame that cannot be taken",
        "authentication failed",
        "a client broke the WebSocket protocol",
    ];
    for n in 0..STRANGERS {
        let token = json!({ "op": 2, "d": { "token": "" } }).to_string();
        for message in [Message::text("nonsense"), Message::text(token), Message::Pong(vec![b'x'; 300].into())] {
            let stream = TcpStream::connect(server.address).await.unwrap();
            let url = format!("ws://{}/", server.address);
            let (mut socket, _) = tokio_tungstenite::client_async(url, stream).await.unwrap();
            socket.send(message).await.unwrap_or_else(|error| panic!("{n}: {error}"));
            while let Some(Ok(_)) = timeout(PATIENCE, socket.next()).await.expect("in time") {}
        }
    }
    // Written in order: behind the last line of a stranger.
    server.terminate();
    assert!(server.process.wait(PATIENCE).success());
    let log = home.log_once(|log| log.contains("stopped"));
    for line in lines {
        let count = log.matches(line).count();
        assert!((1..=LINES_MAX).contains(&count), "{count} lines: {line}\n{}", home.log());
    }
}
