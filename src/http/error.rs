//! Defines every error of the API: HTTP status, code for programs, message for people.

use std::time::Duration;

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};

use super::error_response::ErrorBody;
use crate::{
    health::LogLimit,
    hub::StoreError,
    message::{MessageError, UserIdError},
};

/// Limits the log lines about failed requests: a lasting cause fails every request.
static FAILED: LogLimit = LogLimit::new();

/// Enumerates the errors of a request.
#[derive(Debug, thiserror::Error)]
pub(super) enum ApiError {
    #[error("an API key is required: send `Authorization: Bearer KEY` with a key of `api.keys`")]
    MissingKey,
    #[error("the API key is not one of this server's `api.keys`: check the key that was sent")]
    WrongKey,
    #[error("the header Authorization {0}; send it once, as `Authorization: Bearer KEY`")]
    BadAuthorization(&'static str),
    #[error(
        "too many wrong API keys from this address: retry in {} s, with a key of `api.keys`. Connections that have \
         presented a valid key still work",
        .0.as_secs().max(1)
    )]
    TooManyWrongKeys(Duration),
    #[error("the session of the admin page has ended, or there is none: log in again")]
    NoSession,
    #[error("the header X-CSRF-Token must have the token of the session: reload the admin page")]
    CsrfToken,
    #[error("the password is wrong: the right one is `admin.password` in the server's configuration")]
    WrongPassword,
    #[error("too many wrong passwords from this address: retry in {} s", .0.as_secs().max(1))]
    TooManyWrongPasswords(Duration),
    #[error("the system has no random bytes for a session ({0}): check the operating system")]
    NoRandomBytes(String),
    #[error("this server has no API keys: add one under `api.keys` in its configuration")]
    NoKeysConfigured,
    #[error("no such endpoint: the endpoints are listed at /docs and /openapi.json")]
    NotFound,
    #[error("unknown user: no message was ever sent to this id, and no client has connected with it; check the id")]
    UserUnknown,
    #[error(
        "the user connected again and again for 10 s, so nothing was erased: revoke the tokens of this user, then retry"
    )]
    UserOnline,
    #[error(
        "a store in Redis cannot erase users yet: clear the user's messages with DELETE /v1/users/{{id}}/messages, and delete \
         the user's keys in Redis while no server runs"
    )]
    EraseUnsupported,
    #[error("this path does not support that method; the header Allow lists those that it does")]
    MethodNotAllowed,
    #[error("unsupported Content-Type: send application/json, or application/x-ndjson for a stream")]
    UnsupportedMediaType,
    #[error("unsupported Content-Encoding `{0}`: send the body uncompressed")]
    UnsupportedEncoding(String),
    #[error("a dispatch may have at most {0} bytes of JSON (limits.requestBytes); send a smaller one")]
    TooLarge(usize),
    #[error(
        "timed out: a body, or a line that has begun, must arrive within 30 s, and most requests are answered within 30 s. \
         Retry"
    )]
    TooSlow,
    #[error("the body could not be read: {0}")]
    BadBody(String),
    #[error("the body is not JSON: {0}")]
    BadJson(String),
    #[error("the body is not a dispatch: {0}")]
    BadDispatch(String),
    #[error("{0}")]
    LoneSurrogate(String),
    #[error("{0}")]
    BadHead(&'static str),
    #[error("{0}")]
    ForeignPage(&'static str),
    #[error("{0}")]
    BadParameter(String),
    #[error("{0}")]
    BackupRunning(&'static str),
    #[error("the logs are in Redis: back up Redis instead, with BGSAVE or a copy of its append-only files")]
    BackupElsewhere,
    #[error("portals are off on this server: set portal.enabled to true in its configuration")]
    PortalsOff,
    #[error("too many portals are open on this server; close those that are not needed")]
    TooManyPortals,
    #[error("64 observers of events are connected to this server, which is the limit; close one")]
    TooManyObservers,
    #[error(
        "o.ttl and o.collapse need stored messages, and sync is off on this server: set sync.enabled to true in its \
         configuration, or omit them"
    )]
    SyncOff,
    #[error("{0}")]
    Message(#[from] MessageError),
    #[error("{0}")]
    User(#[from] UserIdError),
    #[error("a dispatch may have at most {0} recipients (limits.recipients); split it")]
    TooManyRecipients(usize),
    #[error("{0}")]
    Store(#[from] StoreError),
}

impl ApiError {
    /// Returns the HTTP status, and the code for programs.
    fn status_and_code(&self) -> (StatusCode, &'static str) {
        match self {
            Self::MissingKey | Self::WrongKey | Self::BadAuthorization(_) | Self::NoKeysConfigured => {
                (StatusCode::UNAUTHORIZED, "unauthorized")
            }
            Self::NoSession => (StatusCode::UNAUTHORIZED, "no_session"),
            Self::WrongPassword => (StatusCode::UNAUTHORIZED, "wrong_password"),
            Self::CsrfToken => (StatusCode::FORBIDDEN, "csrf_token"),
            Self::NoRandomBytes(_) => (StatusCode::INTERNAL_SERVER_ERROR, "internal"),
            Self::TooManyWrongKeys(_) | Self::TooManyWrongPasswords(_) => {
                (StatusCode::TOO_MANY_REQUESTS, "too_many_wrong_keys")
            }
            Self::NotFound => (StatusCode::NOT_FOUND, "not_found"),
            Self::UserUnknown => (StatusCode::NOT_FOUND, "user_unknown"),
            Self::UserOnline => (StatusCode::CONFLICT, "user_online"),
            Self::EraseUnsupported => (StatusCode::NOT_IMPLEMENTED, "not_implemented"),
            Self::MethodNotAllowed => (StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed"),
            Self::UnsupportedMediaType | Self::UnsupportedEncoding(_) => {
                (StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type")
            }
            Self::TooLarge(_) => (StatusCode::PAYLOAD_TOO_LARGE, "request_too_large"),
            Self::Message(MessageError::TooLarge { .. }) => (StatusCode::PAYLOAD_TOO_LARGE, "message_too_large"),
            Self::TooSlow => (StatusCode::REQUEST_TIMEOUT, "too_slow"),
            Self::BadBody(_) => (StatusCode::BAD_REQUEST, "bad_body"),
            Self::BadJson(_) => (StatusCode::BAD_REQUEST, "bad_json"),
            Self::BadDispatch(_) | Self::LoneSurrogate(_) => (StatusCode::UNPROCESSABLE_ENTITY, "bad_dispatch"),
            Self::BackupRunning(_) => (StatusCode::CONFLICT, "backup_running"),
            Self::BackupElsewhere => (StatusCode::CONFLICT, "backup_elsewhere"),
            Self::PortalsOff => (StatusCode::CONFLICT, "portals_off"),
            Self::TooManyObservers => (StatusCode::CONFLICT, "too_many_observers"),
            Self::TooManyPortals => (StatusCode::CONFLICT, "too_many_portals"),
            Self::BadHead(_) => (StatusCode::BAD_REQUEST, "bad_request"),
            Self::ForeignPage(_) => (StatusCode::FORBIDDEN, "foreign_page"),
            Self::BadParameter(_) => (StatusCode::BAD_REQUEST, "bad_parameter"),
            Self::SyncOff => (StatusCode::UNPROCESSABLE_ENTITY, "sync_off"),
            Self::Message(_) => (StatusCode::UNPROCESSABLE_ENTITY, "bad_message"),
            Self::User(_) => (StatusCode::UNPROCESSABLE_ENTITY, "bad_user"),
            Self::TooManyRecipients(_) => (StatusCode::UNPROCESSABLE_ENTITY, "too_many_recipients"),
            Self::Store(StoreError::Full(_)) => (StatusCode::INSUFFICIENT_STORAGE, "full"),
            Self::Store(StoreError::Busy(_)) => (StatusCode::SERVICE_UNAVAILABLE, "busy"),
            Self::Store(StoreError::OutcomeUnknown(_)) => (StatusCode::SERVICE_UNAVAILABLE, "outcome_unknown"),
            Self::Store(StoreError::Closed) => (StatusCode::SERVICE_UNAVAILABLE, "shutting_down"),
            Self::Store(StoreError::Unreachable(_)) => (StatusCode::SERVICE_UNAVAILABLE, "unreachable"),
            Self::Store(StoreError::Failed(_)) => (StatusCode::SERVICE_UNAVAILABLE, "store_failed"),
            Self::Store(_) => (StatusCode::INTERNAL_SERVER_ERROR, "internal"),
        }
    }

    /// Appends the error as JSON.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        ErrorBody::new(self.status_and_code().1, &self.to_string()).write(out);
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (status, code) = self.status_and_code();
        if status.is_server_error()
            && let Some(suppressed) = FAILED.due(code)
        {
            tracing::error!(error = %self, suppressed, "request failed");
        }
        let mut body = Vec::new();
        self.write(&mut body);
        let mut response = super::json(status, body);
        if let Self::UnsupportedEncoding(_) = self {
            response.headers_mut().insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        }
        if let Self::TooManyWrongKeys(wait) | Self::TooManyWrongPasswords(wait) = self {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(wait.as_secs().max(1)));
        }
        if let Self::Store(StoreError::Busy(_)) = self {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if code == "unauthorized" {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::openapi::codes::CODES;

    #[test]
    fn busy_store_states_when_to_retry() {
        let response = ApiError::Store(StoreError::Busy("x".into())).into_response();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.headers().get(header::RETRY_AFTER), Some(&HeaderValue::from_static("1")));
    }

    #[test]
    fn api_error_has_its_row_in_the_documented_table() {
        let guide = include_str!("../guide/http-api.md");
        let reason = || "x".to_owned();
        for error in [
            ApiError::MissingKey,
            ApiError::WrongKey,
            ApiError::BadAuthorization("x"),
            ApiError::TooManyWrongKeys(Duration::from_secs(1)),
            ApiError::NoKeysConfigured,
            ApiError::NoSession,
            ApiError::CsrfToken,
            ApiError::WrongPassword,
            ApiError::TooManyWrongPasswords(Duration::from_secs(1)),
            ApiError::NoRandomBytes(reason()),
            ApiError::NotFound,
            ApiError::UserUnknown,
            ApiError::UserOnline,
            ApiError::EraseUnsupported,
            ApiError::MethodNotAllowed,
            ApiError::UnsupportedMediaType,
            ApiError::UnsupportedEncoding(reason()),
            ApiError::TooLarge(1),
            ApiError::Message(MessageError::TooLarge { bytes: 1 }),
            ApiError::TooSlow,
            ApiError::BadBody(reason()),
            ApiError::BadJson(reason()),
            ApiError::BadDispatch(reason()),
            ApiError::BackupRunning("x"),
            ApiError::BackupElsewhere,
            ApiError::PortalsOff,
            ApiError::TooManyPortals,
            ApiError::TooManyObservers,
            ApiError::BadHead("x"),
            ApiError::ForeignPage("x"),
            ApiError::BadParameter(reason()),
            ApiError::SyncOff,
            ApiError::Message(MessageError::TooDeep),
            ApiError::User(UserIdError::Empty),
            ApiError::TooManyRecipients(1),
            ApiError::Store(StoreError::Full("x".into())),
            ApiError::Store(StoreError::Busy("x".into())),
            ApiError::Store(StoreError::OutcomeUnknown("x".into())),
            ApiError::Store(StoreError::Closed),
            ApiError::Store(StoreError::Failed("x".into())),
            ApiError::Store(StoreError::Unreachable("x".into())),
            ApiError::Store(StoreError::Damaged("x".into())),
        ] {
            let (status, code) = error.status_and_code();
            let described = CODES.iter().any(|one| (one.name, one.status) == (code, status.as_u16()));
            assert!(described, "{code} with {status} is not in the document of the API");
            let row = guide.lines().find(|line| line.starts_with("| `") && line.contains(&format!("`{code}`")));
            let row = row.unwrap_or_else(|| panic!("{code} is not documented"));
            assert!(
                row.contains(&format!("| {} |", status.as_u16())),
                "expected {code} with {status} in the row {row}"
            );
        }
    }
}
