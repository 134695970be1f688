//! WebSocket client that reports each event of its connection. It answers op 1 as the published clients do.

use std::{net::SocketAddr, time::Duration};

use futures_util::{SinkExt as _, StreamExt as _};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{WebSocketStream, tungstenite::Message};

use crate::support::{socket::connect_websocket, wait::WAIT_TIMEOUT};

/// Event of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A message with this number was received.
    Message(u64),
    /// The server sent op 1, a heartbeat or acknowledgement request, and the client answered.
    Heartbeat,
    /// The server closed the connection with this code.
    Closed(u16),
    /// The connection ended without a close frame.
    Disconnected,
    /// Nothing was received within the time given.
    Timeout,
}

#[derive(Deserialize)]
struct Frame {
    op: u64,
    #[serde(default)]
    d: Value,
}

/// An authenticated connection.
#[derive(Debug)]
pub struct Client(WebSocketStream<TcpStream>);

impl Client {
    /// Connects and authenticates as `user`, within [`WAIT_TIMEOUT`].
    ///
    /// # Errors
    /// If the server does not accept the connection in time.
    pub async fn connect(address: SocketAddr, user: &str) -> Result<Self, String> {
        let connecting = Self::connect_untimed(address, user);
        timeout(WAIT_TIMEOUT, connecting).await.map_err(|_| format!("no connection within {WAIT_TIMEOUT:?}"))?
    }

    async fn connect_untimed(address: SocketAddr, user: &str) -> Result<Self, String> {
        let mut client = Self(connect_websocket(address).await?);
        client.send(&json!({ "op": 2, "d": { "token": user, "shouldSync": true } })).await?;
        loop {
            let message = client.0.next().await.ok_or("disconnected")?.map_err(|error| error.to_string())?;
            let Message::Text(text) = message else { return Err(format!("{message:?}")) };
            match serde_json::from_str::<Frame>(&text).map_err(|error| format!("{error}: {text}"))?.op {
                10 | 22 => {}
                // Op 1 follows op 22. The server delivers messages after the answer.
                1 => {
                    client.send(&json!({ "op": 11, "d": {} })).await?;
                    return Ok(client);
                }
                op => return Err(format!("expected op 10, 22 or 1 during authentication, found op {op}")),
            }
        }
    }

    /// Waits for the next event, at most for `limit`.
    pub async fn next(&mut self, limit: Duration) -> Event {
        loop {
            let Ok(next) = timeout(limit, self.0.next()).await else { return Event::Timeout };
            let Some(Ok(message)) = next else { return Event::Disconnected };
            let text = match message {
                Message::Text(text) => text,
                Message::Close(frame) => return Event::Closed(frame.map_or(1005, |frame| frame.code.into())),
                _ => continue,
            };
            let frame: Frame = serde_json::from_str(&text).expect("a frame is JSON");
            match frame.op {
                0 => return Event::Message(frame.d["n"].as_u64().expect("messages are numbered")),
                1 => {
                    // If the answer cannot be sent, the server has disconnected, and the next read reports it.
                    _ = self.send(&json!({ "op": 11, "d": {} })).await;
                    return Event::Heartbeat;
                }
                op => panic!("expected op 0 or 1, found op {op}"),
            }
        }
    }

    /// Reads until the connection ends. Returns the numbers of the messages, and the last event.
    pub async fn read_until_end(mut self, limit: Duration) -> (Vec<u64>, Event) {
        let mut numbers = Vec::new();
        loop {
            match self.next(limit).await {
                Event::Message(n) => numbers.push(n),
                Event::Heartbeat => {}
                end => return (numbers, end),
            }
        }
    }

    /// Reads until message `last` has been received. Returns the numbers of the messages.
    ///
    /// # Errors
    /// If the connection ends before that, or nothing is received for [`WAIT_TIMEOUT`].
    pub async fn read_until_message(&mut self, last: u64) -> Result<Vec<u64>, String> {
        let mut numbers = Vec::new();
        while numbers.last() != Some(&last) {
            match self.next(WAIT_TIMEOUT).await {
                Event::Message(n) => numbers.push(n),
                Event::Heartbeat => {}
                end => return Err(format!("{end:?} after {} messages, the last {:?}", numbers.len(), numbers.last())),
            }
        }
        Ok(numbers)
    }

    async fn send(&mut self, frame: &Value) -> Result<(), String> {
        self.0.send(Message::text(frame.to_string())).await.map_err(|error| error.to_string())
    }
}
