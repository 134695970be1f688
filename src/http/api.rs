//! Defines the state of the HTTP API, and builds its JSON responses.

use std::{sync::Arc, time::Duration};

use axum::{
    body::{Body, Bytes},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use futures_util::StreamExt as _;

use super::Admin;
use crate::{auth::GuessLimiter, hub::Hub, live::Live, metrics::Metrics};

/// Holds the state that all handlers share.
#[derive(Debug)]
pub struct Api {
    /// Carries out the requests.
    pub hub: Arc<Hub>,
    /// Limits wrong keys per address.
    pub guess_limiter: Arc<GuessLimiter>,
    /// Counts requests.
    pub metrics: Arc<Metrics>,
    /// The admin page, and its sessions.
    pub admin: Admin,
    /// Keys, limits and origins, which a reload changes.
    pub live: Arc<Live>,
}

pub(super) type State = axum::extract::State<Arc<Api>>;

/// Prefix of the routes that the admin page calls.
pub(super) const ADMIN_PREFIX: &str = "/admin";

/// Content types of the responses without an end.
pub(super) const EVENT_STREAM: HeaderValue = HeaderValue::from_static("text/event-stream");
pub(super) const NDJSON: HeaderValue = HeaderValue::from_static("application/x-ndjson");

/// Time limit for the body of a request; then the response is 408.
pub(super) const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// Builds a JSON response.
pub(super) fn json(status: StatusCode, body: impl Into<Bytes>) -> Response {
    let mut response = (status, body.into()).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// Ends a stream of events or of dispatches once `over` resolves. All other responses end by themselves.
///
/// The guard of a request checks its access once, and a stream may last for months.
pub(super) fn end_stream(response: Response, over: impl Future<Output = ()> + Send + 'static) -> Response {
    let kind = response.headers().get(header::CONTENT_TYPE);
    if kind.is_some_and(|kind| kind == EVENT_STREAM || kind == NDJSON) {
        return response.map(|body| Body::from_stream(body.into_data_stream().take_until(Box::pin(over))));
    }
    response
}
