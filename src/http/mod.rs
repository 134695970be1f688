//! What backends ask. Decides nothing: it reads a request, asks the hub, and writes the answer.
//!
//! - [`api`]: shared state, and JSON responses
//! - [`auth`]: who may ask · [`head`]: what holds for the head of every request
//! - [`dispatch`]: `POST /v1/dispatch`, one or a stream of them
//! - [`users`]: everything under `/v1/users`
//! - [`backup`]: `GET /v1/backup`
//! - [`sse`]: `GET /v1/events`
//! - [`health`]: alive, ready, counters
//! - [`parameters`]: which parameters a query may have, and what is wrong with one
//! - [`error`]: every refusal, in one table · [`refusal`]: of what never comes here

mod api;
mod auth;
mod backup;
mod dispatch;
mod error;
pub(crate) mod head;
mod health;
mod parameters;
pub(crate) mod refusal;
mod sse;
mod users;

use std::{sync::Arc, time::Duration};

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

pub use self::api::Api;
use self::api::{BODY_TIME_MAX, State, json};
pub use auth::Caller;
use error::ApiError;

/// How long any other request may take to be answered; then it gets 408.
const REQUEST_TIME_MAX: Duration = Duration::from_secs(30);

/// The HTTP API.
#[derive(Debug, Clone)]
pub struct Http {
    api: Arc<Api>,
    router: Router,
    /// The streams listen to it.
    stopping: Arc<watch::Sender<bool>>,
}

impl Http {
    /// An API that asks and answers as told.
    #[must_use]
    pub fn new(api: Api) -> Self {
        let api = Arc::new(api);
        Self { router: router(api.clone()), api, stopping: Arc::default() }
    }

    /// Ends what would not end by itself: streams of dispatches, once all that they have taken in is answered. (Streams of
    /// events end with the hub: until the last client has gone there is something to tell.)
    pub fn stop(&self) {
        self.stopping.send_replace(true);
    }

    /// Answers one request. Dropping the future does not take back a dispatch that was taken in.
    pub async fn respond<B>(&self, caller: &Caller, mut request: Request<B>) -> Response
    where
        B: HttpBody<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        if let Err(refusal) = head::check(&request, self.api.local_only) {
            return self.refuse(ApiError::from(refusal));
        }
        // Dispatches are nearly all there is, and routing was about a tenth of what one costs: they go the short way.
        if request.method() == Method::POST && request.uri().path() == dispatch::PATH {
            let response = match auth::check(&self.api, caller, request.headers()).await {
                Ok(()) => match parameters::check(request.uri().query(), &[]) {
                    Ok(()) => dispatch::dispatch(&self.api, &self.stopping, request).await,
                    Err(error) => Err(error),
                },
                Err(error) => Err(error),
            };
            let response = response.unwrap_or_else(IntoResponse::into_response);
            auth::count(&self.api, response.status());
            return response;
        }
        if let Err(error) = head::check_query(request.uri().query()) {
            return self.refuse(error);
        }
        request.extensions_mut().insert(caller.clone());
        match tokio::time::timeout(REQUEST_TIME_MAX, self.router.clone().oneshot(request.map(Body::new))).await {
            Ok(Ok(response)) => response,
            Err(_) => ApiError::TooSlow.into_response(),
        }
    }

    fn refuse(&self, error: ApiError) -> Response {
        let response = error.into_response();
        auth::count(&self.api, response.status());
        response
    }
}

fn router(api: Arc<Api>) -> Router {
    let events = |api, asked, headers| std::future::ready(sse::events(api, asked, headers));
    let guarded = Router::new()
        // Its POST does not come here, see `respond`; the entry makes 405 and `Allow` for all other methods.
        .route(dispatch::PATH, post(|| async { ApiError::MethodNotAllowed }))
        .route("/v1/backup", get(backup::backup))
        .route("/v1/events", get(events))
        .route("/v1/users", get(users::list))
        .route("/v1/users/{id}", get(users::show))
        .route("/v1/users/{id}/messages", get(users::messages).delete(users::clear))
        .route("/v1/users/{id}/disconnect", post(users::disconnect))
        .method_not_allowed_fallback(|| async { ApiError::MethodNotAllowed })
        // The one below is asked first: what a path takes is told to those alone that have a key.
        .route_layer(middleware::from_fn(parameters::guard))
        .route_layer(middleware::from_fn_with_state(api.clone(), auth::guard));
    Router::new()
        .route("/healthz", get(health::alive))
        .route("/readyz", get(health::ready))
        .route("/metrics", get(health::metrics))
        .method_not_allowed_fallback(|| async { ApiError::MethodNotAllowed })
        .merge(guarded)
        .fallback(|| async { ApiError::NotFound })
        .with_state(api)
}
