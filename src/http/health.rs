//! Reports liveness, readiness and metrics to monitoring. Needs no key, and reveals nothing about users.

use axum::{
    extract::State as FromState,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};

use super::{Api, State, status};
use crate::metrics::Format;

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

/// Serves `GET /metrics`: `OpenMetrics` text if the client accepts it, and otherwise the classic text of Prometheus.
pub(super) async fn metrics(FromState(api): State, headers: HeaderMap) -> Response {
    let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let format = Format::accepted(accepted);
    let text = status::blocking(&api, move |api| encode(api, format)).await;
    ([(header::CONTENT_TYPE, format.content_type())], text).into_response()
}

fn encode(api: &Api, format: Format) -> String {
    api.metrics.ready.set(api.hub.ready().is_ok().into());
    api.metrics.users_online.set(i64::try_from(api.hub.online_count()).unwrap_or(i64::MAX));
    api.metrics.encode(format, api.hub.store_figures().as_ref())
}
