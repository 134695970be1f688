//! Reads events in a background task, reconnects and resumes.

use std::time::Duration;

use reqwest::Response;
use serde::Deserialize;
use tokio::{sync::mpsc, time::timeout};

use super::{
    Event, Message, PortalItem,
    sse::{Parser, SseEvent},
};
use crate::{
    dispatcher::{DispatchError, Dispatcher},
    logging::sentence,
    util::backoff::Backoff,
};

/// Time without data after which the connection counts as broken. The server sends at least a comment every 15 s.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(45);

/// First delay before reconnecting, unless the server sends another.
const RECONNECT_DELAY: Duration = Duration::from_secs(1);

/// Mirrors the JSON of an event.
#[derive(Deserialize)]
struct EventData {
    #[serde(rename = "type")]
    kind: String,
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

/// Reads the events of a portal.
pub(super) struct Reader {
    dispatcher: Dispatcher,
    all: bool,
    /// Id of the last event that was forwarded, or that began the stream.
    last: Option<String>,
    reconnect_delay_max: Duration,
    backoff: Backoff,
}

impl Reader {
    pub(super) fn new(dispatcher: Dispatcher, all: bool, last: Option<String>, reconnect_delay_max: Duration) -> Self {
        let backoff = Backoff::new(RECONNECT_DELAY, reconnect_delay_max);
        Self { dispatcher, all, last, reconnect_delay_max, backoff }
    }

    /// Opens a stream of events, after the last one.
    pub(super) async fn open(&self) -> Result<Response, DispatchError> {
        let query = if self.all { &[("all", "true")][..] } else { &[] };
        let header = self.last.as_deref().map(|last| ("last-event-id", last));
        self.dispatcher.open_stream(&["events"], query, header).await
    }

    /// Forwards events until the program drops the portal.
    pub(super) async fn run(mut self, mut response: Response, events: mpsc::Sender<PortalItem>) {
        loop {
            let reason = tokio::select! {
                read = self.read(response, &events) => match read {
                    Some(reason) => reason,
                    None => return,
                },
                () = events.closed() => return,
            };
            tracing::debug!(%reason, "the portal lost its connection and reconnects");
            response = tokio::select! {
                reconnected = self.reconnect() => match reconnected {
                    Ok(response) => response,
                    Err(error) => {
                        _ = events.send(Err(error)).await;
                        return;
                    }
                },
                () = events.closed() => return,
            };
        }
    }

    async fn reconnect(&mut self) -> Result<Response, DispatchError> {
        loop {
            tokio::time::sleep(self.backoff.next()).await;
            match self.open().await {
                Ok(response) => return Ok(response),
                Err(error) if error.is_transient() => tracing::debug!(%error, "reconnect failed; retrying"),
                Err(error) => return Err(error),
            }
        }
    }

    /// Reads a stream to its end, and returns why it ended; `None` if the program has dropped the portal.
    async fn read(&mut self, mut response: Response, events: &mpsc::Sender<PortalItem>) -> Option<String> {
        let (mut parser, mut parsed) = (Parser::default(), Vec::new());
        loop {
            let chunk = match timeout(SILENCE_TIMEOUT, response.chunk()).await {
                Ok(Ok(Some(chunk))) => chunk,
                Ok(Ok(None)) => return Some("the stream ended".into()),
                Ok(Err(error)) => return Some(error.to_string()),
                Err(_) => return Some(format!("the server sent nothing for {} s", SILENCE_TIMEOUT.as_secs())),
            };
            self.backoff.reset();
            if parser.push(&chunk, &mut parsed).is_err() {
                return Some("the response is not a stream of events".into());
            }
            for event in parsed.drain(..) {
                if let Some(item) = self.convert(event) {
                    events.send(Ok(item)).await.ok()?;
                }
            }
        }
    }

    /// Applies an event's id and retry delay, and converts it to one for the program if it has data.
    fn convert(&mut self, sse: SseEvent) -> Option<(Event, Option<String>)> {
        if let Some(retry) = sse.retry {
            let delay = Duration::from_millis(retry).clamp(Duration::from_millis(10), self.reconnect_delay_max);
            self.backoff.set_min(delay);
        }
        if sse.id.is_some() {
            self.last.clone_from(&sse.id);
        }
        let data: EventData = match serde_json::from_str(&sse.data?) {
            Ok(data) => data,
            Err(error) => {
                tracing::warn!(error = %sentence(&error), "skipping an event that cannot be parsed");
                return None;
            }
        };
        let EventData { connection, user, .. } = data;
        let event = match (data.kind.as_str(), user, data.message) {
            ("connection", ..) => Event::Connection { connection },
            ("authentication", Some(user), _) => Event::Authentication { connection, user },
            ("message", user, Some(message)) => Event::Message { connection, user, message },
            ("disconnection", user, _) => Event::Disconnection { connection, user, reason: data.reason },
            ("missed", ..) => Event::Missed { count: data.count },
            // A newer server may send other types.
            _ => return None,
        };
        Some((event, sse.id))
    }
}
