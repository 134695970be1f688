//! Reports liveness, readiness and metrics to monitoring. Needs no key, and reveals nothing about users.

use axum::{
    extract::State as FromState,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};

use super::State;

/// Serves `GET /healthz`: 200 while the process serves requests.
pub(super) async fn alive() -> &'static str {
    "ok\n"
}

/// Serves `GET /readyz`: 200, or 503 with a line for each component that is not ready.
pub(super) async fn ready(FromState(api): State) -> Response {
    match api.hub.ready() {
        Ok(()) => "ready\n".into_response(),
        Err(reports) => {
            let lines: Vec<_> = reports.iter().map(ToString::to_string).collect();
            (StatusCode::SERVICE_UNAVAILABLE, lines.join("\n") + "\n").into_response()
        }
    }
}

/// Serves `GET /metrics`: `OpenMetrics` text.
pub(super) async fn metrics(FromState(api): State) -> Response {
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, content_type)], api.metrics.encode()).into_response()
}
