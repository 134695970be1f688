//! Text from a client to a frame. Refuses and never panics; borrows where it can.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value, error::Category, value::RawValue};

use super::{close_code::CloseCode, opcode};
use crate::{
    logging::json_error,
    message::{DeviceId, JSON_DEPTH_MAX, JsonString, OPCODE_RESERVED_MAX, Seq, json_depth, surrogates},
};

/// What a client said.
#[derive(Debug)]
pub enum ClientFrame<'a> {
    /// An application's message.
    Dispatch(ClientMessage<'a>),
    /// The client asks whether we are there.
    Heartbeat,
    /// The answer to our heartbeat.
    HeartbeatAck,
    /// Who the client is.
    Authentication(Authentication),
    /// Its application has had everything up to this sequence of the user's log. From clients that resume.
    Receipt {
        /// The last it has had; 0 for nothing.
        s: Seq,
    },
}

/// A message from a client.
#[derive(Debug)]
pub struct ClientMessage<'a> {
    /// 0, or one above those of the protocol.
    pub op: u64,
    /// The data, as it stood.
    pub data: Option<&'a RawValue>,
    /// The type.
    pub kind: Option<JsonString<'a>>,
}

/// What a client shows to say who it is.
#[derive(Debug)]
pub struct Authentication {
    /// As the application passed it, without what stands in the fields below.
    pub data: Map<String, Value>,
    /// The same as JSON text, where `data` could not hold it: it has halves of surrogate pairs, in whose place `data` has
    /// U+FFFD.
    pub text: Option<String>,
    /// The token is one of the texts with such a half. It is no token then.
    pub token_is_cut: bool,
    /// Whether it wants what it missed (`shouldSync`). Default true.
    pub should_sync: bool,
    /// It resumes: the last sequence of the user's log that its application has had (`after`), 0 for none.
    pub after: Option<Seq>,
    /// Which of the user's devices it is on (`device`).
    pub device: Option<DeviceId>,
}

/// Why a text is no frame.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// Not JSON.
    #[error("not JSON: {0}")]
    NotJson(serde_json::Error),
    /// JSON, but of another shape.
    #[error("not a frame: {0}")]
    Shape(String),
    /// A text with half of a surrogate pair, where that does harm.
    #[error("{0}")]
    HalfPair(String),
    /// See [`JSON_DEPTH_MAX`].
    #[error("nested deeper than {JSON_DEPTH_MAX}")]
    TooDeep,
    /// One that a client does not send.
    #[error("opcode {0} is not for clients")]
    Opcode(u64),
    /// The data of an authentication is no object, or something in it is not what it has to be.
    #[error("{0}")]
    Authentication(&'static str),
    /// A receipt that does not say what was received.
    #[error("a receipt looks like {{\"op\":3,\"d\":{{\"s\":41}}}}, with a whole number from 0 up")]
    Receipt,
}

impl FrameError {
    /// What the connection is closed with.
    #[must_use]
    pub fn close_code(&self) -> CloseCode {
        match self {
            Self::NotJson(_) => CloseCode::NotJson,
            Self::Shape(_)
            | Self::HalfPair(_)
            | Self::TooDeep
            | Self::Opcode(_)
            | Self::Authentication(_)
            | Self::Receipt => CloseCode::Policy,
        }
    }

    /// The reason in the close frame: one for each cause, without anything of what the client sent.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NotJson(_) => CloseCode::NotJson.reason(),
            Self::Shape(_) => "not a frame: an object with a number op is needed, and t must be a text",
            Self::HalfPair(_) => "a text has half of a surrogate pair",
            Self::TooDeep => "nested too deeply",
            Self::Opcode(_) => "this opcode is not for clients",
            Self::Authentication(reason) => reason,
            Self::Receipt => "op 3 needs a whole number from 0 up in d.s",
        }
    }
}

#[derive(Deserialize)]
struct Shape<'a> {
    op: u32,
    #[serde(borrow, default)]
    d: Option<&'a RawValue>,
    #[serde(borrow, default)]
    t: Option<JsonString<'a>>,
}

/// Reads one frame. The caller bounds the length of `text`.
///
/// # Errors
/// When it is not JSON, has another shape, or is not for a client to say.
pub fn decode(text: &str) -> Result<ClientFrame<'_>, FrameError> {
    if json_depth(text) > JSON_DEPTH_MAX {
        return Err(FrameError::TooDeep);
    }
    let shape: Shape<'_> = serde_json::from_str(text).map_err(|error| match error.classify() {
        Category::Data => FrameError::Shape(json_error(&error)),
        _ => surrogates::reason(text).map_or(FrameError::NotJson(error), FrameError::HalfPair),
    })?;
    // The reader of fields would take a list of them as well.
    if text.trim_start().starts_with('[') {
        return Err(FrameError::Shape("a list".to_owned()));
    }
    match u64::from(shape.op) {
        opcode::HEARTBEAT_ACK => Ok(ClientFrame::HeartbeatAck),
        opcode::HEARTBEAT => Ok(ClientFrame::Heartbeat),
        opcode::AUTHENTICATION => authentication(shape.d).map(ClientFrame::Authentication),
        opcode::RECEIPT => receipt(shape.d),
        op if op == opcode::DISPATCH || op > OPCODE_RESERVED_MAX => {
            Ok(ClientFrame::Dispatch(ClientMessage { op, data: shape.d, kind: shape.t }))
        }
        op => Err(FrameError::Opcode(op)),
    }
}

fn authentication(data: Option<&RawValue>) -> Result<Authentication, FrameError> {
    let refuse = FrameError::Authentication;
    let no_object = || refuse("the data of an authentication must be an object");
    let raw = data.ok_or_else(no_object)?.get();
    let (mut data, cut) = match serde_json::from_str::<Map<String, Value>>(raw) {
        Ok(data) => (data, false),
        Err(_) => (serde_json::from_str(&surrogates::replace_halves(raw)).map_err(|_| no_object())?, true),
    };
    let entries = if cut { surrogates::entries(raw) } else { None };
    let is_cut = |name| entries.as_ref().and_then(|all| all.get(name)).is_some_and(|value| surrogates::has_half(value));
    let should_sync = match data.remove("shouldSync") {
        None => true,
        Some(Value::Bool(should_sync)) => should_sync,
        Some(_) => return Err(refuse("shouldSync must be true or false")),
    };
    let after =
        data.remove("after").map(|after| after.as_u64().ok_or(refuse("after must be a whole number from 0 up")));
    let after = after.transpose()?;
    // Applications of stock clients may say something of their own here (what kind of device it is, and at length): only
    // one that resumes is held to what a device of ours is called.
    let device = data.get("device").filter(|_| !is_cut("device")).and_then(Value::as_str);
    let device = device.and_then(|name| DeviceId::new(name).ok());
    if device.is_none() && after.is_some() && data.contains_key("device") {
        return Err(refuse("device must be a text of 1 to 64 characters, without control characters or half a pair"));
    }
    if device.is_some() {
        data.remove("device");
    }
    let token_is_cut = is_cut("token");
    let kept = |entries: BTreeMap<String, _>| entries.into_iter().filter(|(name, _)| data.contains_key(name));
    let text = entries.map(|entries| surrogates::object(kept(entries)));
    Ok(Authentication { data, text, token_is_cut, should_sync, after, device })
}

fn receipt(data: Option<&RawValue>) -> Result<ClientFrame<'static>, FrameError> {
    #[derive(Deserialize)]
    struct Received {
        s: Seq,
    }
    // As above, a list of its fields is no object.
    let object = data.map(RawValue::get).filter(|data| data.starts_with('{')).ok_or(FrameError::Receipt)?;
    let Received { s } = serde_json::from_str(object).map_err(|_| FrameError::Receipt)?;
    Ok(ClientFrame::Receipt { s })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_stock_clients_say_is_understood() {
        let ClientFrame::Authentication(said) = decode(r#"{"op":2,"d":{"token":"alice","shouldSync":false}}"#).unwrap()
        else {
            panic!("an authentication")
        };
        assert!(!said.should_sync && said.data["token"] == "alice");
        assert_eq!((said.after, said.device), (None, None));
        assert!(matches!(decode(r#"{"op":11,"d":{}}"#), Ok(ClientFrame::HeartbeatAck)));
        assert!(matches!(decode(r#"{"op":1}"#), Ok(ClientFrame::Heartbeat)));
        let ClientFrame::Dispatch(said) = decode(r#"{"op":0,"d":{"v":"1.5.3"},"t":"CLIENT_VERSION"}"#).unwrap() else {
            panic!("a message")
        };
        assert_eq!((said.data.unwrap().get(), said.kind.unwrap().text()), (r#"{"v":"1.5.3"}"#, Some("CLIENT_VERSION")));
        assert!(decode(r#"{"t":"T","d":[1,"x"],"op":0,"s":4,"o":{"sync":true},"more":null}"#).is_ok());
        assert!(decode(r#"{"op":99,"t":null}"#).is_ok());
    }

    #[test]
    fn what_a_client_that_resumes_says_is_understood() {
        let text = r#"{"op":2,"d":{"token":"alice","after":41,"device":"phone-1","shouldSync":true,"more":[1]}}"#;
        let ClientFrame::Authentication(said) = decode(text).unwrap() else { panic!("an authentication") };
        assert_eq!((said.after, said.device), (Some(41), Some(DeviceId::new("phone-1").unwrap())));
        // Who checks the token need not know of ours.
        assert_eq!(Value::Object(said.data), serde_json::json!({"token": "alice", "more": [1]}));
        let ClientFrame::Authentication(said) = decode(r#"{"op":2,"d":{"after":0}}"#).unwrap() else {
            panic!("an authentication")
        };
        assert_eq!(said.after, Some(0));
        let text = r#"{"op":2,"d":{"token":"alice","device":{"os":"an application's own"}}}"#;
        let ClientFrame::Authentication(said) = decode(text).unwrap() else { panic!("an authentication") };
        assert!(said.device.is_none() && said.data["device"]["os"] == "an application's own");
        assert!(matches!(decode(r#"{"op":3,"d":{"s":41}}"#), Ok(ClientFrame::Receipt { s: 41 })));
        assert!(matches!(decode(r#"{"op":3,"d":{"s":0,"more":1}}"#), Ok(ClientFrame::Receipt { s: 0 })));
    }

    /// `data/protocol/malformed.txt`: a close code, a tab, and a frame that must end with it, as a JSON string.
    #[test]
    fn a_malformed_frame_is_refused_with_its_code() {
        let table = include_str!("../../data/protocol/malformed.txt");
        let rows: Vec<&str> = table.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).collect();
        assert!(rows.len() >= 40);
        for row in rows {
            let (code, text) = row.split_once('\t').unwrap();
            let text: String = serde_json::from_str(text).unwrap();
            let refused = decode(&text).expect_err(&text);
            assert_eq!(refused.close_code().code().to_string(), code, "{text:?}: {refused}");
        }
    }

    #[test]
    fn half_of_a_pair_in_what_is_passed_on_is_kept() {
        let text = r#"{"op":0,"d":{"x":"\ud83d"},"t":"T\ude00"}"#;
        let ClientFrame::Dispatch(sent) = decode(text).unwrap() else { panic!("a message") };
        assert_eq!(sent.data.unwrap().get(), r#"{"x":"\ud83d"}"#);
        assert_eq!(sent.kind.unwrap().raw(), Some(r#""T\ude00""#));
        let text = r#"{"op":2,"d":{"token":"t","after":3,"name":"a\ud83d","device":"phone","shouldSync":false}}"#;
        let ClientFrame::Authentication(sent) = decode(text).unwrap() else { panic!("an authentication") };
        assert_eq!((sent.after, sent.should_sync, sent.token_is_cut), (Some(3), false, false));
        assert_eq!(sent.text.unwrap(), r#"{"name":"a\ud83d","token":"t"}"#);
        assert_eq!(Value::Object(sent.data), serde_json::json!({"token": "t", "name": "a\u{fffd}"}));
        // Without `after` the device is the application's own.
        let text = r#"{"op":2,"d":{"token":"t\ud83d","device":"\ude00"}}"#;
        let ClientFrame::Authentication(sent) = decode(text).unwrap() else { panic!("an authentication") };
        assert!(sent.token_is_cut && sent.device.is_none() && sent.text.unwrap().contains(r#""device":"\ude00""#));
        let ClientFrame::Authentication(sent) = decode(r#"{"op":2,"d":{"token":"\ud83d\ude00"}}"#).unwrap() else {
            panic!("an authentication")
        };
        assert!(sent.text.is_none() && !sent.token_is_cut && sent.data["token"] == "\u{1f600}");
    }

    #[test]
    fn half_of_a_pair_in_what_must_be_text_is_the_reason() {
        let refused = decode(r#"{"op":0,"d":"\ud83d","t":"a\ude00","\ude00":1}"#).unwrap_err();
        assert!(refused.to_string().starts_with("a text has half of a surrogate pair"), "{refused}");
        assert_eq!(
            (refused.close_code(), refused.reason()),
            (CloseCode::Policy, "a text has half of a surrogate pair")
        );
    }

    #[test]
    fn each_cause_has_a_reason_that_fits_a_close_frame() {
        let frames = ["{", "{}", r#"{"op":5}"#, r#"{"op":2}"#, r#"{"op":3}"#, r#"{"op":0,"\ud83d":1}"#];
        let reasons: Vec<&str> = frames.iter().map(|frame| decode(frame).unwrap_err().reason()).collect();
        assert!(reasons.iter().all(|reason| (1..=123).contains(&reason.len())), "{reasons:?}");
        assert!(reasons.iter().enumerate().all(|(at, reason)| !reasons[..at].contains(reason)), "{reasons:?}");
    }

    #[test]
    fn deep_nesting_is_refused_before_it_is_parsed() {
        for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
            let text = format!("{{\"op\":0,\"d\":{}1{}}}", open.repeat(200_000), close.repeat(200_000));
            assert!(matches!(decode(&text), Err(FrameError::TooDeep)));
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in ".*") {
            _ = decode(&text);
        }

        #[test]
        fn no_damage_makes_it_panic(at in 0_usize..64, with in any::<char>(), cut in 0_usize..64) {
            let mut text: Vec<char> = r#"{"op":2,"d":{"token":"alice","shouldSync":true},"t":"\u0041"}"#.chars().collect();
            let at = at.min(text.len() - 1);
            text[at] = with;
            text.truncate(text.len() - cut.min(text.len()));
            _ = decode(&text.into_iter().collect::<String>());
        }
    }
}
