//! Tests that unauthenticated clients can write little to the server's log: short lines, at a limited rate.

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::json;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

use crate::{
    WAIT_TIMEOUT,
    support::{server::Home, socket::connect_websocket},
};

#[tokio::test]
async fn malformed_frame_of_unauthenticated_client_is_logged_as_a_short_line() {
    // At level `info` the server would combine the three lines into one.
    let home = Home::with_settings("log: { level: 'mesa=debug' },");
    let server = home.start();
    let long = "x".repeat(60_000);
    for frame in [json!({ "op": long }), json!({ "op": 0, "t": { long.as_str(): 1 } }), json!(long)] {
        let mut socket = connect_websocket(server.address).await.unwrap();
        socket.send(Message::text(frame.to_string())).await.unwrap();
        // Reads until the server closes the connection.
        while let Some(Ok(_)) = timeout(WAIT_TIMEOUT, socket.next()).await.expect("the server closes the connection") {}
    }
    let log = home.wait_for_log(|log| log.matches("a client sent an invalid frame").count() == 3);
    let longest = log.lines().map(str::len).max().unwrap_or(0);
    assert!(longest < 600, "expected lines below 600 bytes, found one of {longest}");
}

/// Rounds of offending connections. Each round has one connection for each kind of offence.
const ROUNDS: usize = 40;

/// Log lines that the server may write for one kind of offence: one in 10 s, and the test takes less than a minute.
const LINES_MAX: usize = 6;

#[tokio::test]
async fn repeated_offences_of_unauthenticated_clients_are_logged_at_a_limited_rate() {
    let home = Home::with_settings("redisProtocol: { port: 0 },");
    let server = home.start();
    let lines = ["a client sent an invalid frame", "authentication failed", "a client broke the WebSocket protocol"];
    for n in 0..ROUNDS {
        let token = json!({ "op": 2, "d": { "token": "" } }).to_string();
        for message in [Message::text("nonsense"), Message::text(token), Message::Pong(vec![b'x'; 300].into())] {
            let mut socket = connect_websocket(server.address).await.unwrap();
            socket.send(message).await.unwrap_or_else(|error| panic!("{n}: {error}"));
            while let Some(Ok(_)) =
                timeout(WAIT_TIMEOUT, socket.next()).await.expect("the server closes the connection")
            {}
        }
    }
    // Log lines are written in order, so "stopped" follows every line about a client.
    server.stop(WAIT_TIMEOUT);
    let log = home.wait_for_log(|log| log.contains("stopped"));
    for line in lines {
        let count = log.matches(line).count();
        assert!((1..=LINES_MAX).contains(&count), "{count} lines, expected 1 to {LINES_MAX}: {line}\n{}", home.log());
    }
}
