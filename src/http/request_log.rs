//! Logs refused and slow requests.

use std::time::Duration;

use axum::{http::Method, response::Response};

use super::Caller;
use crate::{
    health::{LogLimit, warn_seldom},
    logging::excerpt,
};

/// Time until a response begins beyond which it is logged as slow.
const SLOW_REQUEST: Duration = Duration::from_secs(5);

/// Limits the log lines about slow requests: their cause delays all of them.
static SLOW: LogLimit = LogLimit::new();

/// Time that the request body took to arrive, as an extension of a response.
#[derive(Clone, Copy)]
pub(super) struct BodyTime(pub(super) Duration);

/// Logs a request that was refused or slow. `took`: time until the response began.
pub(super) fn log(caller: &Caller, method: &Method, path: &str, response: &Response, took: Duration) {
    let status = response.status();
    if took >= SLOW_REQUEST {
        // The rest is the server's time: a commit, a read of the disk, or the delay after a wrong key.
        let body = response.extensions().get::<BodyTime>().map(|body| body.0.as_secs_f64());
        warn_seldom!(
            SLOW,
            peer = caller.peer(),
            method = %excerpt(method),
            path = excerpt(path),
            status = status.as_u16(),
            seconds = took.as_secs_f64(),
            seconds_until_body_arrived = body,
            "a request was slow"
        );
    }
    if status.is_client_error() || status.is_server_error() {
        tracing::debug!(
            peer = caller.peer(),
            method = %excerpt(method),
            path = excerpt(path),
            status = status.as_u16(),
            "request refused"
        );
    }
}
