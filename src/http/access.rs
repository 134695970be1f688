//! Who may ask: whoever shows one of the configured keys.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};

use super::{Api, error::ApiError};

pub(super) async fn guard(State(api): State<Arc<Api>>, request: Request, next: Next) -> Response {
    let response = match check(&api, request.headers()) {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    };
    count(&api, response.status());
    response
}

pub(super) fn count(api: &Api, status: StatusCode) {
    if status.is_success() {
        api.metrics.http_succeeded.inc();
    } else if status.is_server_error() || status == StatusCode::REQUEST_TIMEOUT {
        api.metrics.http_failed.inc();
    } else {
        api.metrics.http_refused.inc();
    }
}

pub(super) fn check(api: &Api, headers: &HeaderMap) -> Result<(), ApiError> {
    if api.keys.is_empty() {
        return Err(ApiError::NoKeys);
    }
    let mut shown = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(shown), None) = (shown.next(), shown.next()) else { return Err(ApiError::Unauthorized) };
    let shown = shown.to_str().ok().and_then(|shown| shown.split_once(' '));
    match shown {
        Some((scheme, key)) if scheme.eq_ignore_ascii_case("bearer") && api.keys.check(key.trim()) => Ok(()),
        _ => Err(ApiError::Unauthorized),
    }
}
