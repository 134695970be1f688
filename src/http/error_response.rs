//! Builds error responses for requests that never reach the API: WebSocket upgrades, and requests that hyper cannot
//! parse.
//!
//! Their body has the form of all other error responses.

use axum::{
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::Response,
};
use serde::Serialize;
use utoipa::ToSchema;

/// Body of every error response.
#[derive(Serialize, ToSchema)]
#[schema(as = Error)]
pub(super) struct ErrorBody<'a> {
    error: ErrorDetail<'a>,
}

/// An error.
#[derive(Serialize, ToSchema)]
struct ErrorDetail<'a> {
    /// For programs.
    code: &'a str,
    /// A sentence for people. It may change.
    message: &'a str,
}

impl<'a> ErrorBody<'a> {
    pub(super) fn new(code: &'a str, message: &'a str) -> Self {
        Self { error: ErrorDetail { code, message } }
    }

    /// Appends the error as JSON.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        serde_json::to_writer(out, self).expect("writing to a Vec cannot fail");
    }
}

/// Builds an error response in JSON. The status determines the code.
#[must_use]
pub fn response(status: StatusCode, why: &str) -> Response {
    super::json(status, body(status, why))
}

/// Builds an error response with one more header.
#[must_use]
pub fn with_header(status: StatusCode, why: &str, (name, value): (HeaderName, &'static str)) -> Response {
    let mut response = response(status, why);
    response.headers_mut().insert(name, HeaderValue::from_static(value));
    response
}

/// Builds the response to a WebSocket while the server stops or drains.
#[must_use]
pub fn stopping(why: &str) -> Response {
    let mut response = super::json(StatusCode::SERVICE_UNAVAILABLE, encode("shutting_down", why));
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("5"));
    response
}

/// Encodes the body of an error response.
#[must_use]
pub fn body(status: StatusCode, why: &str) -> Vec<u8> {
    encode(code(status), why)
}

fn encode(code: &str, why: &str) -> Vec<u8> {
    let mut body = Vec::new();
    ErrorBody::new(code, why).write(&mut body);
    body
}

fn code(status: StatusCode) -> &'static str {
    match status {
        StatusCode::FORBIDDEN => "foreign_page",
        StatusCode::NOT_FOUND => "not_found",
        StatusCode::METHOD_NOT_ALLOWED => "method_not_allowed",
        StatusCode::URI_TOO_LONG | StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => "head_too_large",
        StatusCode::UPGRADE_REQUIRED => "upgrade_required",
        StatusCode::SERVICE_UNAVAILABLE => "too_many_connections",
        _ => "bad_request",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_response_has_its_row_in_the_documented_table() {
        let guide = include_str!("../guide/http-api.md");
        for status in [400, 403, 404, 405, 426, 431, 503] {
            let code = code(StatusCode::from_u16(status).unwrap());
            let row = guide.lines().find(|line| line.starts_with("| `") && line.contains(&format!("`{code}`")));
            assert!(row.is_some_and(|row| row.contains(&format!("| {status} |"))), "{code}: {row:?}");
        }
    }
}
