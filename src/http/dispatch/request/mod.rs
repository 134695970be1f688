//! Parses a dispatch from JSON. Borrows from the text where it can, and never parses a message's data.

mod shape;

use std::{borrow::Cow, fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor, value::MapAccessDeserializer},
};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::super::error::ApiError;
use crate::{
    hub::{Dispatch, Hub, Outcome, Rejected},
    logging::{json_error, utf8_error},
    message::{
        DispatchId, EVERYONE, INTERNAL_EVENT, JsonString, Options, Payload, Recipients, UserId, check_internal_event,
        surrogates,
    },
};

/// A message, and its recipients.
// `d` stays byte for byte as it was sent.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Dispatch)]
pub(in crate::http) struct DispatchBody<'a> {
    #[serde(borrow)]
    #[schema(value_type = MessageBody)]
    message: Object<MessageBody<'a>>,
    /// User ids, at most `limits.recipients`; or `["*"]`: every connection.
    #[serde(borrow)]
    #[schema(value_type = Vec<String>)]
    recipients: Vec<JsonString<'a>>,
    /// User ids that do not receive the message.
    #[serde(borrow, default)]
    #[schema(value_type = Vec<String>)]
    excluding: Vec<JsonString<'a>>,
    /// Idempotency id: a retry with the same id is not sent again.
    #[serde(borrow, default)]
    #[schema(value_type = Option<String>, min_length = 1, max_length = 128)]
    id: Option<Cow<'a, str>>,
}

/// A message.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Message)]
struct MessageBody<'a> {
    /// Opcode: 0, or above 22; 5 with the type `DISCONNECT_CLIENT` disconnects the recipients.
    #[serde(default)]
    op: u64,
    /// Data: any JSON value, delivered byte for byte.
    #[serde(borrow, default)]
    #[schema(value_type = Value)]
    d: Option<&'a RawValue>,
    /// Type: a text by which applications distinguish messages.
    #[serde(borrow, default)]
    #[schema(value_type = Option<String>)]
    t: Option<JsonString<'a>>,
    /// Options.
    #[serde(default)]
    #[schema(value_type = Option<Options>)]
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

/// Distinguishes the two requests of a dispatch.
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

/// Requests to close connections of users.
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
        if let Some(reason) = surrogates::describe_lone_surrogate(text) {
            return ApiError::LoneSurrogate(reason);
        }
        if !error.is_data() {
            return ApiError::BadJson(json_error(&error));
        }
        ApiError::BadDispatch(shape::find_mistake(text).unwrap_or_else(|| json_error(&error)))
    })?;
    if body.recipients.len() > recipients_max || body.excluding.len() > recipients_max {
        return Err(ApiError::TooManyRecipients(recipients_max));
    }
    let is_everyone = |id: &JsonString<'_>| id.text() == Some(EVERYONE);
    let mut rejected = Vec::new();
    let recipients = if body.recipients.iter().any(is_everyone) {
        if !body.recipients.iter().all(is_everyone) {
            // As a broadcast it would not be stored for the named users.
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
        let has_id_or_options = body.id.is_some() || options.ttl.is_some() || options.collapse.is_some();
        check_internal_event(t.as_ref().and_then(JsonString::text), has_id_or_options).or_else(shape_error)?;
        return Ok(DispatchRequest::Disconnect(Disconnect { recipients, excluding, rejected }));
    }
    let payload = Payload::with_type(op, d.map(RawValue::get), t.as_ref())?;
    let dispatch = Dispatch::new(payload, recipients).with_options(&options);
    let id = body.id.as_deref().map(DispatchId::new).transpose();
    Ok(DispatchRequest::Dispatch(Dispatch {
        excluding,
        id: id.map_err(|error| ApiError::BadDispatch(error.to_string()))?,
        rejected,
        ..dispatch.map_err(|error| ApiError::BadDispatch(error.to_string()))?
    }))
}

fn shape_error<T>(why: &str) -> Result<T, ApiError> {
    Err(ApiError::BadDispatch(why.to_owned()))
}

/// Returns the valid user ids, and appends the invalid ones to `rejected`.
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
mod tests;
