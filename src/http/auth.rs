//! Who may ask: whoever shows one of the configured keys.

use std::{net::IpAddr, sync::Arc};

use axum::{
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};

use super::{Api, error::ApiError};
use crate::auth::Proof;

/// The peer of a connection: its address, and whether it has presented a right key over this connection.
#[derive(Clone, Debug, Default)]
pub struct Caller {
    address: Option<IpAddr>,
    proof: Arc<Proof>,
}

impl Caller {
    /// A peer that has presented nothing yet. `None` where the address is not known.
    #[must_use]
    pub fn new(address: Option<IpAddr>) -> Self {
        Self { address, proof: Arc::default() }
    }
}

pub(super) async fn guard(State(api): State<Arc<Api>>, request: Request, next: Next) -> Response {
    // Put there by `Http::respond`.
    let caller = request.extensions().get::<Caller>().cloned().unwrap_or_default();
    let response = match check(&api, &caller, request.headers()).await {
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

/// Checks the key of a request. A wrong one is answered after a delay.
pub(super) async fn check(api: &Api, caller: &Caller, headers: &HeaderMap) -> Result<(), ApiError> {
    if api.keys.is_empty() {
        return Err(ApiError::NoKeys);
    }
    let key = presented(headers)?;
    // Over its limit, an address can still use the connections over which it has presented a right key.
    if !caller.proof.is_given() {
        api.guesses.admit(caller.address).map_err(ApiError::TooManyWrongKeys)?;
    }
    if api.keys.check(key) {
        api.guesses.right(caller.address, &caller.proof);
        return Ok(());
    }
    api.metrics.wrong_secrets.inc();
    tokio::time::sleep(api.guesses.wrong(caller.address, key.as_bytes())).await;
    Err(ApiError::WrongKey)
}

fn presented(headers: &HeaderMap) -> Result<&str, ApiError> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let Some(value) = values.next() else { return Err(ApiError::NoKey) };
    if values.next().is_some() {
        return Err(ApiError::Authorization("is there more than once"));
    }
    let value = value.to_str().map_err(|_| ApiError::Authorization("has other characters than visible ASCII"))?;
    match value.trim().split_once(' ') {
        Some((scheme, key)) if scheme.eq_ignore_ascii_case("bearer") => Ok(key.trim()),
        _ if value.trim().eq_ignore_ascii_case("bearer") => Err(ApiError::NoKey),
        _ => Err(ApiError::Authorization("does not begin with `Bearer `")),
    }
}
