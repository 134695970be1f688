//! Serves the HTTP API for backends. It parses a request, calls the hub, and encodes the result.
//!
//! - [`api`]: shared state, and JSON responses
//! - [`auth`]: API keys · [`head`]: checks of the head of every request
//! - [`cors`]: web pages that may call the API
//! - [`dispatch`]: `POST /v1/dispatch`, one dispatch or an NDJSON stream
//! - [`users`]: everything under `/v1/users`
//! - [`backup`]: `GET /v1/backup` · [`drain`]: `/v1/drain`
//! - [`sse`]: `GET /v1/events`
//! - [`admin`]: the admin page, which calls the same handlers
//! - [`client_script`]: the JavaScript client · [`openapi`]: the description of the API · [`static_file`]: files
//! - [`health`]: liveness, readiness, metrics · [`status`]: `GET /v1/status`
//! - [`request_log`]: log lines about refused and slow requests
//! - [`parameters`]: names and errors of query parameters
//! - [`error`]: errors of the API · [`error_response`]: errors of requests that never reach the API

mod admin;
mod api;
mod auth;
mod backup;
mod client_script;
mod cors;
mod dispatch;
mod drain;
mod error;
pub(crate) mod error_response;
pub(crate) mod head;
mod health;
mod openapi;
mod parameters;
mod request_log;
mod sse;
mod static_file;
mod status;
#[cfg(test)]
mod tests;
mod users;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    BoxError, Router,
    body::{Body, Bytes, HttpBody},
    http::{Method, Request},
    middleware,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use tokio::sync::watch;
use tower::ServiceExt;

use self::api::{ADMIN_PREFIX, BODY_TIMEOUT, State, json};
pub use self::{admin::Admin, api::Api};
pub use auth::Caller;
use cors::Cors;
use error::ApiError;

use crate::telemetry::StepSpan;

/// Time limit of any request but a dispatch; then the response is 408.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// Routes requests of the HTTP API.
#[derive(Debug, Clone)]
pub struct Http {
    api: Arc<Api>,
    router: Router,
    /// Becomes true at shutdown; streams of dispatches subscribe to it.
    stopping: Arc<watch::Sender<bool>>,
}

impl Http {
    /// Creates the API.
    #[must_use]
    pub fn new(api: Api) -> Self {
        let api = Arc::new(api);
        let stopping = Arc::default();
        Self { router: router(api.clone(), &stopping), api, stopping }
    }

    /// Ends streams of dispatches, once the results of all lines that were read are sent.
    ///
    /// Event streams end with the hub instead, because events occur until the last client has disconnected.
    pub fn stop(&self) {
        self.stopping.send_replace(true);
    }

    /// Responds to one request.
    ///
    /// Dropping the future does not cancel a dispatch that the store has accepted.
    pub async fn respond<B>(&self, caller: &Caller, request: Request<B>) -> Response
    where
        B: HttpBody<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let (began, method, uri) = (Instant::now(), request.method().clone(), request.uri().clone());
        // The routes that need a key.
        let is_v1 = auth::is_counted(request.uri().path());
        let cors = is_v1.then(|| Cors::of(&self.api.live.load().cors_origins, &request)).flatten();
        let is_preflight = cors.as_ref().is_some_and(Cors::is_allowed_preflight);
        let span = StepSpan::request(&request);
        let mut response = span.run(self.answer(caller, request, is_preflight)).await;
        if let Some(cors) = cors {
            // Errors too, or the page could not read them.
            cors.apply(&mut response);
        }
        request_log::log(caller, &method, uri.path(), &response, began.elapsed());
        response
    }

    async fn answer<B>(&self, caller: &Caller, mut request: Request<B>, is_preflight: bool) -> Response
    where
        B: HttpBody<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        if let Err(error) = head::check(&request, self.api.live.load().local_only) {
            return self.reject(ApiError::from(error));
        }
        if is_preflight {
            let response = cors::preflight();
            auth::count_response(&self.api, response.status());
            return response;
        }
        // A stream of dispatches has no time limit, and the body of a single dispatch has its own.
        let path = request.uri().path();
        let is_dispatch =
            request.method() == Method::POST && path.strip_prefix(ADMIN_PREFIX).unwrap_or(path) == dispatch::PATH;
        let is_counted = auth::is_counted(request.uri().path());
        request.extensions_mut().insert(caller.clone());
        let response = self.router.clone().oneshot(request.map(Body::new));
        if is_dispatch {
            let Ok(response) = response.await;
            return response;
        }
        match tokio::time::timeout(REQUEST_TIMEOUT, response).await {
            Ok(Ok(response)) => response,
            // The router was dropped before it could count the response.
            Err(_) if is_counted => self.reject(ApiError::TooSlow),
            Err(_) => ApiError::TooSlow.into_response(),
        }
    }

    /// Responds with an error, and counts the response.
    fn reject(&self, error: ApiError) -> Response {
        let response = error.into_response();
        auth::count_response(&self.api, response.status());
        response
    }
}

fn router(api: Arc<Api>, stopping: &Arc<watch::Sender<bool>>) -> Router {
    let (dispatch_api, stopping) = (api.clone(), stopping.clone());
    let dispatch = move |request: Request<Body>| {
        let (api, stopping) = (dispatch_api.clone(), stopping.clone());
        async move { dispatch::dispatch(&api, &stopping, request).await }
    };
    let events = |api, query, headers| std::future::ready(sse::events(api, query, headers));
    // The same routes for backends and for the admin page, each behind a guard of its own.
    let v1 = Router::new()
        .route(dispatch::PATH, post(dispatch))
        .route("/v1/backup", get(backup::backup))
        .route("/v1/drain", get(drain::show).post(drain::drain).delete(drain::cancel))
        .route("/v1/events", get(events))
        .route("/v1/status", get(status::status))
        .route("/v1/users", get(users::list))
        .route("/v1/users/{id}", get(users::show).delete(users::erase))
        .route("/v1/users/{id}/messages", get(users::messages).delete(users::clear))
        .route("/v1/users/{id}/disconnect", post(users::disconnect))
        .method_not_allowed_fallback(|| async { ApiError::MethodNotAllowed })
        // The guard runs first: only a response to a request with a valid key names the parameters of a path.
        .route_layer(middleware::from_fn(parameters::reject_unknown));
    let admin = admin::router(&api, v1.clone());
    let guarded = v1.route_layer(middleware::from_fn_with_state(api.clone(), auth::require_api_key));
    Router::new()
        .route("/healthz", get(health::alive))
        .route("/readyz", get(health::ready))
        .route("/metrics", get(health::metrics))
        .route(client_script::SCRIPT_PATH, get(client_script::script))
        .route(client_script::TYPES_PATH, get(client_script::types))
        .route(openapi::DOCUMENT_PATH, get(openapi::serve_document))
        .route(openapi::PAGE_PATH, get(openapi::serve_page))
        .route(openapi::STYLE_PATH, get(openapi::serve_style))
        .method_not_allowed_fallback(|| async { ApiError::MethodNotAllowed })
        .merge(guarded)
        .merge(admin)
        .fallback(|| async { ApiError::NotFound })
        .with_state(api)
}
