//! Authenticates backends by API key.

use std::{net::IpAddr, sync::Arc};

use axum::{
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};

use tracing::field::{DisplayValue, display};

use super::{Api, api::end_stream, error::ApiError};
use crate::{
    auth::{AddressProof, PresentedKey},
    live::Live,
};

/// Describes the peer of a connection: its address, whether it has presented a valid key, and whether it uses TLS.
#[derive(Clone, Debug, Default)]
pub struct Caller {
    pub(super) address: Option<IpAddr>,
    pub(super) proof: Arc<AddressProof>,
    is_secure: bool,
}

impl Caller {
    /// Creates the description of a peer that has presented no valid key. `None`: its address is unknown.
    #[must_use]
    pub fn new(address: Option<IpAddr>) -> Self {
        Self { address, proof: Arc::default(), is_secure: false }
    }

    /// Sets whether the requests arrive over TLS.
    #[must_use]
    pub fn secure(self, is_secure: bool) -> Self {
        Self { is_secure, ..self }
    }

    /// Returns whether the requests arrive over TLS, so that a cookie may be `Secure`.
    #[must_use]
    pub fn is_secure(&self) -> bool {
        self.is_secure
    }

    /// Returns the address, for log lines.
    pub(super) fn peer(&self) -> Option<DisplayValue<IpAddr>> {
        self.address.map(display)
    }
}

/// Rejects a request without a valid API key, and counts the response. A stream ends when its key is removed.
pub(super) async fn require_api_key(State(api): State<Arc<Api>>, request: Request, next: Next) -> Response {
    // `Http::respond` inserts the caller.
    let caller = request.extensions().get::<Caller>().cloned().unwrap_or_default();
    let response = match check_api_key(&api, &caller, request.headers()).await {
        Ok(key) => end_stream(next.run(request).await, removed(api.live.clone(), key)),
        Err(error) => error.into_response(),
    };
    count_response(&api, response.status());
    response
}

/// Returns whether responses of this path are counted: those of the routes that need an API key.
pub(super) fn is_counted(path: &str) -> bool {
    path.starts_with("/v1/")
}

/// Counts a response by its status.
pub(super) fn count_response(api: &Api, status: StatusCode) {
    if status.is_success() {
        api.metrics.http_succeeded.inc();
    } else if status.is_server_error() || status == StatusCode::REQUEST_TIMEOUT {
        api.metrics.http_failed.inc();
    } else {
        api.metrics.http_rejected.inc();
    }
}

/// Checks the API key of a request. A wrong key is answered after a delay.
async fn check_api_key(api: &Api, caller: &Caller, headers: &HeaderMap) -> Result<PresentedKey, ApiError> {
    let live = api.live.load().clone();
    if live.api_keys.is_empty() {
        return Err(ApiError::NoKeysConfigured);
    }
    let key = bearer_key(headers)?;
    // An address over its limit can still use connections on which it has presented a valid key.
    if !caller.proof.is_given() {
        api.guess_limiter.admit(caller.address).map_err(ApiError::TooManyWrongKeys)?;
    }
    if let Some(key) = live.api_keys.find(key) {
        api.guess_limiter.record_valid(caller.address, &caller.proof);
        return Ok(key);
    }
    api.metrics.wrong_secrets.inc();
    tokio::time::sleep(api.guess_limiter.record_wrong(caller.address, key.as_bytes())).await;
    Err(ApiError::WrongKey)
}

/// Resolves when a reload has removed a key.
async fn removed(live: Arc<Live>, key: PresentedKey) {
    live.wait_until(|settings| !settings.api_keys.has(&key)).await;
}

fn bearer_key(headers: &HeaderMap) -> Result<&str, ApiError> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let Some(value) = values.next() else { return Err(ApiError::MissingKey) };
    if values.next().is_some() {
        return Err(ApiError::BadAuthorization("was sent more than once"));
    }
    let value = value.to_str().map_err(|_| ApiError::BadAuthorization("has characters other than visible ASCII"))?;
    match value.trim().split_once(' ') {
        Some((scheme, key)) if scheme.eq_ignore_ascii_case("bearer") => Ok(key.trim()),
        _ if value.trim().eq_ignore_ascii_case("bearer") => Err(ApiError::MissingKey),
        _ => Err(ApiError::BadAuthorization("does not start with `Bearer `")),
    }
}
