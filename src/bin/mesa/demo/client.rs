//! Alice: a user who comes and goes, and looks at everything she gets.

use std::{net::SocketAddr, time::Duration};

use mesa::client::{Connection, ConnectionEvent, token};
use serde::Deserialize;

use super::{
    backend::Backend,
    tracker::{Arrival, Ledger},
};
use crate::error::Failure;

/// How long a message may take to arrive.
const ARRIVAL_TIMEOUT: Duration = Duration::from_secs(10);

/// Between two looks at whether the server has her receipt.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// One connection of Alice's.
pub struct Alice {
    client: Connection,
    /// Redelivered messages on this connection, counted by their positions.
    redelivered: u64,
}

/// The data of a message of this story.
#[derive(Deserialize)]
struct Numbered {
    n: u64,
}

impl Alice {
    /// Connects and says who she is.
    pub async fn connect(address: SocketAddr) -> Result<Self, Failure> {
        let mut client = Connection::connect(&format!("ws://{address}/")).await.map_err(Failure::because)?;
        let user = client.authenticate(token("alice"), true).await.map_err(Failure::because)?;
        if user.get("id").and_then(|id| id.as_str()) != Some("alice") {
            return Err(Failure::because(format!("the server took Alice for somebody else: {user:?}")));
        }
        Ok(Self { client, redelivered: 0 })
    }

    /// Reads until all that was sent has arrived, and returns what she saw. Everything must come in order, and what was
    /// `missed` must carry its position, counting from 1.
    pub async fn read(&mut self, ledger: &mut Ledger, missed: bool) -> Result<Vec<String>, Failure> {
        let mut seen = Vec::new();
        while ledger.arrived < ledger.sent {
            let event = tokio::time::timeout(ARRIVAL_TIMEOUT, self.client.next()).await.map_err(|_| {
                let due = ledger.arrived + 1;
                Failure::because(format!("message {due} did not arrive within {} s", ARRIVAL_TIMEOUT.as_secs()))
            })?;
            seen.push(self.look_at(event.map_err(Failure::because)?, ledger, missed)?);
        }
        Ok(seen)
    }

    fn look_at(&mut self, event: ConnectionEvent, ledger: &mut Ledger, missed: bool) -> Result<String, Failure> {
        let (data, position) = match event {
            ConnectionEvent::Message { data, position, .. } => (data, position),
            ConnectionEvent::Resumed { .. } => {
                return Err(Failure::because("Alice was told of a resume she had not asked for"));
            }
            ConnectionEvent::Closed { code, .. } => {
                let meaning = mesa::client::close_code::meaning(code);
                return Err(Failure::because(format!("Alice lost the connection ({code}): {meaning}")));
            }
        };
        let numbered: Numbered = serde_json::from_str(data.get())
            .map_err(|_| Failure::because(format!("Alice got something that nobody sent: {data}")))?;
        let arrival = ledger.arrive(numbered.n).map_err(Failure::because)?;
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
        let repeat = if arrival == Arrival::Repeat { " (again)" } else { "" };
        Ok(format!("{data}{}{repeat}", position.map_or(String::new(), |position| format!(" #{position}"))))
    }

    /// Stays until the server knows that she has everything, as any client does that lives on for a moment.
    pub async fn stay_until_confirmed(&mut self, backend: &Backend) -> Result<(), Failure> {
        let confirmed = async {
            while backend.pending().await? > 0 {
                tokio::select! {
                    // Asking for the next message is what confirms those before it.
                    event = self.client.next() => {
                        let event = event.map_err(Failure::because)?;
                        return Err(Failure::because(format!("Alice expected nothing more, and got {event:?}")));
                    }
                    () = tokio::time::sleep(LOOK_INTERVAL) => {}
                }
            }
            Ok(())
        };
        tokio::time::timeout(ARRIVAL_TIMEOUT, confirmed).await.unwrap_or_else(|_| {
            Err(Failure::because("the server still takes messages for unread that Alice has read and confirmed"))
        })
    }

    /// Says goodbye, and waits until the server has noticed.
    pub async fn leave(self, backend: &Backend) -> Result<(), Failure> {
        self.client.close().await;
        let noticed = async {
            while backend.online().await? {
                tokio::time::sleep(LOOK_INTERVAL).await;
            }
            Ok(())
        };
        tokio::time::timeout(ARRIVAL_TIMEOUT, noticed)
            .await
            .unwrap_or_else(|_| Err(Failure::because("the server did not notice that Alice has left")))
    }
}
