//! `GET /v1/events`: what happens to clients, as server-sent events. The portal for a backend.
//!
//! `id: STREAM-NUMBER`, `data: {"type":…,"connection":…,"user":…,"message":…}`. A stream begins with an id alone, so that
//! who loses it before the first event can resume as well. Where events are missing, and when a stream could not be
//! resumed, `event: missed` says so; it has an id too, so that a connection that breaks before it does not lose it.

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

use super::{State, error::ApiError, parameters};
use crate::{
    hub::portals::{Item, Portal, StreamId, Taken, Told, What},
    message::write_message,
};

/// Silence after which a comment is sent: a proxy in between must not take the stream for dead, and a peer that is gone
/// shows by not acknowledging it.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Events written in one piece, in bytes, about. More would only wait in another buffer.
const PIECE_BYTES: usize = 64 << 10;

/// How soon a browser's client comes back, in milliseconds.
const RETRY_MS: u32 = 1000;

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Asked {
    /// Everything, rather than a share of it.
    #[serde(default)]
    all: bool,
}

/// `GET /v1/events`
pub(super) fn events(
    FromState(api): State,
    asked: Result<Query<Asked>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let Query(asked) = asked.map_err(|rejection| parameters::bad(&rejection))?;
    let portals = api.hub.portals().ok_or(ApiError::NoPortals)?;
    let resumed = last(&headers)?.map(|(stream, number)| portals.resume(&stream, number));
    let portal = match resumed {
        Some(Some(portal)) => portal,
        Some(None) => portals.join_behind_unknown(asked.all).ok_or(ApiError::ManyPortals)?,
        None => portals.join(asked.all).ok_or(ApiError::ManyPortals)?,
    };
    let first = format!("retry: {RETRY_MS}\nid: {}-{}\n\n", portal.stream().as_str(), portal.number());
    let open = Open { portal, over: api.hub.over(), first: Some(first.into_bytes()) };
    let pieces = stream::unfold(open, |mut open| async {
        let piece = open.piece().await?;
        Some((Ok::<_, Infallible>(Bytes::from(piece)), open))
    });
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        // Some proxies would otherwise collect events before they pass them on.
        (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
    ];
    Ok((headers, Body::from_stream(pieces)).into_response())
}

/// Where a client says it was.
fn last(headers: &HeaderMap) -> Result<Option<(StreamId, u64)>, ApiError> {
    let Some(value) = headers.get(LAST_EVENT_ID).filter(|value| !value.is_empty()) else { return Ok(None) };
    let parts = value.to_str().ok().and_then(|text| text.rsplit_once('-'));
    match parts.map(|(stream, number)| (stream, number.parse())) {
        Some((stream, Ok(number))) => Ok(Some((StreamId::from_text(stream), number))),
        _ => Err(ApiError::Parameter("Last-Event-ID is the id of an event of this server, STREAM-NUMBER".into())),
    }
}

/// A stream of events.
struct Open {
    portal: Portal,
    /// Nothing more will happen.
    over: watch::Receiver<bool>,
    first: Option<Vec<u8>>,
}

impl Open {
    /// What is to be written next; `None` at the end.
    async fn piece(&mut self) -> Option<Vec<u8>> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        let taken = tokio::select! {
            biased;
            // First: what has happened is told to the last.
            taken = timeout(KEEP_ALIVE, self.portal.next()) => taken,
            _ = self.over.wait_for(|over| *over) => return None,
        };
        let Ok(taken) = taken else { return Some(b":\n\n".to_vec()) };
        let mut out = Vec::with_capacity(256);
        write(&mut out, self.portal.stream(), &taken?);
        while out.len() < PIECE_BYTES {
            match self.portal.try_next() {
                Some(taken) => write(&mut out, self.portal.stream(), &taken),
                None => break,
            }
        }
        Some(out)
    }
}

fn write(out: &mut Vec<u8>, stream: &StreamId, taken: &Taken) {
    out.extend_from_slice(format!("id: {}-{}\n", stream.as_str(), taken.number).as_bytes());
    match &taken.what {
        Item::Event(told) => {
            out.extend_from_slice(b"data: ");
            let from = out.len();
            write_told(out, told);
            // Between values JSON may have line ends, which would end the field; within strings it has none.
            out[from..].iter_mut().filter(|byte| matches!(**byte, b'\r' | b'\n')).for_each(|byte| *byte = b' ');
        }
        Item::Missed(count) => {
            let count = count.map_or_else(|| "null".to_owned(), |count| count.to_string());
            let data = format!("event: missed\ndata: {{\"type\":\"missed\",\"count\":{count}}}");
            out.extend_from_slice(data.as_bytes());
        }
    }
    out.extend_from_slice(b"\n\n");
}

fn write_told(out: &mut Vec<u8>, told: &Told) {
    let name = match &told.what {
        What::Connection => "connection",
        What::Authentication => "authentication",
        What::Message { .. } => "message",
        What::Disconnection => "disconnection",
    };
    out.extend_from_slice(format!("{{\"type\":\"{name}\",\"connection\":\"{}\"", told.connection_name()).as_bytes());
    if let Some(user) = &told.user {
        out.extend_from_slice(b",\"user\":");
        // A string always has a JSON form, and writing to a Vec cannot fail.
        serde_json::to_writer(&mut *out, user).expect("a string is JSON");
    }
    if let What::Message { op, data, kind } = &told.what {
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
        hub::portals::{At, Bounds, Portals},
        message::UserId,
        metrics::Metrics,
    };

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_has_nothing_to_say_says_so() {
        let pool = Portals::new(true, Bounds::default(), Arc::new(Metrics::new()));
        let over = watch::Sender::new(false);
        let mut open = Open { portal: pool.join(false).unwrap(), over: over.subscribe(), first: None };
        for _ in 0..3 {
            let began = tokio::time::Instant::now();
            assert_eq!(open.piece().await.unwrap(), b":\n\n");
            assert_eq!(began.elapsed().as_secs(), KEEP_ALIVE.as_secs());
        }
        over.send_replace(true);
        assert_eq!(open.piece().await, None);
    }

    fn written(what: Item) -> String {
        let mut out = Vec::new();
        write(&mut out, &StreamId::from_text("ab"), &Taken { number: 3, what });
        String::from_utf8(out).unwrap()
    }

    fn event(user: Option<&str>, what: What) -> Item {
        let user = user.map(|id| UserId::new(id).unwrap());
        Item::Event(Arc::new(Told { connection: 7, at: At::Here, user, what }))
    }

    #[test]
    fn an_event_is_written_as_documented() {
        assert_eq!(
            written(event(None, What::Connection)),
            "id: ab-3\ndata: {\"type\":\"connection\",\"connection\":\"7\"}\n\n"
        );
        let message = What::Message { op: 0, data: Some("{\n\r\n\"n\": 1}".into()), kind: Some("A\nB".into()) };
        assert_eq!(
            written(event(Some("al\"ice"), message)),
            "id: ab-3\ndata: {\"type\":\"message\",\
             \"connection\":\"7\",\"user\":\"al\\\"ice\",\"message\":{\"op\":0,\"d\":{   \"n\": 1},\"t\":\"A\\nB\"}}\n\n"
        );
        for (count, text) in [(Some(2), "2"), (None, "null")] {
            let expected = format!("id: ab-3\nevent: missed\ndata: {{\"type\":\"missed\",\"count\":{text}}}\n\n");
            assert_eq!(written(Item::Missed(count)), expected);
        }
    }

    #[test]
    fn where_a_client_was_is_read_from_its_last_event() {
        let read = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(LAST_EVENT_ID, HeaderValue::from_str(value).unwrap());
            last(&headers)
        };
        assert!(matches!(read(""), Ok(None)));
        assert!(matches!(last(&HeaderMap::new()), Ok(None)));
        assert!(matches!(read("0123456789abcdef-17"), Ok(Some((stream, 17))) if stream.as_str() == "0123456789abcdef"));
        for wrong in ["17", "ab-", "ab-x", "ab--1x", "ab-99999999999999999999"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
