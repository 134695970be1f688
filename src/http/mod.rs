//! What backends ask, as an axum router. Decides nothing: it reads a request, asks the hub, and writes the answer.
//!
//! - [`access`]: who may ask
//! - [`dispatch`]: `POST /v1/dispatch`
//! - [`users`]: everything under `/v1/users`
//! - [`health`]: alive, ready, counters
//! - [`error`]: every refusal, in one table
//! - [`time`]: dates as text

mod access;
mod dispatch;
mod error;
mod health;
mod time;
mod users;

use std::sync::Arc;

use axum::{
    Router,
    body::Bytes,
    http::{HeaderValue, StatusCode, header},
    middleware,
    response::{IntoResponse, Response},
    routing::{get, post},
};

use crate::{auth::ApiKeys, config::Limits, hub::Hub, metrics::Metrics};
use error::ApiError;

/// What the router needs.
#[derive(Debug)]
pub struct Api {
    /// Who is asked.
    pub hub: Arc<Hub>,
    /// Who may ask.
    pub keys: ApiKeys,
    /// Where requests are counted.
    pub metrics: Arc<Metrics>,
    /// How much may be asked at once.
    pub limits: Limits,
}

type State = axum::extract::State<Arc<Api>>;

/// The HTTP API.
pub fn router(api: Api) -> Router {
    let api = Arc::new(api);
    let guarded = Router::new()
        .route("/v1/dispatch", post(dispatch::dispatch))
        .route("/v1/users", get(users::list))
        .route("/v1/users/{id}", get(users::show))
        .route("/v1/users/{id}/messages", get(users::messages).delete(users::clear))
        .route("/v1/users/{id}/disconnect", post(users::disconnect))
        .method_not_allowed_fallback(|| async { ApiError::MethodNotAllowed })
        .route_layer(middleware::from_fn_with_state(api.clone(), access::guard));
    Router::new()
        .route("/healthz", get(health::alive))
        .route("/readyz", get(health::ready))
        .route("/metrics", get(health::metrics))
        .method_not_allowed_fallback(|| async { ApiError::MethodNotAllowed })
        .merge(guarded)
        .fallback(|| async { ApiError::NotFound })
        .with_state(api)
}

/// An answer in JSON.
fn json(status: StatusCode, body: impl Into<Bytes>) -> Response {
    let mut response = (status, body.into()).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}
