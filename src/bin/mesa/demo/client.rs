//! Defines the client of the demo, Alice, which checks every message that it receives.

use std::{net::SocketAddr, time::Duration};

use mesa::client::{Connection, ConnectionEvent, token};
use serde::Deserialize;

use super::{
    backend::Backend,
    tracker::{Arrival, Tracker},
};
use crate::error::Failure;

/// Longest time for a message to arrive.
const ARRIVAL_TIMEOUT: Duration = Duration::from_secs(10);

/// Interval between two queries of the server.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// One connection of Alice.
pub struct Alice {
    client: Connection,
    /// Number of messages of the backlog that this connection has received.
    redelivered: u64,
}

/// Data of a message.
#[derive(Deserialize)]
struct Numbered {
    n: u64,
}

impl Alice {
    /// Connects and authenticates as Alice.
    pub async fn connect(address: SocketAddr) -> Result<Self, Failure> {
        let mut client = Connection::connect(&format!("ws://{address}/")).await?;
        let user = client.authenticate(token("alice"), true).await?;
        if user.get("id").and_then(|id| id.as_str()) != Some("alice") {
            return Err(Failure::because(format!("the server authenticated another user than alice: {user:?}")));
        }
        Ok(Self { client, redelivered: 0 })
    }

    /// Reads until all sent messages have arrived, and returns them as text.
    ///
    /// They must arrive in order. With `missed`, each must have its position in the backlog, counted from 1.
    pub async fn read(&mut self, tracker: &mut Tracker, missed: bool) -> Result<Vec<String>, Failure> {
        let mut seen = Vec::new();
        while tracker.arrived < tracker.sent {
            let event = tokio::time::timeout(ARRIVAL_TIMEOUT, self.client.next()).await.map_err(|_| {
                let due = tracker.arrived + 1;
                Failure::because(format!("message {due} did not arrive within {} s", ARRIVAL_TIMEOUT.as_secs()))
            })?;
            seen.push(self.check(event?, tracker, missed)?);
        }
        Ok(seen)
    }

    fn check(&mut self, event: ConnectionEvent, tracker: &mut Tracker, missed: bool) -> Result<String, Failure> {
        let (data, position) = match event {
            ConnectionEvent::Message { data, position, .. } => (data, position),
            ConnectionEvent::Resumed { .. } => {
                return Err(Failure::because("Alice received a resume that she had not requested"));
            }
            ConnectionEvent::Closed { code, .. } => {
                let meaning = mesa::client::close_code::meaning(code);
                return Err(Failure::because(format!("Alice lost the connection ({code}): {meaning}")));
            }
        };
        let numbered: Numbered = serde_json::from_str(data.get())
            .map_err(|_| Failure::because(format!("Alice received a message that was never sent: {data}")))?;
        let arrival = tracker.arrive(numbered.n).map_err(Failure::because)?;
        let expected = missed.then_some(self.redelivered + 1);
        if position != expected {
            let found = position.map_or("none".into(), |position| position.to_string());
            let expected = expected.map_or("none".into(), |position| position.to_string());
            return Err(Failure::because(format!(
                "message {} arrived with position {found}, where {expected} was expected",
                numbered.n
            )));
        }
        self.redelivered = position.unwrap_or(self.redelivered);
        let repeat = if arrival == Arrival::Repeat { " (repeated)" } else { "" };
        Ok(format!("{data}{}{repeat}", position.map_or(String::new(), |position| format!(" #{position}"))))
    }

    /// Waits until the server has processed the acknowledgements.
    pub async fn wait_until_acknowledged(&mut self, backend: &Backend) -> Result<(), Failure> {
        let acknowledged = async {
            while backend.pending().await? > 0 {
                tokio::select! {
                    // `next` acknowledges the messages before.
                    event = self.client.next() => {
                        let event = event?;
                        return Err(Failure::because(format!("Alice expected no further message, but received {event:?}")));
                    }
                    () = tokio::time::sleep(POLL_INTERVAL) => {}
                }
            }
            Ok(())
        };
        tokio::time::timeout(ARRIVAL_TIMEOUT, acknowledged).await.unwrap_or_else(|_| {
            Err(Failure::because("messages that Alice has acknowledged are still pending at the server"))
        })
    }

    /// Closes the connection, and waits until Alice is offline at the server.
    pub async fn disconnect(self, backend: &Backend) -> Result<(), Failure> {
        self.client.close().await;
        let is_offline = async {
            while backend.online().await? {
                tokio::time::sleep(POLL_INTERVAL).await;
            }
            Ok(())
        };
        tokio::time::timeout(ARRIVAL_TIMEOUT, is_offline).await.unwrap_or_else(|_| {
            Err(Failure::because("Alice is still online at the server after she closed her connection"))
        })
    }
}
