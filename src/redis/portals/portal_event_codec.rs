//! Codec of portal events: the JSON of the original, with fields of ours that the original ignores.

use std::sync::Arc;

use crate::{
    cluster::portals::{ClientEvent, ClientEventKind, EventOrigin, PortalTarget},
    compat::portal::{EventMessage, PublishedEvent, kind},
    logging::json_error,
    message::{JsonString, UserId},
};

/// An event that was received.
#[derive(Debug)]
pub(in crate::redis) struct ReceivedEvent {
    pub event: Arc<ClientEvent>,
    /// The portal that it is for.
    pub portal: Option<String>,
    pub is_redispatch: bool,
}

/// Encodes an event as published by `server`.
pub(in crate::redis) fn encode(
    event: &ClientEvent,
    to: PortalTarget<'_>,
    server: &str,
    is_redispatch: bool,
) -> Vec<u8> {
    let (name, message) = match &event.kind {
        ClientEventKind::Connection => (kind::CONNECTION, None),
        ClientEventKind::Authentication => (kind::AUTHENTICATION, None),
        ClientEventKind::Message { op, data, kind } => {
            // Valid JSON, since it was parsed on receipt.
            let d = data.as_deref().and_then(|data| serde_json::from_str(data).ok());
            (kind::MESSAGE, Some(EventMessage { op: *op, d, t: kind.as_ref().map(JsonString::borrowed) }))
        }
        ClientEventKind::Disconnection => (kind::DISCONNECTION, None),
    };
    let user = event.user.as_ref().and_then(|user| serde_json::value::to_raw_value(user.as_str()).ok());
    let at = match &event.origin {
        EventOrigin::Server(at) if **at == *server => None,
        EventOrigin::Server(at) => Some(at.to_string()),
        EventOrigin::Local | EventOrigin::PreviousStart => None,
        EventOrigin::Original => Some(String::new()),
    };
    let published = PublishedEvent {
        r#type: name.to_owned(),
        message,
        client_id: user.as_deref(),
        portal_id: match to {
            PortalTarget::Unassigned => String::new(),
            PortalTarget::Local(portal) => format!("{server}.{portal}"),
            PortalTarget::Remote(portal) => portal.to_owned(),
        },
        from: Some(server.to_owned()),
        connection: (event.origin != EventOrigin::Original).then_some(event.connection),
        at,
        is_redispatch,
    };
    // Strings, numbers and JSON can always be encoded.
    serde_json::to_vec(&published).expect("an event is JSON")
}

/// Decodes an event. `None` if it is malformed or from `own`.
pub(in crate::redis) fn decode(text: &[u8], own: &str) -> Option<ReceivedEvent> {
    let published: PublishedEvent<'_> = serde_json::from_slice(text)
        .inspect_err(
            |error| tracing::warn!(error = %json_error(error), "a message on the channel of portal events is malformed and ignored"),
        )
        .ok()?;
    if published.from.as_deref() == Some(own) {
        return None;
    }
    let kind = match (published.r#type.as_str(), published.message) {
        (kind::CONNECTION, _) => ClientEventKind::Connection,
        (kind::AUTHENTICATION, _) => ClientEventKind::Authentication,
        (kind::MESSAGE, Some(EventMessage { op, d, t })) => {
            ClientEventKind::Message { op, data: d.map(|data| data.get().into()), kind: t.map(JsonString::into_owned) }
        }
        (kind::DISCONNECTION, _) => ClientEventKind::Disconnection,
        _ => return None,
    };
    let user = published.client_id.and_then(|id| serde_json::from_str::<String>(id.get()).ok());
    let at = match (published.at, published.from) {
        (Some(at), _) if at.is_empty() => EventOrigin::Original,
        (Some(at), _) | (None, Some(at)) => EventOrigin::Server(at.into()),
        (None, None) => EventOrigin::Original,
    };
    let event = ClientEvent {
        connection: published.connection.unwrap_or_default(),
        origin: at,
        user: user.and_then(|user| UserId::new(&user).ok()),
        kind,
    };
    let portal = (!published.portal_id.is_empty()).then_some(published.portal_id);
    Some(ReceivedEvent { event: Arc::new(event), portal, is_redispatch: published.is_redispatch })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn event_decodes_as_encoded_except_at_its_sender() {
        let kind = ClientEventKind::Message {
            op: 0,
            data: Some(r#"{"n": 1.0}"#.into()),
            kind: serde_json::from_str(r#""T\ud83d""#).ok(),
        };
        let event = ClientEvent {
            connection: 7,
            origin: EventOrigin::Server("1-a".into()),
            user: UserId::new("a\"").ok(),
            kind,
        };
        let text = encode(&event, PortalTarget::Remote("portal"), "1-a", true);
        let expected = r#"{"type":"message","message":{"op":0,"d":{"n": 1.0},"t":"T\ud83d"},"clientId":"a\"","portalId":"portal","from":"1-a","connection":7,"again":true}"#;
        assert_eq!(String::from_utf8(text.clone()).unwrap(), expected);
        assert!(decode(&text, "1-a").is_none());
        let received = decode(&text, "1-b").unwrap();
        assert_eq!(
            (&*received.event, received.portal.as_deref(), received.is_redispatch),
            (&event, Some("portal"), true)
        );
        // An event that another server publishes again stays the same event.
        let passed = encode(&event, PortalTarget::Local("x"), "1-b", true);
        assert_eq!(*decode(&passed, "1-c").unwrap().event, event);
        let original = decode(br#"{"type":"disconnection","clientId":"a","portalId":"p"}"#, "1-a").unwrap();
        assert_eq!(
            (&original.event.origin, &original.event.kind),
            (&EventOrigin::Original, &ClientEventKind::Disconnection)
        );
        let passed = encode(&original.event, PortalTarget::Unassigned, "1-b", false);
        assert_eq!(*decode(&passed, "1-c").unwrap().event, *original.event);
        assert!(decode(b"{", "1-a").is_none() && decode(br#"{"type":"x"}"#, "1-a").is_none());
        assert_eq!(decode(br#"{"type":"connection","clientId":7}"#, "1-a").unwrap().event.user, None);
    }
}
