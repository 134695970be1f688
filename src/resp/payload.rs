//! What a Dispatcher says: JSON texts, as stock writes them, to what is to be done.
//!
//! Stock reads them field by field and passes over what it does not know; so does this.

use std::{fmt, time::Duration};

use serde::{
    Deserialize, Deserializer,
    de::{SeqAccess, Visitor},
};
use serde_json::value::RawValue;

use crate::{
    compat::dispatch::{DISCONNECT_CLIENT, Envelope, INTERNAL_EVENT, Message, Options, PortalAnnouncement},
    hub::{Dispatch, Reason, Rejected},
    logging::{json_error, utf8_error},
    message::{CollapseKey, EVERYONE, JsonString, NameError, Payload, Recipients, UserId, surrogates},
};

/// What was published to the channel of dispatches.
#[derive(Debug)]
pub(super) enum Published {
    /// One message. Two dispatches where it is for everyone and for somebody by name: to those it must not be lost.
    Dispatches(Vec<Dispatch>),
    /// Connections of these users are to go.
    Disconnect(Recipients),
}

/// Reads what was published to the channel of dispatches.
pub(super) fn published(text: &[u8], recipients_max: usize) -> Result<Published, String> {
    let text = utf8(text)?;
    let mut refused = Vec::new();
    let Envelope { message, recipients } =
        object(text, "a dispatch").or_else(|error| with_halves(text, &mut refused).ok_or(error))?;
    if recipients.len() + refused.len() > recipients_max {
        return Err(format!(
            "a dispatch may have at most {recipients_max} recipients (limits.recipients); send several"
        ));
    }
    let message: Message<'_> = object(message.get(), "a message")?;
    let (mut users, mut everyone) = (Vec::new(), false);
    for recipient in &recipients {
        let id = recipient.text();
        match UserId::new(&id) {
            Ok(user) => users.push(user),
            Err(_) if id == EVERYONE => everyone = true,
            Err(_) => refused.push(Rejected::new(&id, Reason::Invalid)),
        }
    }
    if message.op == INTERNAL_EVENT {
        if message.t.as_ref().and_then(JsonString::text) != Some(DISCONNECT_CLIENT) {
            return Err(format!("opcode 5 is for internal events, of which there is {DISCONNECT_CLIENT}"));
        }
        return Ok(Published::Disconnect(if everyone { Recipients::Everyone } else { Recipients::Users(users) }));
    }
    let mut dispatches = Vec::with_capacity(1);
    if everyone {
        let everyone = dispatch(&message, Recipients::Everyone)?;
        dispatches.push(Dispatch { excluding: users.clone(), ..everyone });
    }
    if !everyone || !users.is_empty() {
        dispatches.push(Dispatch { rejected: refused, ..dispatch(&message, Recipients::Users(users))? });
    }
    Ok(Published::Dispatches(dispatches))
}

/// Reads a dispatch with recipients that have half of a surrogate pair: those are rejected, the others are not.
#[cold]
fn with_halves<'a>(text: &'a str, refused: &mut Vec<Rejected>) -> Option<Envelope<'a>> {
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
        if surrogates::has_half(recipient.get()) {
            refused.push(Rejected::invalid(&serde_json::from_str(recipient.get()).ok()?));
        } else {
            texts.push(serde_json::from_str(recipient.get()).ok()?);
        }
    }
    Some(Envelope { message, recipients: texts })
}

/// Reads what a Dispatcher puts into a user's field: the messages that it was shown there, and one more at the end. That
/// one is what it has to say; the others are here already.
pub(super) fn kept(text: &[u8], user: UserId) -> Result<Dispatch, String> {
    let text = utf8(text)?;
    let Last(last) =
        serde_json::from_str(text).map_err(|error| format!("this is no list of messages: {}", json_error(&error)))?;
    let last = last.ok_or("an empty list adds nothing; HDEL removes what waits for a user")?;
    dispatch(&object(last.get(), "a message")?, Recipients::Users(vec![user]))
}

fn dispatch(message: &Message<'_>, recipients: Recipients) -> Result<Dispatch, String> {
    let Message { op, d, t, o } = message;
    let payload = Payload::with_type(*op, d.map(RawValue::get), t.as_ref()).map_err(|error| error.to_string())?;
    let Some(Options { sync, ttl, collapse }) = o else { return Ok(Dispatch::new(payload, recipients)) };
    let sync = sync.unwrap_or(true);
    if (ttl.is_some() || collapse.is_some()) && (!sync || recipients == Recipients::Everyone) {
        // Without a word it would look as if it had been heeded.
        return Err("o.ttl and o.collapse are for messages that are kept: not with sync: false, and not for `*`".into());
    }
    let collapse = collapse.as_deref().map(CollapseKey::new).transpose();
    Ok(Dispatch {
        sync,
        ttl: ttl.map(|seconds| Duration::from_secs(seconds.get().into())),
        collapse: collapse.map_err(|error: NameError| error.to_string())?,
        ..Dispatch::new(payload, recipients)
    })
}

/// Reads what was published to the channel on which portals come and go.
pub(super) fn ready(text: &[u8]) -> Result<PortalAnnouncement<'_>, String> {
    object(utf8(text)?, "a portal")
}

fn utf8(text: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(text).map_err(|error| format!("this is not JSON: {}", utf8_error(&error)))
}

/// What is read by its fields. Alone, the reader of those would take a list of their values as well.
fn object<'a, T: Deserialize<'a>>(text: &'a str, what: &str) -> Result<T, String> {
    if !text.trim_start().starts_with('{') {
        return Err(format!("this is not {what}: expected an object"));
    }
    serde_json::from_str(text).map_err(|error| {
        surrogates::reason(text).unwrap_or_else(|| format!("this is not {what}: {}", json_error(&error)))
    })
}

/// The last of a list, of which the others are read and forgotten.
struct Last<'a>(Option<&'a RawValue>);

impl<'de> Deserialize<'de> for Last<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List;
        impl<'de> Visitor<'de> for List {
            type Value = Last<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let mut last = None;
                while let Some(element) = list.next_element()? {
                    last = Some(element);
                }
                Ok(Last(last))
            }
        }
        deserializer.deserialize_seq(List)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(text: &str) -> Vec<UserId> {
        text.split_whitespace().map(|id| UserId::new(id).unwrap()).collect()
    }

    fn dispatches(text: &str) -> Vec<Dispatch> {
        match published(text.as_bytes(), 4).unwrap_or_else(|error| panic!("{text}: {error}")) {
            Published::Dispatches(dispatches) => dispatches,
            other @ Published::Disconnect(_) => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_a_dispatcher_publishes_is_read_as_it_writes_it() {
        let text =
            r#"{"message":{"op":0,"d":{"n": 1},"t":"T","o":{"sync":false,"more":1},"s":3},"recipients":["a",7]}"#;
        let [dispatch] = &dispatches(text)[..] else { panic!("one") };
        assert_eq!(&dispatch.payload.as_bytes()[..], br#"{"op":0,"d":{"n": 1},"t":"T"}"#);
        assert!(!dispatch.sync);
        assert_eq!(dispatch.recipients, Recipients::Users(ids("a 7")));
        let [dispatch] = &dispatches(r#"{"message":{},"recipients":["a","\u0000"]}"#)[..] else { panic!("one") };
        assert!(dispatch.sync && dispatch.rejected.len() == 1);
        assert!(
            matches!(&dispatches(r#"{"message":{},"recipients":[]}"#)[..], [one] if one.recipients == Recipients::Users(vec![]))
        );
        let kept = r#"{"message":{"o":{"ttl":5,"collapse":"k"}},"recipients":["a"]}"#;
        let [dispatch] = &dispatches(kept)[..] else { panic!("one") };
        assert_eq!(dispatch.ttl, Some(Duration::from_secs(5)));
        assert_eq!(dispatch.collapse, Some(CollapseKey::new("k").unwrap()));
    }

    #[test]
    fn half_of_a_pair_is_kept_in_data_and_rejected_where_text_is_needed() {
        let text = r#"{"message":{"d":"\ud83d","t":"T\ude00"},"recipients":["a","\ud83d",7]}"#;
        let [dispatch] = &dispatches(text)[..] else { panic!("one") };
        assert_eq!(&dispatch.payload.as_bytes()[..], br#"{"op":0,"d":"\ud83d","t":"T\ude00"}"#);
        assert_eq!(dispatch.recipients, Recipients::Users(ids("a 7")));
        assert_eq!(dispatch.rejected, [Rejected { user: r#""\ud83d""#.into(), reason: Reason::Cut }]);
        let text = r#"{"message":{"t":"\ud83d","o":{"collapse":"\ud83d"}},"recipients":["\ud83d"]}"#;
        let error = published(text.as_bytes(), 4).unwrap_err();
        assert!(error.starts_with("o.collapse has half of a surrogate pair"), "{error}");
        let user = UserId::new("a").unwrap();
        let list = r#"[{"t":"\ud83d"},{"d":{"x":"\ud83d"}}]"#;
        assert_eq!(
            &kept(list.as_bytes(), user.clone()).unwrap().payload.as_bytes()[..],
            br#"{"op":0,"d":{"x":"\ud83d"}}"#
        );
        assert_eq!(&kept(br#"[{"t":"\ud83d"}]"#, user).unwrap().payload.as_bytes()[..], br#"{"op":0,"t":"\ud83d"}"#);
        assert!(ready(br#"{"id":"\ud83d","ready":true}"#).unwrap_err().starts_with("id has half"));
    }

    #[test]
    fn who_is_named_beside_everyone_gets_it_once_and_kept() {
        let [everyone, named] = &dispatches(r#"{"message":{"t":"T"},"recipients":["*","a"]}"#)[..] else {
            panic!("two")
        };
        assert_eq!((&everyone.recipients, &everyone.excluding), (&Recipients::Everyone, &ids("a")));
        assert_eq!((&named.recipients, named.sync), (&Recipients::Users(ids("a")), true));
        let [everyone] = &dispatches(r#"{"message":{"t":"T"},"recipients":["*"]}"#)[..] else { panic!("one") };
        assert_eq!((&everyone.recipients, &everyone.excluding), (&Recipients::Everyone, &ids("")));
    }

    #[test]
    fn an_event_of_a_dispatcher_disconnects() {
        let event = |recipients| {
            format!(r#"{{"message":{{"op":5,"d":{{}},"t":"DISCONNECT_CLIENT"}},"recipients":{recipients}}}"#)
        };
        for (recipients, who) in [(r#"["a"]"#, Recipients::Users(ids("a"))), (r#"["*"]"#, Recipients::Everyone)] {
            let read = published(event(recipients).as_bytes(), 4).unwrap();
            assert!(matches!(read, Published::Disconnect(read) if read == who), "{recipients}");
        }
    }

    #[test]
    fn what_is_added_to_a_field_is_its_last_message() {
        let kept = |text: &str| kept(text.as_bytes(), UserId::new("a").unwrap());
        let dispatch = kept(r#" [ {"op":0,"d":1}, {"op":0,"d":{"a":[1,2]},"t":"T"} ] "#).unwrap();
        assert_eq!(&dispatch.payload.as_bytes()[..], br#"{"op":0,"d":{"a":[1,2]},"t":"T"}"#);
        assert_eq!(dispatch.recipients, Recipients::Users(ids("a")));
        assert!(!kept(r#"[{"o":{"sync":false}}]"#).unwrap().sync);
        for (text, why) in [
            ("[]", "HDEL"),
            ("", "no list"),
            ("{}", "no list"),
            ("[{}", "no list"),
            ("[1]", "expected an object"),
            ("[[0]]", "expected an object"),
            (r#"[{"op":5,"t":"DISCONNECT_CLIENT"}]"#, "belongs to the protocol"),
        ] {
            let error = kept(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn what_is_refused_says_why() {
        let deep = format!(r#"{{"message":{{"d":{}{}}},"recipients":[]}}"#, "[".repeat(5000), "]".repeat(5000));
        for (text, why) in [
            ("", "expected an object"),
            ("nonsense", "expected an object"),
            ("[]", "expected an object"),
            ("{", "this is not a dispatch: the text ends"),
            ("{}", "missing field `message`"),
            (r#"{"message":{}}"#, "missing field `recipients`"),
            (r#"{"message":[],"recipients":[]}"#, "not a message: expected an object"),
            (
                r#"{"message":{"op":-1},"recipients":[]}"#,
                "not a message: expected a whole number, 0 or more, but found -1",
            ),
            (r#"{"message":{"o":{"ttl":0}},"recipients":[]}"#, "from 1 to 4294967295, but found 0"),
            (r#"{"message":{"op":10},"recipients":[]}"#, "belongs to the protocol"),
            (r#"{"message":{"op":5,"t":"X"},"recipients":[]}"#, "DISCONNECT_CLIENT"),
            (r#"{"message":{},"recipients":"a"}"#, "not a dispatch"),
            (
                r#"{"message":{},"recipients":[null]}"#,
                "expected a user id, which is a string or a whole number, but found null",
            ),
            (r#"{"message":{},"recipients":[-1]}"#, "expected a user id"),
            (r#"{"message":{},"recipients":[1,2,3,4,5]}"#, "at most 4"),
            (r#"{"message":{"o":{"ttl":1,"sync":false}},"recipients":["a"]}"#, "messages that are kept"),
            (r#"{"message":{"o":{"collapse":"k"}},"recipients":["*"]}"#, "messages that are kept"),
            (r#"{"message":{"o":{"collapse":""}},"recipients":["a"]}"#, "a collapse key has"),
            (&deep, "deep"),
        ] {
            let error = published(text.as_bytes(), 4).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn a_portal_says_whether_it_is_ready() {
        let told = ready(br#"{"id":"x","ready":true,"more":1}"#).unwrap();
        assert_eq!((&*told.id, told.ready), ("x", true));
        assert!(ready(b"[\"x\",true]").is_err() && ready(br#"{"id":"x"}"#).is_err());
    }
}
