//! Serves `/v1/drain`: the server takes no new connections, and closes the present ones.

use std::time::Duration;

use axum::{
    body::Bytes,
    extract::{State as FromState, rejection::BytesRejection},
    http::StatusCode,
    response::Response,
};
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::{State, error::ApiError};
use crate::logging::json_error;

/// Time over which connections are closed if the request has none, in seconds.
const SECONDS_DEFAULT: f64 = 30.0;

/// Longest time, in seconds.
const SECONDS_MAX: f64 = 3600.0;

/// A request to drain the server.
#[derive(ToSchema)]
#[schema(as = Drain)]
#[expect(dead_code, reason = "describes the JSON that `read` checks by hand, for its errors")]
pub(super) struct DrainBody {
    /// Time over which the present connections are closed, from 0 to 3600.
    #[schema(default = 30, minimum = 0, maximum = 3600)]
    seconds: Option<f64>,
}

/// State of a drain.
#[derive(Serialize, ToSchema)]
pub(super) struct DrainState {
    /// Whether the server takes no new connections.
    draining: bool,
    /// Open connections.
    connections: u64,
}

/// Serves `POST /v1/drain`.
pub(super) async fn drain(FromState(api): State, body: Result<Bytes, BytesRejection>) -> Result<Response, ApiError> {
    let body = body.map_err(|_| ApiError::BadBody("it ended early, or is too large. Retry".into()))?;
    let connections = api.hub.drain(read(&body)?) as u64;
    Ok(respond(&DrainState { draining: true, connections }))
}

/// Serves `DELETE /v1/drain`.
pub(super) async fn cancel(FromState(api): State) -> Response {
    let connections = api.hub.cancel_drain() as u64;
    respond(&DrainState { draining: false, connections })
}

/// Serves `GET /v1/drain`.
pub(super) async fn show(FromState(api): State) -> Response {
    let connections = api.hub.connection_count() as u64;
    respond(&DrainState { draining: api.hub.is_draining(), connections })
}

fn respond(state: &DrainState) -> Response {
    super::json(StatusCode::OK, serde_json::to_vec(state).expect("numbers are JSON"))
}

/// Returns the time. An empty body is the same as `{}`.
fn read(body: &[u8]) -> Result<Duration, ApiError> {
    const EXAMPLE: &str = "{\"seconds\":30}";
    let wrong = |why: String| Err(ApiError::BadParameter(why));
    if body.trim_ascii().is_empty() {
        return Ok(Duration::from_secs_f64(SECONDS_DEFAULT));
    }
    let body: Value = serde_json::from_slice(body).map_err(|error| ApiError::BadJson(json_error(&error)))?;
    let Some(fields) = body.as_object() else { return wrong(format!("the body must be an object such as {EXAMPLE}")) };
    if fields.keys().any(|name| name != "seconds") {
        return wrong(format!("the body may have the field seconds only, as in {EXAMPLE}"));
    }
    match fields.get("seconds").map(Value::as_f64) {
        None => Ok(Duration::from_secs_f64(SECONDS_DEFAULT)),
        Some(Some(seconds)) if (0.0..=SECONDS_MAX).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        Some(_) => wrong(format!("seconds must be a number from 0 to {SECONDS_MAX}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_of_a_drain_is_read_from_an_object_or_an_empty_body() {
        for (body, expected) in [("", 30_000), (" {} ", 30_000), ("{\"seconds\":0}", 0), ("{\"seconds\":1.5}", 1500)] {
            assert_eq!(read(body.as_bytes()).expect(body), Duration::from_millis(expected), "{body}");
        }
        for body in
            ["[]", "[30]", "30", "{", "{\"seconds\":-1}", "{\"seconds\":3601}", "{\"seconds\":\"1\"}", "{\"time\":1}"]
        {
            assert!(read(body.as_bytes()).is_err(), "{body}");
        }
    }
}
