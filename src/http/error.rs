//! Defines every error of the API: HTTP status, code for programs, sentence for people.

use std::time::Duration;

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::json;

use crate::{
    health::LogLimit,
    hub::StoreError,
    message::{MessageError, UserIdError},
};

/// Limits log lines: a lasting cause fails every request.
static FAILED: LogLimit = LogLimit::new();

/// Says why a request failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum ApiError {
    #[error("an API key is required: send `Authorization: Bearer KEY` with a key of `api.keys`")]
    NoKey,
    #[error("the API key is not one of this server's `api.keys`: check the key that was sent")]
    WrongKey,
    #[error("the header Authorization {0}; send it once, as `Authorization: Bearer KEY`")]
    Authorization(&'static str),
    #[error(
                "too many wrong API keys from this address: retry in {} s, with a key of `api.keys`. Connections that have \
                 presented a valid key still work",
        .0.as_secs().max(1)
    )]
    TooManyWrongKeys(Duration),
    #[error("this server has no API keys: add one under `api.keys` in its configuration")]
    NoKeys,
    #[error("no such endpoint: check the path against the HTTP API chapter of the guide")]
    NotFound,
    #[error("unknown user: no message was ever sent to this id, and no client has connected with it; check the id")]
    UserUnknown,
    #[error("this path does not support that method; the header Allow lists those that it does")]
    MethodNotAllowed,
    #[error("unsupported Content-Type: send application/json, or application/x-ndjson for a stream")]
    MediaType,
    #[error("unsupported Content-Encoding `{0}`: send the body uncompressed")]
    Encoding(String),
    #[error("a dispatch may have at most {0} bytes of JSON (limits.requestBytes); send a smaller one")]
    TooLarge(usize),
    #[error(
        "timed out: a body, or a line that has begun, must arrive within 30 s, and most requests are answered within 30 s. \
                 Retry"
    )]
    TooSlow,
    #[error("the body could not be read: {0}")]
    Body(String),
    #[error("the body is not JSON: {0}")]
    BadJson(String),
    #[error("the body is not a dispatch: {0}")]
    Shape(String),
    #[error("{0}")]
    LoneSurrogate(String),
    #[error("{0}")]
    Head(&'static str),
    #[error("{0}")]
    Foreign(&'static str),
    #[error("{0}")]
    Parameter(String),
    #[error("{0}")]
    Busy(&'static str),
    #[error("the logs are in Redis: back up Redis instead, with BGSAVE or a copy of its append-only files")]
    BackupElsewhere,
    #[error("portals are off on this server: set portal.enabled to true in its configuration")]
    NoPortals,
    #[error("too many portals are open on this server; close those that are not needed")]
    ManyPortals,
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
    Recipients(usize),
    #[error("{0}")]
    Store(#[from] StoreError),
}

impl ApiError {
    fn row(&self) -> (StatusCode, &'static str) {
        match self {
            Self::NoKey | Self::WrongKey | Self::Authorization(_) | Self::NoKeys => {
                (StatusCode::UNAUTHORIZED, "unauthorized")
            }
            Self::TooManyWrongKeys(_) => (StatusCode::TOO_MANY_REQUESTS, "too_many_wrong_keys"),
            Self::NotFound => (StatusCode::NOT_FOUND, "not_found"),
            Self::UserUnknown => (StatusCode::NOT_FOUND, "user_unknown"),
            Self::MethodNotAllowed => (StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed"),
            Self::MediaType | Self::Encoding(_) => (StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type"),
            Self::TooLarge(_) => (StatusCode::PAYLOAD_TOO_LARGE, "request_too_large"),
            Self::Message(MessageError::TooLarge { .. }) => (StatusCode::PAYLOAD_TOO_LARGE, "message_too_large"),
            Self::TooSlow => (StatusCode::REQUEST_TIMEOUT, "too_slow"),
            Self::Body(_) => (StatusCode::BAD_REQUEST, "bad_body"),
            Self::BadJson(_) => (StatusCode::BAD_REQUEST, "bad_json"),
            Self::Shape(_) | Self::LoneSurrogate(_) => (StatusCode::UNPROCESSABLE_ENTITY, "bad_dispatch"),
            Self::Busy(_) => (StatusCode::CONFLICT, "busy"),
            Self::BackupElsewhere => (StatusCode::CONFLICT, "backup_elsewhere"),
            Self::NoPortals => (StatusCode::CONFLICT, "portals_off"),
            Self::ManyPortals => (StatusCode::CONFLICT, "too_many_portals"),
            Self::Head(_) => (StatusCode::BAD_REQUEST, "bad_request"),
            Self::Foreign(_) => (StatusCode::FORBIDDEN, "foreign_page"),
            Self::Parameter(_) => (StatusCode::BAD_REQUEST, "bad_parameter"),
            Self::SyncOff => (StatusCode::UNPROCESSABLE_ENTITY, "sync_off"),
            Self::Message(_) => (StatusCode::UNPROCESSABLE_ENTITY, "bad_message"),
            Self::User(_) => (StatusCode::UNPROCESSABLE_ENTITY, "bad_user"),
            Self::Recipients(_) => (StatusCode::UNPROCESSABLE_ENTITY, "too_many_recipients"),
            Self::Store(StoreError::Full(_)) => (StatusCode::INSUFFICIENT_STORAGE, "full"),
            Self::Store(StoreError::Closed) => (StatusCode::SERVICE_UNAVAILABLE, "shutting_down"),
            Self::Store(StoreError::Unreachable(_)) => (StatusCode::SERVICE_UNAVAILABLE, "unreachable"),
            Self::Store(StoreError::Failed(_)) => (StatusCode::SERVICE_UNAVAILABLE, "store_failed"),
            Self::Store(_) => (StatusCode::INTERNAL_SERVER_ERROR, "internal"),
        }
    }

    /// Appends the error as JSON.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        let body = json!({"error": {"code": self.row().1, "message": self.to_string()}});
        out.extend_from_slice(body.to_string().as_bytes());
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (status, code) = self.row();
        if status.is_server_error()
            && let Some(suppressed) = FAILED.due(code)
        {
            tracing::error!(error = %self, suppressed, "request failed");
        }
        let mut body = Vec::new();
        self.write(&mut body);
        let mut response = super::json(status, body);
        if let Self::Encoding(_) = self {
            response.headers_mut().insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        }
        if let Self::TooManyWrongKeys(wait) = self {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(wait.as_secs().max(1)));
        }
        if status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Programs depend on the documented status and code.
    #[test]
    fn api_error_has_its_row_in_the_documented_table() {
        let guide = include_str!("../guide/http-api.md");
        let reason = || "x".to_owned();
        for error in [
            ApiError::NoKey,
            ApiError::WrongKey,
            ApiError::Authorization("x"),
            ApiError::TooManyWrongKeys(Duration::from_secs(1)),
            ApiError::NoKeys,
            ApiError::NotFound,
            ApiError::UserUnknown,
            ApiError::MethodNotAllowed,
            ApiError::MediaType,
            ApiError::Encoding(reason()),
            ApiError::TooLarge(1),
            ApiError::Message(MessageError::TooLarge { bytes: 1 }),
            ApiError::TooSlow,
            ApiError::Body(reason()),
            ApiError::BadJson(reason()),
            ApiError::Shape(reason()),
            ApiError::Busy("x"),
            ApiError::BackupElsewhere,
            ApiError::NoPortals,
            ApiError::ManyPortals,
            ApiError::Head("x"),
            ApiError::Foreign("x"),
            ApiError::Parameter(reason()),
            ApiError::SyncOff,
            ApiError::Message(MessageError::TooDeep),
            ApiError::User(UserIdError::Empty),
            ApiError::Recipients(1),
            ApiError::Store(StoreError::Full("x".into())),
            ApiError::Store(StoreError::Closed),
            ApiError::Store(StoreError::Failed("x".into())),
            ApiError::Store(StoreError::Unreachable("x".into())),
            ApiError::Store(StoreError::Damaged("x".into())),
        ] {
            let (status, code) = error.row();
            let row = guide.lines().find(|line| line.starts_with("| `") && line.contains(&format!("`{code}`")));
            let row = row.unwrap_or_else(|| panic!("{code} is not documented"));
            assert!(
                row.contains(&format!("| {} |", status.as_u16())),
                "expected {code} with {status} in the row {row}"
            );
        }
    }
}
