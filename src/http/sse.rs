//! Streams client events to a backend as server-sent events (`GET /v1/events`).
//!
//! An event is `id: STREAM-NUMBER` and `data: {"type":…,"connection":…,"user":…,"message":…}`. A stream begins with an
//! id alone, so that a backend can also resume a stream that broke before the first event. `event: missed` reports
//! missing events, and a stream that could not be resumed. It has an id too, so that it is repeated after a resume.
//!
//! `?observe=true` sends a copy of every event instead, without ids and without a resume. `event: dropped` reports how
//! many a slow observer has missed.

use std::{convert::Infallible, time::Duration};

use axum::{
    body::{Body, Bytes},
    extract::{Query, State as FromState, rejection::QueryRejection},
    http::{HeaderMap, HeaderName, HeaderValue, header},
    response::{IntoResponse, Response},
};
use futures_util::stream;
use serde::Deserialize;
use tokio::{sync::watch, time::timeout};
use utoipa::{
    IntoParams,
    openapi::path::{Parameter, ParameterIn},
};

use super::{State, api::EVENT_STREAM, error::ApiError, parameters};
use crate::{
    hub::{
        Observed, Observer, SERVER_RESTART,
        portals::{ClientEvent, ClientEventKind, EventOrigin, Item, Portal, StreamId, TakenItem},
    },
    message::write_message,
};

/// Idle time after which a comment is sent, so that proxies do not close the stream.
///
/// A dead peer is detected because its TCP does not acknowledge the comment.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(15);

/// Size in bytes at which a chunk accepts no further event. More bytes would only wait in another buffer.
const CHUNK_BYTES_LIMIT: usize = 64 << 10;

/// Delay after which a browser's client reconnects, in milliseconds.
const RETRY_DELAY_MS: u32 = 1000;

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(super) struct EventParameters {
    /// Whether to send all events, rather than a share of them.
    #[serde(default)]
    all: bool,
    /// Whether to send copies of all events, and to take none from the portals. Not together with `all`.
    #[serde(default)]
    observe: bool,
}

/// Header that resumes a stream.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "describes the header that `last_event_id` reads")]
struct EventHeaders {
    /// `id` of the last event that the backend has processed.
    #[param(rename = "Last-Event-ID")]
    last_event_id: Option<String>,
}

/// Returns the parameters of the query, and of the headers, for the description of the API.
pub(super) fn documented_parameters() -> Vec<Parameter> {
    let mut parameters = EventParameters::into_params(|| Some(ParameterIn::Query));
    parameters.extend(EventHeaders::into_params(|| None));
    parameters
}

/// Serves `GET /v1/events`.
pub(super) fn events(
    FromState(api): State,
    query: Result<Query<EventParameters>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let Query(query) = query.map_err(|rejection| parameters::decode_error(&rejection))?;
    let drained = api.hub.drained();
    if query.observe {
        if query.all {
            let why = "observe=true sends all events, so it cannot be combined with all=true; omit one of them";
            return Err(ApiError::BadParameter(why.into()));
        }
        let observer = api.hub.observe().ok_or(ApiError::TooManyObservers)?;
        let first = Some(format!("retry: {RETRY_DELAY_MS}\n\n").into_bytes());
        return Ok(response(EventStream { source: Source::Observer(observer), drained, first }));
    }
    let portals = api.hub.portals().ok_or(ApiError::PortalsOff)?;
    let resumed = last_event_id(&headers)?.map(|(stream, number)| portals.resume(&stream, number));
    let portal = match resumed {
        Some(Some(portal)) => portal,
        Some(None) => portals.join_with_gap(query.all).ok_or(ApiError::TooManyPortals)?,
        None => portals.join(query.all).ok_or(ApiError::TooManyPortals)?,
    };
    let first = format!("retry: {RETRY_DELAY_MS}\nid: {}-{}\n\n", portal.stream().as_str(), portal.number());
    Ok(response(EventStream { source: Source::Portal(portal), drained, first: Some(first.into_bytes()) }))
}

/// Builds the response whose body is a stream of events.
fn response(events: EventStream) -> Response {
    let chunks = stream::unfold(events, |mut events| async {
        let chunk = events.chunk().await?;
        Some((Ok::<_, Infallible>(Bytes::from(chunk)), events))
    });
    let headers = [
        (header::CONTENT_TYPE, EVENT_STREAM),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        // Without it some proxies buffer events.
        (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
    ];
    (headers, Body::from_stream(chunks)).into_response()
}

/// Parses the header `Last-Event-ID`: the position after which a backend resumes.
fn last_event_id(headers: &HeaderMap) -> Result<Option<(StreamId, u64)>, ApiError> {
    let Some(value) = headers.get(LAST_EVENT_ID).filter(|value| !value.is_empty()) else { return Ok(None) };
    let parts = value.to_str().ok().and_then(|text| text.rsplit_once('-'));
    match parts.map(|(stream, number)| (stream, number.parse())) {
        Some((stream, Ok(number))) => Ok(Some((StreamId::from_text(stream), number))),
        _ => {
            Err(ApiError::BadParameter("Last-Event-ID must be the id of an event of this server, STREAM-NUMBER".into()))
        }
    }
}

/// Supplies the events of one stream.
enum Source {
    Portal(Portal),
    Observer(Observer),
}

impl Source {
    /// Waits for the next item and encodes it; `None` at the end. Cancel safe: dropping the future loses no event.
    async fn next(&mut self) -> Option<Vec<u8>> {
        let mut out = Vec::with_capacity(256);
        match self {
            Self::Portal(portal) => {
                let taken = portal.next().await?;
                write(&mut out, portal.stream(), &taken);
            }
            Self::Observer(observer) => write_observed(&mut out, &observer.next().await),
        }
        Some(out)
    }

    /// Encodes the next item, if there is one; false otherwise.
    fn try_next(&mut self, out: &mut Vec<u8>) -> bool {
        match self {
            Self::Portal(portal) => portal.try_next().map(|taken| write(out, portal.stream(), &taken)).is_some(),
            Self::Observer(observer) => observer.try_next().map(|item| write_observed(out, &item)).is_some(),
        }
    }
}

/// Encodes the events of one stream for its response body.
struct EventStream {
    source: Source,
    /// Becomes true when the hub has closed all connections, so that no more events follow.
    drained: watch::Receiver<bool>,
    /// The first chunk, until it is sent.
    first: Option<Vec<u8>>,
}

impl EventStream {
    /// Returns the next chunk; `None` at the end.
    async fn chunk(&mut self) -> Option<Vec<u8>> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        let next = tokio::select! {
            biased;
            next = timeout(KEEP_ALIVE_INTERVAL, self.source.next()) => next,
            // The last events may have been queued after the branch above was polled.
            _ = self.drained.wait_for(|drained| *drained) => Ok(Some(Vec::new())),
        };
        let Ok(next) = next else { return Some(b":\n\n".to_vec()) };
        let mut out = next?;
        while out.len() < CHUNK_BYTES_LIMIT && self.source.try_next(&mut out) {}
        (!out.is_empty()).then_some(out)
    }
}

fn write(out: &mut Vec<u8>, stream: &StreamId, taken: &TakenItem) {
    out.extend_from_slice(format!("id: {}-{}\n", stream.as_str(), taken.number).as_bytes());
    match &taken.item {
        Item::Event(event) => write_data(out, event),
        Item::Gap(count) => {
            let count = count.map_or_else(|| "null".to_owned(), |count| count.to_string());
            let data = format!("event: missed\ndata: {{\"type\":\"missed\",\"count\":{count}}}");
            out.extend_from_slice(data.as_bytes());
        }
    }
    out.extend_from_slice(b"\n\n");
}

fn write_observed(out: &mut Vec<u8>, item: &Observed) {
    match item {
        Observed::Event(event) => write_data(out, event),
        Observed::Dropped(count) => {
            let data = format!("event: dropped\ndata: {{\"type\":\"dropped\",\"count\":{count}}}");
            out.extend_from_slice(data.as_bytes());
        }
    }
    out.extend_from_slice(b"\n\n");
}

/// Writes the field `data` of an event.
fn write_data(out: &mut Vec<u8>, event: &ClientEvent) {
    out.extend_from_slice(b"data: ");
    let from = out.len();
    write_event(out, event);
    // JSON may have line ends between values, which would end the field; within strings it has none.
    out[from..].iter_mut().filter(|byte| matches!(**byte, b'\r' | b'\n')).for_each(|byte| *byte = b' ');
}

fn write_event(out: &mut Vec<u8>, event: &ClientEvent) {
    let name = match &event.kind {
        ClientEventKind::Connection => "connection",
        ClientEventKind::Authentication => "authentication",
        ClientEventKind::Message { .. } => "message",
        ClientEventKind::Disconnection => "disconnection",
    };
    out.extend_from_slice(format!("{{\"type\":\"{name}\",\"connection\":\"{}\"", event.connection_name()).as_bytes());
    if let Some(user) = &event.user {
        out.extend_from_slice(b",\"user\":");
        // A string always has a JSON form, and writing to a Vec cannot fail.
        serde_json::to_writer(&mut *out, user).expect("a string is JSON");
    }
    if event.origin == EventOrigin::PreviousStart {
        out.extend_from_slice(format!(",\"reason\":\"{SERVER_RESTART}\"").as_bytes());
    }
    if let ClientEventKind::Message { op, data, kind } = &event.kind {
        out.extend_from_slice(b",\"message\":");
        write_message(out, *op, data.as_deref(), kind.as_ref());
    }
    out.push(b'}');
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        hub::portals::{Bounds, Portals},
        message::UserId,
        metrics::Metrics,
    };

    #[tokio::test(start_paused = true)]
    async fn idle_event_stream_sends_comments_until_hub_is_drained() {
        let pool = Portals::new(true, Bounds::default(), Arc::new(Metrics::new()));
        let drained = watch::Sender::new(false);
        let mut events = EventStream {
            source: Source::Portal(pool.join(false).unwrap()),
            drained: drained.subscribe(),
            first: None,
        };
        for _ in 0..3 {
            let began = tokio::time::Instant::now();
            assert_eq!(events.chunk().await.unwrap(), b":\n\n");
            assert_eq!(began.elapsed().as_secs(), KEEP_ALIVE_INTERVAL.as_secs());
        }
        drained.send_replace(true);
        assert_eq!(events.chunk().await, None);
    }

    fn written(item: Item) -> String {
        let mut out = Vec::new();
        write(&mut out, &StreamId::from_text("ab"), &TakenItem { number: 3, item });
        String::from_utf8(out).unwrap()
    }

    fn event(user: Option<&str>, kind: ClientEventKind) -> Item {
        let user = user.map(|id| UserId::new(id).unwrap());
        Item::Event(Arc::new(ClientEvent { connection: 7, origin: EventOrigin::Local, user, kind }))
    }

    #[test]
    fn event_is_encoded_as_documented() {
        assert_eq!(
            written(event(None, ClientEventKind::Connection)),
            "id: ab-3\ndata: {\"type\":\"connection\",\"connection\":\"7\"}\n\n"
        );
        let alice = UserId::new("alice").unwrap();
        let restart = ClientEvent {
            connection: 0,
            origin: EventOrigin::PreviousStart,
            user: Some(alice),
            kind: ClientEventKind::Disconnection,
        };
        assert_eq!(
            written(Item::Event(Arc::new(restart))),
            "id: ab-3\ndata: {\"type\":\"disconnection\",\"connection\":\"\",\"user\":\"alice\",\
             \"reason\":\"server_restart\"}\n\n"
        );
        let message =
            ClientEventKind::Message { op: 0, data: Some("{\n\r\n\"n\": 1}".into()), kind: Some("A\nB".into()) };
        assert_eq!(
            written(event(Some("al\"ice"), message)),
            "id: ab-3\ndata: {\"type\":\"message\",\
             \"connection\":\"7\",\"user\":\"al\\\"ice\",\"message\":{\"op\":0,\"d\":{   \"n\": 1},\"t\":\"A\\nB\"}}\n\n"
        );
        for (count, text) in [(Some(2), "2"), (None, "null")] {
            let expected = format!("id: ab-3\nevent: missed\ndata: {{\"type\":\"missed\",\"count\":{text}}}\n\n");
            assert_eq!(written(Item::Gap(count)), expected);
        }
        let mut out = Vec::new();
        write_observed(&mut out, &Observed::Dropped(2));
        assert_eq!(String::from_utf8(out).unwrap(), "event: dropped\ndata: {\"type\":\"dropped\",\"count\":2}\n\n");
    }

    #[test]
    fn last_event_id_is_parsed_or_rejected() {
        let read = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(LAST_EVENT_ID, HeaderValue::from_str(value).unwrap());
            last_event_id(&headers)
        };
        assert!(matches!(read(""), Ok(None)));
        assert!(matches!(last_event_id(&HeaderMap::new()), Ok(None)));
        assert!(matches!(read("0123456789abcdef-17"), Ok(Some((stream, 17))) if stream.as_str() == "0123456789abcdef"));
        for wrong in ["17", "ab-", "ab-x", "ab--1x", "ab-99999999999999999999"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
