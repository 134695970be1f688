//! Parses a dispatch from JSON. Borrows from the text where it can, and never parses a message's data.

use std::{borrow::Cow, fmt, marker::PhantomData, time::Duration};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor, value::MapAccessDeserializer},
};
use serde_json::value::RawValue;

use super::super::error::ApiError;
use crate::{
    hub::{Dispatch, Hub, Outcome, Rejected},
    logging::{json_error, utf8_error},
    message::{CollapseKey, DispatchId, EVERYONE, JsonString, Options, Payload, Recipients, UserId, surrogates},
};

/// Opcode of internal events; [`DISCONNECT_CLIENT`] is the only one.
const INTERNAL_EVENT: u64 = 5;
const DISCONNECT_CLIENT: &str = "DISCONNECT_CLIENT";

/// Mirrors the JSON of a dispatch. `d` stays byte for byte as it was sent.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DispatchBody<'a> {
    #[serde(borrow)]
    message: Object<MessageBody<'a>>,
    #[serde(borrow)]
    recipients: Vec<JsonString<'a>>,
    #[serde(borrow, default)]
    excluding: Vec<JsonString<'a>>,
    #[serde(borrow, default)]
    id: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MessageBody<'a> {
    #[serde(default)]
    op: u64,
    #[serde(borrow, default)]
    d: Option<&'a RawValue>,
    #[serde(borrow, default)]
    t: Option<JsonString<'a>>,
    #[serde(default)]
    o: Option<Object<Options>>,
}

/// Deserializes `T` from a JSON object only. A derived `Deserialize` would accept an array of the field values too.
struct Object<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Fields<T> {
            type Value = T;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map))
            }
        }
        deserializer.deserialize_map(Fields(PhantomData)).map(Self)
    }
}

/// Distinguishes what a dispatch requests.
#[derive(Debug)]
pub(super) enum DispatchRequest {
    Dispatch(Dispatch),
    Disconnect(Disconnect),
}

impl DispatchRequest {
    /// Rejects what the hub's configuration does not support.
    pub(super) fn checked(self, hub: &Hub) -> Result<Self, ApiError> {
        match &self {
            Self::Dispatch(dispatch) if !hub.is_sync_enabled() && dispatch.requires_storage() => Err(ApiError::SyncOff),
            _ => Ok(self),
        }
    }
}

/// Requests that connections of users be closed.
#[derive(Debug)]
pub(super) struct Disconnect {
    recipients: Recipients,
    excluding: Vec<UserId>,
    rejected: Vec<Rejected>,
}

impl Disconnect {
    pub(super) async fn run(self, hub: &Hub) -> Outcome {
        let mut outcome = hub.disconnect(&self.recipients, &self.excluding).await;
        outcome.recipients += self.rejected.len();
        outcome.rejected.extend(self.rejected);
        outcome
    }
}

/// Parses a dispatch. The caller bounds its length.
pub(super) fn read(text: &[u8], recipients_max: usize) -> Result<DispatchRequest, ApiError> {
    let text = std::str::from_utf8(text).map_err(|error| ApiError::BadJson(utf8_error(&error)))?;
    let Object(body) = serde_json::from_str::<Object<DispatchBody<'_>>>(text).map_err(|error| {
        if let Some(reason) = surrogates::reason(text) {
            return ApiError::HalfPair(reason);
        }
        let why = json_error(&error);
        if error.is_data() { ApiError::Shape(why) } else { ApiError::BadJson(why) }
    })?;
    if body.recipients.len() > recipients_max || body.excluding.len() > recipients_max {
        return Err(ApiError::Recipients(recipients_max));
    }
    let is_everyone = |id: &JsonString<'_>| id.text() == Some(EVERYONE);
    let mut rejected = Vec::new();
    let recipients = if body.recipients.iter().any(is_everyone) {
        if !body.recipients.iter().all(is_everyone) {
            // As a broadcast it would be stored for none of them, although they were named.
            return shape_error(
                "`*` means all connected clients and cannot be combined with user ids; send two dispatches",
            );
        }
        Recipients::Everyone
    } else {
        Recipients::Users(users(body.recipients, &mut rejected))
    };
    // No user has an invalid id, so an invalid exclusion excludes no user.
    let excluding = users(body.excluding, &mut Vec::new());
    let Object(MessageBody { op, d, t, o }) = body.message;
    let options = o.map_or_else(Options::default, |o| o.0);
    if op == INTERNAL_EVENT {
        return check_internal_event(t.as_ref().and_then(JsonString::text), body.id.is_some(), &options)
            .map(|()| DispatchRequest::Disconnect(Disconnect { recipients, excluding, rejected }));
    }
    let is_stored = options.sync && recipients != Recipients::Everyone;
    if !is_stored && (options.ttl.is_some() || options.collapse.is_some()) {
        // Ignoring them would look as if they had taken effect.
        return shape_error("o.ttl and o.collapse are for stored messages: omit them with sync: false, and for `*`");
    }
    let payload = Payload::with_type(op, d.map(RawValue::get), t.as_ref())?;
    let name = |error: crate::message::NameError| ApiError::Shape(error.to_string());
    Ok(DispatchRequest::Dispatch(Dispatch {
        payload,
        sync: options.sync,
        recipients,
        excluding,
        ttl: options.ttl.map(|seconds| Duration::from_secs(seconds.get().into())),
        collapse: options.collapse.as_deref().map(CollapseKey::new).transpose().map_err(name)?,
        id: body.id.as_deref().map(DispatchId::new).transpose().map_err(name)?,
        rejected,
    }))
}

/// Checks that an internal event is a known one.
fn check_internal_event(kind: Option<&str>, has_id: bool, options: &Options) -> Result<(), ApiError> {
    if kind != Some(DISCONNECT_CLIENT) {
        let why = format!("opcode 5 is for internal events, and t must be {DISCONNECT_CLIENT}");
        return Err(ApiError::Shape(why));
    }
    if has_id || options.ttl.is_some() || options.collapse.is_some() {
        return shape_error("id, o.ttl and o.collapse are for messages: omit them; disconnecting twice does no harm");
    }
    Ok(())
}

fn shape_error<T>(why: &str) -> Result<T, ApiError> {
    Err(ApiError::Shape(why.to_owned()))
}

fn users(ids: Vec<JsonString<'_>>, rejected: &mut Vec<Rejected>) -> Vec<UserId> {
    let mut users = Vec::with_capacity(ids.len());
    for id in ids {
        match id.text().map(UserId::new) {
            Some(Ok(user)) => users.push(user),
            Some(Err(_)) | None => rejected.push(Rejected::invalid(&id)),
        }
    }
    users
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::Reason;

    fn error(body: &str) -> String {
        read(body.as_bytes(), 3).expect_err(body).to_string()
    }

    fn dispatched(body: &str) -> Dispatch {
        match read(body.as_bytes(), 3).unwrap() {
            DispatchRequest::Dispatch(dispatch) => dispatch,
            DispatchRequest::Disconnect(_) => panic!("a dispatch"),
        }
    }

    #[test]
    fn dispatch_is_parsed_with_its_data_unchanged() {
        let body = r#"{"message":{"op":0,"d":{"n": 1.0},"t":"T","o":{"sync":false}},"recipients":["a","b"],"excluding":["c"]}"#;
        let dispatch = dispatched(body);
        assert_eq!(&dispatch.payload.as_bytes()[..], br#"{"op":0,"d":{"n": 1.0},"t":"T"}"#);
        assert!(!dispatch.sync && dispatch.rejected.is_empty());
        assert_eq!(dispatch.excluding, [UserId::new("c").unwrap()]);
        let dispatch = dispatched(r#"{"message":{},"recipients":["*"]}"#);
        assert!(dispatch.sync && dispatch.recipients == Recipients::Everyone);
        let nothing = dispatched(r#"{"message":{"o":null},"recipients":["a"],"id":null}"#);
        assert!(nothing.sync && nothing.id.is_none() && nothing.ttl.is_none() && nothing.collapse.is_none());
    }

    #[test]
    fn dispatch_with_id_ttl_and_collapse_is_parsed() {
        let body = r#"{"message":{"o":{"ttl":4294967295,"collapse":"score"}},"recipients":["a"],"id":"order-7"}"#;
        let dispatch = dispatched(body);
        assert_eq!(dispatch.ttl, Some(Duration::from_secs(u32::MAX.into())));
        assert_eq!(dispatch.collapse, Some(CollapseKey::new("score").unwrap()));
        assert_eq!(dispatch.id, Some(DispatchId::new("order-7").unwrap()));
        // An unsynced message can have an id too: a retry of it is not sent twice.
        assert!(dispatched(r#"{"message":{"o":{"sync":false}},"recipients":["*"],"id":"x"}"#).id.is_some());
        let longest = format!(r#"{{"message":{{}},"recipients":[],"id":"{}"}}"#, "x".repeat(128));
        assert!(dispatched(&longest).id.is_some());
    }

    #[test]
    fn invalid_recipient_is_rejected_and_others_are_accepted() {
        let dispatch = dispatched(r#"{"message":{},"recipients":["a","","b\u0000"]}"#);
        assert_eq!(dispatch.recipients, Recipients::Users(vec![UserId::new("a").unwrap()]));
        let reasons: Vec<_> = dispatch.rejected.iter().map(|one| (&*one.user, one.reason.as_str())).collect();
        assert_eq!(reasons, [("", "invalid"), ("b\0", "invalid")]);
    }

    #[test]
    fn invalid_dispatch_is_rejected_with_reason() {
        let disconnect = r#"{"message":{"op":5,"t":"DISCONNECT_CLIENT","o":{}},"recipients":[]}"#;
        for (body, why) in [
            ("", "not JSON"),
            ("{", "not JSON"),
            ("[]", "expected an object"),
            ("{}", "missing field `message`"),
            (r#"{"message":{}}"#, "missing field `recipients`"),
            (r#"{"message":{},"recipients":"a"}"#, "expected a list, but found string \"a\""),
            (r#"{"message":{},"recipients":[1]}"#, "expected a string, but found 1"),
            (r#"{"message":{},"recipients":["a","*"]}"#, "cannot be combined"),
            (r#"{"message":{},"recipients":[],"to":[]}"#, "unknown field `to`"),
            (r#"[{},["a"]]"#, "expected an object"),
            (r#"{"message":[0,1,"T"],"recipients":[]}"#, "expected an object"),
            (r#"{"message":{"o":[false]},"recipients":[]}"#, "expected an object"),
            (r#"{"message":null,"recipients":[]}"#, "not a dispatch"),
            (r#"{"message":{"x":1},"recipients":[]}"#, "unknown field `x`"),
            (r#"{"message":{"op":-1},"recipients":[]}"#, "expected a whole number, 0 or more, but found -1"),
            (r#"{"message":{"op":1},"recipients":[]}"#, "belongs to the protocol"),
            (r#"{"message":{"op":22},"recipients":[]}"#, "belongs to the protocol"),
            (r#"{"message":{"op":5,"t":"X"},"recipients":[]}"#, "DISCONNECT_CLIENT"),
            (&disconnect.replace("[]}", r#"[],"id":"x"}"#), "are for messages"),
            (&disconnect.replace(r#""o":{}"#, r#""o":{"ttl":1}"#), "are for messages"),
            (r#"{"message":{"o":{"until":1}},"recipients":[]}"#, "unknown field `until`"),
            (
                r#"{"message":{"o":{"ttl":0}},"recipients":[]}"#,
                "expected a whole number from 1 to 4294967295, but found 0",
            ),
            (r#"{"message":{"o":{"ttl":-1}},"recipients":[]}"#, "not a dispatch"),
            (r#"{"message":{"o":{"sync":1}},"recipients":[]}"#, "expected true or false, but found 1"),
            (r#"{"message":{"o":{"ttl":4294967296}},"recipients":[]}"#, "not a dispatch"),
            (r#"{"message":{"o":{"collapse":""}},"recipients":[]}"#, "a collapse key must have 1 to 64 characters"),
            (r#"{"message":{"o":{"collapse":7}},"recipients":[]}"#, "not a dispatch"),
            (r#"{"message":{"o":{"ttl":1,"sync":false}},"recipients":["a"]}"#, "for stored messages"),
            (r#"{"message":{"o":{"collapse":"k","sync":false}},"recipients":["a"]}"#, "for stored messages"),
            (r#"{"message":{"o":{"ttl":1}},"recipients":["*"]}"#, "for stored messages"),
            (r#"{"message":{},"recipients":["a","b","c","d"]}"#, "at most 3"),
            (r#"{"message":{},"recipients":[],"id":""}"#, "a dispatch id must have 1 to 128 characters"),
            (r#"{"message":{},"recipients":[],"id":"a\u0000"}"#, "a dispatch id must have 1 to 128 characters"),
            (r#"{"message":{},"recipients":[],"id":7}"#, "not a dispatch"),
            (r#"{"message":{},"recipients":[]} x"#, "not JSON"),
        ] {
            let error_text = error(body);
            assert!(error_text.contains(why), "{body}: {error_text}");
        }
        for (body, what) in [
            (r#"{"message":{},"recipients":["a\ud83d"],"id":"x\ud83d"}"#, "id has"),
            (r#"{"message":{"d":"\ud83d","o":{"collapse":"\ude00"}},"recipients":["a"]}"#, "message.o.collapse has"),
            (r#"{"message":{},"recipients":["a"],"id":"x\ud83d"}"#, "id has"),
        ] {
            let error = error(body);
            assert!(error.starts_with(what) && error.contains("half of a surrogate pair"), "{body}: {error}");
        }
        let long = format!(r#"{{"message":{{}},"recipients":[],"id":"{}"}}"#, "x".repeat(129));
        assert!(error(&long).contains("a dispatch id has"));
        let deep = format!(r#"{{"message":{{"d":{}{}}},"recipients":[]}}"#, "[".repeat(5000), "]".repeat(5000));
        assert!(error(&deep).contains("deep") || error(&deep).contains("recursion"));
    }

    #[test]
    fn unpaired_surrogate_is_forwarded_in_data_and_rejected_in_recipient() {
        let body = r#"{"message":{"d":{"x\ud83d":"\ude00"},"t":"T\ud83d"},"recipients":["a"]}"#;
        let expected = br#"{"op":0,"d":{"x\ud83d":"\ude00"},"t":"T\ud83d"}"#;
        assert_eq!(&dispatched(body).payload.as_bytes()[..], expected);
        let body = r#"{"message":{"d":"\ud83d","o":{"ttl":9}},"recipients":["a","b\ud83d"],"excluding":["\ude00","c"],"id":"i"}"#;
        let dispatch = dispatched(body);
        assert_eq!(&dispatch.payload.as_bytes()[..], br#"{"op":0,"d":"\ud83d"}"#);
        assert_eq!(dispatch.recipients, Recipients::Users(vec![UserId::new("a").unwrap()]));
        assert_eq!(dispatch.excluding, [UserId::new("c").unwrap()]);
        assert_eq!(dispatch.rejected, [Rejected { user: r#""b\ud83d""#.into(), reason: Reason::Cut }]);
        assert!(dispatch.ttl.is_some() && dispatch.id.is_some());
        let many = r#"{"message":{},"recipients":["\ud83d","\ud83d","\ud83d","\ud83d"]}"#;
        assert!(error(many).contains("limits.recipients"));
    }

    #[test]
    fn disconnect_client_event_is_parsed_as_disconnect() {
        let body = r#"{"message":{"op":5,"d":{},"t":"DISCONNECT_CLIENT"},"recipients":["a"]}"#;
        assert!(matches!(read(body.as_bytes(), 3), Ok(DispatchRequest::Disconnect(_))));
    }
}
