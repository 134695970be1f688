//! `POST /v1/dispatch`: a message for some users, or for everyone.

use std::borrow::Cow;

use axum::{
    BoxError,
    body::{Bytes, HttpBody},
    http::{HeaderMap, Request, StatusCode, header},
    response::Response,
};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::Deserialize;
use serde_json::{json, value::RawValue};

use super::{Api, error::ApiError};
use crate::{
    hub::{Dispatch, Outcome, Reason, Rejected},
    message::{EVERYONE, Options, Payload, Recipients, UserId},
};

/// The opcode of internal events, and the only one there is.
const INTERNAL_EVENT: u64 = 5;
const DISCONNECT_CLIENT: &str = "DISCONNECT_CLIENT";

/// A body as it is sent. `d` is taken over to the letter and never parsed.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Body<'a> {
    #[serde(borrow)]
    message: &'a RawValue,
    #[serde(borrow)]
    recipients: Vec<Cow<'a, str>>,
    #[serde(borrow, default)]
    excluding: Vec<Cow<'a, str>>,
    #[serde(default)]
    id: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BodyMessage<'a> {
    #[serde(default)]
    op: u64,
    #[serde(borrow, default)]
    d: Option<&'a RawValue>,
    #[serde(borrow, default)]
    t: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    o: Option<&'a RawValue>,
}

/// What a body asks for.
#[derive(Debug)]
enum Asked {
    Dispatch(Dispatch, Vec<Rejected>),
    Disconnect { recipients: Recipients, excluding: Vec<UserId>, rejected: Vec<Rejected> },
}

/// Where dispatches are posted.
pub(super) const PATH: &str = "/v1/dispatch";

pub(super) async fn dispatch<B>(api: &Api, request: Request<B>) -> Result<Response, ApiError>
where
    B: HttpBody<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    check_type(request.headers())?;
    let bytes_max = api.limits.request_bytes;
    // A body that is here already sets no timer.
    let body = tokio::time::timeout(super::BODY_TIME_MAX, Limited::new(request.into_body(), bytes_max).collect()).await;
    let body = body.map_err(|_| ApiError::TooSlow)?.map_err(|error| {
        if error.is::<LengthLimitError>() { ApiError::TooLarge(bytes_max) } else { ApiError::Body(error.to_string()) }
    })?;
    match read(&body.to_bytes(), api.limits.recipients)? {
        Asked::Dispatch(dispatch, rejected) => {
            let outcome = api.hub.dispatch(dispatch).await?;
            Ok(answer(&outcome, &rejected))
        }
        Asked::Disconnect { recipients, excluding, rejected } => {
            Ok(answer(&api.hub.disconnect(&recipients, &excluding), &rejected))
        }
    }
}

/// `application/json`, whatever its parameters; a body without a type is taken for one.
fn check_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(value) = headers.get(header::CONTENT_TYPE) else { return Ok(()) };
    let kind = value.to_str().unwrap_or_default().split(';').next().unwrap_or_default().trim();
    // What curl says when it is told nothing.
    let known = ["application/json", "application/x-www-form-urlencoded"];
    if known.iter().any(|known| kind.eq_ignore_ascii_case(known)) { Ok(()) } else { Err(ApiError::MediaType) }
}

fn read(body: &[u8], recipients_max: usize) -> Result<Asked, ApiError> {
    let body = std::str::from_utf8(body).map_err(|error| ApiError::BadJson(error.to_string()))?;
    let body: Body<'_> = object(body)?;
    if body.id.is_some() {
        let why = "dispatch ids are not supported by this version, so a repeat could not be told from a new message";
        return Err(ApiError::NotSupported(why));
    }
    if body.recipients.len() > recipients_max || body.excluding.len() > recipients_max {
        return Err(ApiError::Recipients(recipients_max));
    }
    let mut rejected = Vec::new();
    let recipients = if body.recipients.iter().any(|id| id == EVERYONE) {
        if body.recipients.iter().any(|id| id != EVERYONE) {
            // It would be kept for none of them, although they were named.
            return Err(ApiError::Shape("`*` is everyone who is connected, and cannot stand beside user ids".into()));
        }
        Recipients::Everyone
    } else {
        Recipients::Users(users(body.recipients, &mut rejected))
    };
    // Nobody has an id that is not one, so there is nobody to exclude by it.
    let excluding = users(body.excluding, &mut Vec::new());
    let BodyMessage { op, d, t, o } = object(body.message.get())?;
    let options: Options = o.map_or_else(|| Ok(Options::default()), |o| object(o.get()))?;
    if op == INTERNAL_EVENT {
        if t.as_deref() != Some(DISCONNECT_CLIENT) {
            return Err(ApiError::Shape(format!(
                "opcode 5 is for internal events, of which there is {DISCONNECT_CLIENT}"
            )));
        }
        return Ok(Asked::Disconnect { recipients, excluding, rejected });
    }
    let payload = Payload::encode(op, d.map(RawValue::get), t.as_deref())?;
    let dispatch = Dispatch { sync: options.sync, excluding, ..Dispatch::new(payload, recipients) };
    Ok(Asked::Dispatch(dispatch, rejected))
}

/// Reads an object by its fields. A list of their values would be taken as well, so it is looked at first.
fn object<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, ApiError> {
    if text.trim_start().starts_with('[') {
        return Err(ApiError::Shape("a list where an object has to be".into()));
    }
    serde_json::from_str(text).map_err(|error| {
        if error.is_data() { ApiError::Shape(error.to_string()) } else { ApiError::BadJson(error.to_string()) }
    })
}

fn users(ids: Vec<Cow<'_, str>>, rejected: &mut Vec<Rejected>) -> Vec<UserId> {
    let mut users = Vec::with_capacity(ids.len());
    for id in ids {
        match UserId::new(&id) {
            Ok(user) => users.push(user),
            Err(_) => rejected.push(Rejected { user: id.into(), reason: Reason::Invalid }),
        }
    }
    users
}

fn answer(outcome: &Outcome, rejected: &[Rejected]) -> Response {
    let (recipients, online, offline) = (outcome.recipients, outcome.online, outcome.offline);
    let rejected: Vec<_> = rejected.iter().chain(&outcome.rejected).collect();
    let body = if rejected.is_empty() {
        format!(
            r#"{{"recipients":{recipients},"online":{online},"offline":{offline},"rejected":[],"duplicate":false}}"#
        )
    } else {
        let recipients = recipients + rejected.len();
        let rejected: Vec<_> =
            rejected.into_iter().map(|one| json!({"user": one.user, "reason": one.reason.as_str()})).collect();
        json!({
            "recipients": recipients, "online": online, "offline": offline, "rejected": rejected, "duplicate": false
        })
        .to_string()
    };
    super::json(StatusCode::OK, body)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(body: &str) -> String {
        read(body.as_bytes(), 3).expect_err(body).to_string()
    }

    fn dispatched(body: &str) -> (Dispatch, Vec<Rejected>) {
        match read(body.as_bytes(), 3).unwrap() {
            Asked::Dispatch(dispatch, rejected) => (dispatch, rejected),
            Asked::Disconnect { .. } => panic!("a dispatch"),
        }
    }

    #[test]
    fn a_dispatch_is_read_and_its_data_kept_to_the_letter() {
        let body = r#"{"message":{"op":0,"d":{"n": 1.0},"t":"T","o":{"sync":false}},"recipients":["a","b"],"excluding":["c"]}"#;
        let (dispatch, rejected) = dispatched(body);
        assert_eq!(&dispatch.payload.as_bytes()[..], br#"{"op":0,"d":{"n": 1.0},"t":"T"}"#);
        assert!(!dispatch.sync && rejected.is_empty());
        assert_eq!(dispatch.excluding, [UserId::new("c").unwrap()]);
        let (dispatch, _) = dispatched(r#"{"message":{},"recipients":["*"]}"#);
        assert!(dispatch.sync && dispatch.recipients == Recipients::Everyone);
    }

    #[test]
    fn an_id_that_is_none_is_rejected_and_the_others_are_served() {
        let (dispatch, rejected) = dispatched(r#"{"message":{},"recipients":["a","","b\u0000"]}"#);
        assert_eq!(dispatch.recipients, Recipients::Users(vec![UserId::new("a").unwrap()]));
        let reasons: Vec<_> = rejected.iter().map(|one| (&*one.user, one.reason.as_str())).collect();
        assert_eq!(reasons, [("", "invalid"), ("b\0", "invalid")]);
    }

    #[test]
    fn what_is_refused_says_why() {
        for (body, why) in [
            ("", "not JSON"),
            ("{", "not JSON"),
            ("[]", "not a dispatch"),
            ("{}", "missing field `message`"),
            (r#"{"message":{}}"#, "missing field `recipients`"),
            (r#"{"message":{},"recipients":"a"}"#, "not a dispatch"),
            (r#"{"message":{},"recipients":[1]}"#, "not a dispatch"),
            (r#"{"message":{},"recipients":["a","*"]}"#, "cannot stand beside"),
            (r#"{"message":{},"recipients":[],"to":[]}"#, "unknown field `to`"),
            (r#"[{},["a"]]"#, "a list"),
            (r#"{"message":[0,1,"T"],"recipients":[]}"#, "a list"),
            (r#"{"message":{"o":[false]},"recipients":[]}"#, "a list"),
            (r#"{"message":null,"recipients":[]}"#, "not a dispatch"),
            (r#"{"message":{"x":1},"recipients":[]}"#, "unknown field `x`"),
            (r#"{"message":{"op":-1},"recipients":[]}"#, "not a dispatch"),
            (r#"{"message":{"op":1},"recipients":[]}"#, "belongs to the protocol"),
            (r#"{"message":{"op":22},"recipients":[]}"#, "belongs to the protocol"),
            (r#"{"message":{"op":5,"t":"X"},"recipients":[]}"#, "DISCONNECT_CLIENT"),
            (r#"{"message":{"o":{"ttl":1}},"recipients":[]}"#, "unknown field `ttl`"),
            (r#"{"message":{},"recipients":["a","b","c","d"]}"#, "at most 3"),
            (r#"{"message":{},"recipients":[],"id":"x"}"#, "not supported"),
            (r#"{"message":{},"recipients":[]} x"#, "not JSON"),
        ] {
            let told = refusal(body);
            assert!(told.contains(why), "{body}: {told}");
        }
        let deep = format!(r#"{{"message":{{"d":{}{}}},"recipients":[]}}"#, "[".repeat(5000), "]".repeat(5000));
        assert!(refusal(&deep).contains("deep") || refusal(&deep).contains("recursion"));
    }

    #[test]
    fn disconnecting_is_an_internal_event() {
        let body = r#"{"message":{"op":5,"d":{},"t":"DISCONNECT_CLIENT"},"recipients":["a"]}"#;
        assert!(matches!(read(body.as_bytes(), 3), Ok(Asked::Disconnect { .. })));
    }

    #[test]
    fn a_body_has_to_be_json() {
        let check = |kind: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, kind.parse().unwrap());
            check_type(&headers).is_ok()
        };
        assert!(check("application/json") && check("Application/JSON; charset=utf-8"));
        assert!(!check("application/x-ndjson") && !check("text/plain") && !check(""));
    }
}
