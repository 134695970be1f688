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

/// Dispatches are taken.
pub(super) async fn ready(FromState(api): State) -> Response {
    match api.hub.ready() {
        Ok(()) => "ready\n".into_response(),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response(),
    }
}

pub(super) async fn metrics(FromState(api): State) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], api.metrics.encode()).into_response()
}
