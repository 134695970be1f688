//! Observes all client events of a server, without taking any from its portals.

use std::{collections::VecDeque, time::Duration};

use reqwest::Response;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::timeout;

use super::{Message, sse::Parser};
use crate::dispatcher::{DispatchError, Dispatcher};

/// Time without data after which the connection counts as broken. The server sends at least a comment every 15 s.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(45);

/// Receives copies of all client events over one connection, while it is open.
///
/// It does not reconnect: events that occur while no observer is connected are not kept.
pub struct Observer {
    response: Response,
    parser: Parser,
    events: VecDeque<ObservedEvent>,
}

/// Holds an event, and its parts.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ObservedEvent {
    /// The event as the server sent it, a JSON object.
    pub json: Box<RawValue>,
    /// Type: `connection`, `authentication`, `message`, `disconnection`, or one of a newer server.
    ///
    /// `dropped`: this observer was too slow, and missed `count` events.
    pub kind: String,
    /// Id of the connection; empty if there is none.
    pub connection: String,
    /// User id, if the client has authenticated.
    pub user: Option<String>,
    /// Reason of a disconnection, if there is one.
    pub reason: Option<String>,
    /// Message from the client.
    pub message: Option<Message>,
    /// Number of events that this observer has missed.
    pub count: Option<u64>,
}

/// States why a stream of events ended. A new observer may be connected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the stream of events ended: {0}")]
pub struct StreamEnd(String);

/// Mirrors the JSON of an event.
#[derive(Deserialize)]
struct EventData {
    #[serde(rename = "type", default)]
    kind: Option<String>,
    #[serde(default)]
    connection: String,
    #[serde(default)]
    user: Option<String>,
    #[serde(default)]
    reason: Option<String>,
    #[serde(default)]
    message: Option<Message>,
    #[serde(default)]
    count: Option<u64>,
}

impl Observer {
    /// Connects to the server of a dispatcher.
    ///
    /// # Errors
    /// Fails if the server cannot be reached, or rejects the request.
    pub async fn connect(dispatcher: &Dispatcher) -> Result<Self, DispatchError> {
        let response = dispatcher.open_stream(&["events"], &[("observe", "true")], None).await?;
        Ok(Self { response, parser: Parser::default(), events: VecDeque::new() })
    }

    /// Returns the next event. Cancel-safe, as in `select!`.
    ///
    /// # Errors
    /// When the stream has ended.
    pub async fn next(&mut self) -> Result<ObservedEvent, StreamEnd> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(event);
            }
            let chunk = match timeout(SILENCE_TIMEOUT, self.response.chunk()).await {
                Ok(Ok(Some(chunk))) => chunk,
                Ok(Ok(None)) => return Err(StreamEnd("the server closed it".into())),
                Ok(Err(error)) => return Err(StreamEnd(crate::logging::network_error(&error))),
                Err(_) => {
                    let seconds = SILENCE_TIMEOUT.as_secs();
                    return Err(StreamEnd(format!("the server sent nothing for {seconds} s")));
                }
            };
            let mut parsed = Vec::new();
            let result = self.parser.push(&chunk, &mut parsed);
            self.events.extend(parsed.into_iter().filter_map(|event| parse(&event.name, event.data?)));
            if result.is_err() && self.events.is_empty() {
                return Err(StreamEnd("the response is not a stream of events".into()));
            }
        }
    }
}

/// Parses an event; `None` if it is not a JSON object.
fn parse(name: &str, data: String) -> Option<ObservedEvent> {
    let EventData { kind, connection, user, reason, message, count } = serde_json::from_str(&data).ok()?;
    let kind = kind.unwrap_or_else(|| name.to_owned());
    let json = RawValue::from_string(data).ok()?;
    Some(ObservedEvent { json, kind, connection, user, reason, message, count })
}

impl std::fmt::Debug for Observer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Observer").finish_non_exhaustive()
    }
}
