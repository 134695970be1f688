//! Parses the JSON that a Dispatcher sends.
//!
//! Unknown fields are ignored, as in the original.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{SeqAccess, Visitor},
};
use serde_json::value::RawValue;

use crate::{
    compat::{
        dispatch::{PublishRequest, RequestMessage, RequestOptions},
        portal::PortalAnnouncement,
    },
    hub::{Dispatch, Rejected, RejectionReason},
    logging::{json_error, utf8_error},
    message::{EVERYONE, INTERNAL_EVENT, JsonString, Payload, Recipients, UserId, check_internal_event, surrogates},
};

/// A message that was published to the channel of dispatches.
#[derive(Debug)]
pub(super) enum Published {
    /// One message. Two dispatches if it is for `*` and for named users, whose copies must be stored.
    Dispatches(Vec<Dispatch>),
    /// A request to close the connections of these users.
    Disconnect(Recipients),
}

/// Parses a message that was published to the channel of dispatches.
pub(super) fn parse_publish(text: &[u8], recipients_max: usize) -> Result<Published, String> {
    let text = utf8(text)?;
    let mut rejected = Vec::new();
    let PublishRequest { message, recipients } =
        object(text, "a dispatch").or_else(|error| parse_with_lone_surrogates(text, &mut rejected).ok_or(error))?;
    if recipients.len() + rejected.len() > recipients_max {
        return Err(format!("a dispatch may have at most {recipients_max} recipients (limits.recipients); split it"));
    }
    let message: RequestMessage<'_> = object(message.get(), "a message")?;
    let (mut users, mut everyone) = (Vec::new(), false);
    for recipient in &recipients {
        let id = recipient.text();
        match UserId::new(&id) {
            Ok(user) => users.push(user),
            Err(_) if id == EVERYONE => everyone = true,
            Err(_) => rejected.push(Rejected::new(&id, RejectionReason::Invalid)),
        }
    }
    if message.op == INTERNAL_EVENT {
        // The original ignores the options of an internal event.
        check_internal_event(message.t.as_ref().and_then(JsonString::text), false)?;
        return Ok(Published::Disconnect(if everyone { Recipients::Everyone } else { Recipients::Users(users) }));
    }
    let mut dispatches = Vec::with_capacity(1);
    if everyone {
        let everyone = dispatch(&message, Recipients::Everyone)?;
        dispatches.push(Dispatch { excluding: users.clone(), ..everyone });
    }
    if !everyone || !users.is_empty() {
        dispatches.push(Dispatch { rejected, ..dispatch(&message, Recipients::Users(users))? });
    }
    Ok(Published::Dispatches(dispatches))
}

/// Parses a dispatch with lone surrogates in some recipients, and rejects only these recipients.
#[cold]
fn parse_with_lone_surrogates<'a>(text: &'a str, rejected: &mut Vec<Rejected>) -> Option<PublishRequest<'a>> {
    #[derive(Deserialize)]
    struct Raw<'a> {
        #[serde(borrow)]
        message: &'a RawValue,
        #[serde(borrow)]
        recipients: Vec<&'a RawValue>,
    }
    let Raw { message, recipients } = serde_json::from_str(text).ok()?;
    let mut texts = Vec::with_capacity(recipients.len());
    for recipient in recipients {
        if surrogates::has_lone_surrogate(recipient.get()) {
            rejected.push(Rejected::invalid(&serde_json::from_str(recipient.get()).ok()?));
        } else {
            texts.push(serde_json::from_str(recipient.get()).ok()?);
        }
    }
    Some(PublishRequest { message, recipients: texts })
}

/// Parses the value of a user's hash field: the pending messages that the Dispatcher read there, and a new one at the
/// end.
///
/// Returns only the new message. The log has the others.
pub(super) fn parse_hset_value(text: &[u8], user: UserId) -> Result<Dispatch, String> {
    let text = utf8(text)?;
    let LastElement(last) = serde_json::from_str(text)
        .map_err(|error| format!("the value is not a list of messages: {}", json_error(&error)))?;
    let last = last.ok_or("an empty list appends nothing; to remove a user's pending messages, use HDEL")?;
    dispatch(&object(last.get(), "a message")?, Recipients::Users(vec![user]))
}

fn dispatch(message: &RequestMessage<'_>, recipients: Recipients) -> Result<Dispatch, String> {
    let RequestMessage { op, d, t, o } = message;
    let payload = Payload::with_type(*op, d.map(RawValue::get), t.as_ref()).map_err(|error| error.to_string())?;
    let options = o.as_ref().map(RequestOptions::to_options).unwrap_or_default();
    Dispatch::new(payload, recipients).with_options(&options).map_err(|error| error.to_string())
}

/// Parses what a portal publishes to the pool's channel: its id, and whether it is ready.
pub(super) fn parse_portal_announcement(text: &[u8]) -> Result<PortalAnnouncement<'_>, String> {
    object(utf8(text)?, "a portal")
}

fn utf8(text: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(text).map_err(|error| format!("the text is not JSON: {}", utf8_error(&error)))
}

/// Deserializes `T` from a JSON object only. A derived `Deserialize` would accept an array of the field values too.
fn object<'a, T: Deserialize<'a>>(text: &'a str, what: &str) -> Result<T, String> {
    if !text.trim_start().starts_with('{') {
        return Err(format!("the text is not {what}: expected an object"));
    }
    serde_json::from_str(text).map_err(|error| {
        surrogates::describe_lone_surrogate(text)
            .unwrap_or_else(|| format!("the text is not {what}: {}", json_error(&error)))
    })
}

/// The last element of a list.
struct LastElement<'a>(Option<&'a RawValue>);

impl<'de> Deserialize<'de> for LastElement<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List;
        impl<'de> Visitor<'de> for List {
            type Value = LastElement<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let mut last = None;
                while let Some(element) = list.next_element()? {
                    last = Some(element);
                }
                Ok(LastElement(last))
            }
        }
        deserializer.deserialize_seq(List)
    }
}

#[cfg(test)]
mod tests;
