//! Alive, ready, counters: for whoever watches the server. Open to all, and tells nothing about users.

use axum::{
    extract::State as FromState,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};

use super::State;

/// The process serves requests.
pub(super) async fn alive() -> &'static str {
    "ok\n"
}

/// Every part of the server is ready; otherwise one line for each that is not.
pub(super) async fn ready(FromState(api): State) -> Response {
    match api.hub.ready() {
        Ok(()) => "ready\n".into_response(),
        Err(reports) => {
            let lines: Vec<_> = reports.iter().map(ToString::to_string).collect();
            (StatusCode::SERVICE_UNAVAILABLE, lines.join("\n") + "\n").into_response()
        }
    }
}

pub(super) async fn metrics(FromState(api): State) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], api.metrics.encode()).into_response()
}
