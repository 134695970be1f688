//! State of the HTTP API, and its JSON responses.

use std::{sync::Arc, time::Duration};

use axum::{
    body::Bytes,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};

use crate::{
    auth::{ApiKeys, Guesses},
    config::Limits,
    hub::Hub,
    metrics::Metrics,
};

/// What the router needs.
#[derive(Debug)]
pub struct Api {
    /// Who is asked.
    pub hub: Arc<Hub>,
    /// Who may ask.
    pub keys: ApiKeys,
    /// How often addresses have presented a wrong one.
    pub guesses: Arc<Guesses>,
    /// Where requests are counted.
    pub metrics: Arc<Metrics>,
    /// How much may be asked at once.
    pub limits: Limits,
    /// Only web pages of this machine are served.
    pub local_only: bool,
}

pub(super) type State = axum::extract::State<Arc<Api>>;

/// How long the body of a request may take to arrive; then it gets 408.
pub(super) const BODY_TIME_MAX: Duration = Duration::from_secs(30);

/// An answer in JSON.
pub(super) fn json(status: StatusCode, body: impl Into<Bytes>) -> Response {
    let mut response = (status, body.into()).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}
