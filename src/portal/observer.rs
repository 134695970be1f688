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
    /// Why the stream has ended, once the events before its end are taken.
    end: Option<StreamEnd>,
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
        Ok(Self { response, parser: Parser::default(), events: VecDeque::new(), end: None })
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
            if let Some(end) = &self.end {
                return Err(end.clone());
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
            if result.is_err() {
                // The rest of the chunk is lost, so a later one may begin within an event.
                self.end = Some(StreamEnd("the response is not a stream of events".into()));
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

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::{TcpListener, TcpStream},
    };

    use super::*;

    /// Connects an observer to a server that sends `body` and then nothing, and returns both.
    ///
    /// The body has no length, so the stream ends when the connection is dropped.
    async fn observe(body: &[u8]) -> (Observer, TcpStream) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let dispatcher =
            Dispatcher::new(&format!("http://{}", listener.local_addr().unwrap()), "0123456789abcdef").unwrap();
        let serve = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                assert!(stream.read_buf(&mut request).await.unwrap() > 0, "expected a complete request");
            }
            let head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";
            stream.write_all(&[head, body].concat()).await.unwrap();
            stream
        };
        let (observer, stream) = tokio::join!(Observer::connect(&dispatcher), serve);
        (observer.unwrap(), stream)
    }

    #[tokio::test]
    async fn event_has_every_part_that_the_server_sent() {
        let message = r#"{"type":"message","connection":"7","user":"alice","message":{"op":0,"t":"A","d":{"n":1}}}"#;
        let restart = r#"{"type":"disconnection","connection":"","user":"bob","reason":"server_restart"}"#;
        // Data that is not a JSON object is skipped. An event of a newer server may have its type in the name alone.
        let body = format!(
            "retry: 1000\n\ndata: {message}\n\ndata: {restart}\n\nevent: dropped\ndata: {{\"type\":\"dropped\",\"count\":3}}\
             \n\ndata: [1\n\nevent: newer\ndata: {{}}\n\n"
        );
        let (mut observer, stream) = observe(body.as_bytes()).await;
        let event = observer.next().await.unwrap();
        assert_eq!((event.json.get(), event.kind.as_str(), event.connection.as_str()), (message, "message", "7"));
        let of_alice = event.message.expect("a message");
        assert_eq!((event.user.as_deref(), of_alice.kind(), event.reason), (Some("alice"), "A", None));
        assert_eq!(of_alice.data.expect("data").get(), r#"{"n":1}"#);
        let event = observer.next().await.unwrap();
        assert_eq!((event.kind.as_str(), event.user.as_deref()), ("disconnection", Some("bob")));
        assert_eq!((event.reason.as_deref(), event.count), (Some("server_restart"), None));
        let event = observer.next().await.unwrap();
        assert_eq!((event.kind.as_str(), event.count), ("dropped", Some(3)));
        assert_eq!(observer.next().await.unwrap().kind, "newer");
        drop(stream);
        assert_eq!(observer.next().await.unwrap_err(), StreamEnd("the server closed it".into()));
    }

    #[tokio::test]
    async fn invalid_stream_ends_after_the_events_before_it() {
        let (mut observer, _stream) = observe(b"data: {\"type\":\"connection\"}\n\ndata: \xff\n\n").await;
        assert_eq!(observer.next().await.unwrap().kind, "connection");
        assert_eq!(
            observer.next().await.unwrap_err().to_string(),
            "the stream of events ended: the response is not a stream of events"
        );
    }

    #[tokio::test]
    async fn silent_server_ends_the_stream_after_45_seconds() {
        let (mut observer, _stream) = observe(b"").await;
        tokio::time::pause();
        let began = tokio::time::Instant::now();
        let end = observer.next().await.unwrap_err();
        assert_eq!(end.to_string(), "the stream of events ended: the server sent nothing for 45 s");
        assert_eq!(began.elapsed().as_secs(), SILENCE_TIMEOUT.as_secs());
    }
}
