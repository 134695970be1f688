//! The task that reads events, comes back when it has lost the server, and names where it was.

use std::time::Duration;

use reqwest::Response;
use serde::Deserialize;
use tokio::{sync::mpsc, time::timeout};

use super::{
    Event, Handed, Message,
    sse::{Parser, Sent},
};
use crate::{
    dispatcher::{DispatchError, Dispatcher, jittered},
    logging::sentence,
};

/// A server says something every 15 s; one that is silent for so long is gone.
const SILENCE_MAX: Duration = Duration::from_secs(45);

/// The first pause before coming back, unless the server says another.
const PAUSE: Duration = Duration::from_secs(1);

/// An event as it is written.
#[derive(Deserialize)]
struct Told {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    connection: String,
    #[serde(default)]
    user: Option<String>,
    #[serde(default)]
    message: Option<Message>,
    #[serde(default)]
    count: Option<u64>,
}

/// A portal's reading of events.
pub(super) struct Reading {
    dispatcher: Dispatcher,
    all: bool,
    /// The id of the last event that was handed on, or that the stream began with.
    last: Option<String>,
    pause: Duration,
    pause_max: Duration,
    attempts: u32,
}

impl Reading {
    pub(super) fn new(dispatcher: Dispatcher, all: bool, last: Option<String>, pause_max: Duration) -> Self {
        Self { dispatcher, all, last, pause: PAUSE, pause_max, attempts: 0 }
    }

    /// Asks for events, behind the last one.
    pub(super) async fn open(&self) -> Result<Response, DispatchError> {
        let query = if self.all { &[("all", "true")][..] } else { &[] };
        let header = self.last.as_deref().map(|last| ("last-event-id", last));
        self.dispatcher.open(&["events"], query, header).await
    }

    /// Hands on what comes, for as long as somebody wants it.
    pub(super) async fn run(mut self, mut response: Response, events: mpsc::Sender<Handed>) {
        loop {
            let lost = tokio::select! {
                read = self.read(response, &events) => match read {
                    Some(lost) => lost,
                    None => return,
                },
                () = events.closed() => return,
            };
            tracing::debug!(%lost, "a portal has lost the server");
            response = tokio::select! {
                came_back = self.come_back() => match came_back {
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

    async fn come_back(&mut self) -> Result<Response, DispatchError> {
        loop {
            let base = self.pause.saturating_mul(1 << self.attempts.min(16)).min(self.pause_max.max(self.pause));
            self.attempts = self.attempts.saturating_add(1);
            tokio::time::sleep(jittered(base)).await;
            match self.open().await {
                Ok(response) => return Ok(response),
                Err(error) if error.may_pass() => tracing::debug!(%error, "not yet"),
                Err(error) => return Err(error),
            }
        }
    }

    /// Reads to the end of a stream, and gives why it ended; `None` where nobody wants more.
    async fn read(&mut self, mut response: Response, events: &mpsc::Sender<Handed>) -> Option<String> {
        let (mut parser, mut sent) = (Parser::default(), Vec::new());
        loop {
            let piece = match timeout(SILENCE_MAX, response.chunk()).await {
                Ok(Ok(Some(piece))) => piece,
                Ok(Ok(None)) => return Some("the stream ended".into()),
                Ok(Err(error)) => return Some(error.to_string()),
                Err(_) => return Some("the server is silent".into()),
            };
            self.attempts = 0;
            if parser.take(&piece, &mut sent).is_err() {
                return Some("it is no stream of events".into());
            }
            for sent in sent.drain(..) {
                let handed = self.note(sent);
                if let Some(handed) = handed {
                    events.send(Ok(handed)).await.ok()?;
                }
            }
        }
    }

    /// Takes note of what an event says of the stream; gives it if it says something to the program.
    fn note(&mut self, sent: Sent) -> Option<(Event, Option<String>)> {
        if let Some(retry) = sent.retry {
            self.pause = Duration::from_millis(retry).clamp(Duration::from_millis(10), self.pause_max);
        }
        if sent.id.is_some() {
            self.last.clone_from(&sent.id);
        }
        let told: Told = match serde_json::from_str(&sent.data?) {
            Ok(told) => told,
            Err(error) => {
                tracing::warn!(error = %sentence(&error), "an event cannot be read, and is passed over");
                return None;
            }
        };
        let Told { connection, user, .. } = told;
        let event = match (told.kind.as_str(), user, told.message) {
            ("connection", ..) => Event::Connection { connection },
            ("authentication", Some(user), _) => Event::Authentication { connection, user },
            ("message", user, Some(message)) => Event::Message { connection, user, message },
            ("disconnection", user, _) => Event::Disconnection { connection, user },
            ("missed", ..) => Event::Missed { count: told.count },
            // A newer server may tell of more.
            _ => return None,
        };
        Some((event, sent.id))
    }
}
