//! A client that tells all that happens to its connection, and answers heartbeats and receipts as the published ones do.

use std::{net::SocketAddr, time::Duration};

use futures_util::{SinkExt as _, StreamExt as _};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{WebSocketStream, tungstenite::Message};

/// What happens to a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A message with this number came.
    Message(u64),
    /// The server asked whether the client is there, and was answered.
    Asked,
    /// The server closed, with this code.
    Closed(u16),
    /// The connection is gone without a word.
    Gone,
    /// Nothing came within the time given.
    Silence,
}

#[derive(Deserialize)]
struct Frame {
    op: u64,
    #[serde(default)]
    d: Value,
}

/// A connection that is authenticated.
#[derive(Debug)]
pub struct Client(WebSocketStream<TcpStream>);

impl Client {
    /// Connects as `user`, within 120 s.
    ///
    /// # Errors
    /// When the server does not take it.
    pub async fn connect(address: SocketAddr, user: &str) -> Result<Self, String> {
        let connecting = Self::connect_in_time(address, user);
        timeout(Duration::from_secs(120), connecting).await.map_err(|_| "no connection within 120 s")?
    }

    async fn connect_in_time(address: SocketAddr, user: &str) -> Result<Self, String> {
        let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
        let connected = tokio_tungstenite::client_async(format!("ws://{address}/"), stream).await;
        let mut client = Self(connected.map_err(|error| error.to_string())?.0);
        client.send(&json!({ "op": 2, "d": { "token": user, "shouldSync": true } })).await?;
        loop {
            let message = client.0.next().await.ok_or("gone")?.map_err(|error| error.to_string())?;
            let Message::Text(text) = message else { return Err(format!("{message:?}")) };
            match serde_json::from_str::<Frame>(&text).map_err(|error| format!("{error}: {text}"))?.op {
                10 | 22 => {}
                // It follows op 22, and deliveries start when it is answered.
                1 => {
                    client.send(&json!({ "op": 11, "d": {} })).await?;
                    return Ok(client);
                }
                op => return Err(format!("op {op} before the authentication was answered")),
            }
        }
    }

    /// What happens next, within `patience`.
    pub async fn next(&mut self, patience: Duration) -> Event {
        loop {
            let Ok(next) = timeout(patience, self.0.next()).await else { return Event::Silence };
            let Some(Ok(message)) = next else { return Event::Gone };
            let text = match message {
                Message::Text(text) => text,
                Message::Close(frame) => return Event::Closed(frame.map_or(1005, |frame| frame.code.into())),
                _ => continue,
            };
            let frame: Frame = serde_json::from_str(&text).expect("a frame is JSON");
            match frame.op {
                0 => return Event::Message(frame.d["n"].as_u64().expect("messages are numbered")),
                1 => {
                    // Where this fails the server has gone in the meantime: the next read tells.
                    _ = self.send(&json!({ "op": 11, "d": {} })).await;
                    return Event::Asked;
                }
                op => panic!("op {op} among messages"),
            }
        }
    }

    /// Reads until the connection ends; what came, and how it ended.
    pub async fn until_the_end(mut self, patience: Duration) -> (Vec<u64>, Event) {
        let mut numbers = Vec::new();
        loop {
            match self.next(patience).await {
                Event::Message(n) => numbers.push(n),
                Event::Asked => {}
                end => return (numbers, end),
            }
        }
    }

    /// Reads until message `last` has come; all that came until then.
    ///
    /// # Errors
    /// When the connection ends before that, or nothing comes for twenty seconds.
    pub async fn until_message(&mut self, last: u64) -> Result<Vec<u64>, String> {
        let mut numbers = Vec::new();
        while numbers.last() != Some(&last) {
            match self.next(Duration::from_secs(20)).await {
                Event::Message(n) => numbers.push(n),
                Event::Asked => {}
                end => return Err(format!("{end:?} after {} messages, the last {:?}", numbers.len(), numbers.last())),
            }
        }
        Ok(numbers)
    }

    async fn send(&mut self, frame: &Value) -> Result<(), String> {
        self.0.send(Message::text(frame.to_string())).await.map_err(|error| error.to_string())
    }
}
