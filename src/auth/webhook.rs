//! Authenticates clients by a request to a backend.

use std::{
    fmt,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use futures_util::future::BoxFuture;
use serde::Deserialize;
use serde_json::{Map, Value, value::RawValue};
use tokio::{sync::Semaphore, time::timeout};

use super::{AuthError, AuthSetupError, Authenticator, Identity, rejected, user_object};
use crate::{
    config,
    health::{LogLimit, warn_seldom},
    http_client::{HttpClient, signing},
    message::{UserId, surrogates},
};

/// Duration of a request beyond which it is logged as slow.
const SLOW_REQUEST: Duration = Duration::from_secs(1);

/// Limits the log lines about slow requests.
static SLOW: LogLimit = LogLimit::new();

/// Size limit of a response, in bytes.
const RESPONSE_BYTES_MAX: usize = 64 << 10;

/// Posts the client's authentication data to a backend.
///
/// The body is the `d` of the authentication frame as JSON, signed if a secret is configured. A 2xx response has the
/// body `{"id":"alice","user":{…},"expires":1700000000}`, of which only `id` is required. A 401 or 403 rejects the
/// client. After any other response, or none, authentication is unavailable.
pub struct Webhook {
    http: HttpClient,
    secret: Option<String>,
    timeout: Duration,
    /// Bounds the concurrent requests. Waiting for a permit counts towards the timeout.
    permits: Semaphore,
}

/// Mirrors the JSON of a response.
#[derive(Deserialize)]
struct IdentityResponse<'a> {
    #[serde(borrow)]
    id: &'a RawValue,
    #[serde(borrow, default)]
    user: Option<&'a RawValue>,
    /// Time of expiry in seconds since 1970.
    #[serde(default)]
    expires: Option<f64>,
}

impl Webhook {
    /// Creates the client, without a request yet.
    ///
    /// # Errors
    /// Fails if the URL is rejected, or the system's certificates cannot be loaded.
    pub fn new(webhook: &config::AuthWebhook) -> Result<Self, AuthSetupError> {
        let http = HttpClient::new(&webhook.url, webhook.timeout, webhook.allow_private);
        Ok(Self {
            http: http.map_err(|why| AuthSetupError(format!("authentication.webhook.url {why}")))?,
            secret: webhook.secret.clone(),
            timeout: webhook.timeout,
            permits: Semaphore::new(webhook.concurrency.clamp(1, Semaphore::MAX_PERMITS)),
        })
    }

    async fn request_in_time(&self, body: Vec<u8>) -> Result<Identity, AuthError> {
        let began = Instant::now();
        let result = timeout(self.timeout, self.request(body)).await;
        if began.elapsed() >= SLOW_REQUEST {
            // With the wait at the limit of concurrent requests.
            let waiting = self.permits.available_permits() == 0;
            warn_seldom!(
                SLOW,
                seconds = began.elapsed().as_secs_f64(),
                all_requests_in_use = waiting,
                "the authentication webhook was slow to answer; clients wait for it"
            );
        }
        let late = || unavailable(&format!("did not answer within {} ms", self.timeout.as_millis()));
        result.unwrap_or_else(|_| Err(late()))
    }

    async fn request(&self, body: Vec<u8>) -> Result<Identity, AuthError> {
        let _permit = self.permits.acquire().await.expect("the semaphore is never closed");
        let headers = self.secret.as_ref().map(|secret| signing::headers(secret, &body));
        let headers = headers.as_ref().map_or(&[][..], |headers| &headers[..]);
        let response = self.http.post_json(body, headers, RESPONSE_BYTES_MAX).await;
        let response = response.map_err(|error| AuthError::Unavailable(error.to_string()))?;
        match response.status {
            200..300 => identity(&response.body, SystemTime::now()),
            300..=399 => Err(unavailable(&format!("answered {}, and redirects are not followed", response.status))),
            400 | 401 | 403 | 422 => Err(rejected("the webhook rejected the client")),
            status => Err(unavailable(&format!("answered {status}"))),
        }
    }
}

impl Authenticator for Webhook {
    fn authenticate<'a>(&'a self, data: &'a Map<String, Value>) -> BoxFuture<'a, Result<Identity, AuthError>> {
        Box::pin(self.request_in_time(serde_json::to_vec(data).expect("JSON")))
    }

    fn authenticate_text<'a>(
        &'a self,
        _: &'a Map<String, Value>,
        text: &'a str,
    ) -> BoxFuture<'a, Result<Identity, AuthError>> {
        Box::pin(self.request_in_time(text.as_bytes().to_vec()))
    }
}

impl fmt::Debug for Webhook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Webhook").field("http", &self.http).finish_non_exhaustive()
    }
}

fn identity(body: &[u8], now: SystemTime) -> Result<Identity, AuthError> {
    if body.trim_ascii_start().first() != Some(&b'{') {
        // Serde would accept an array of the field values too.
        return Err(unavailable("did not answer with {id, user?, expires?}"));
    }
    let answer = serde_json::from_slice::<IdentityResponse<'_>>(body);
    // The error does not quote the response, which may be about the client.
    let IdentityResponse { id, user, expires } = answer.map_err(|error| {
        let (line, column) = (error.line(), error.column());
        unavailable(&format!("did not answer with {{id, user?, expires?}} (line {line}, column {column})"))
    })?;
    if surrogates::has_lone_surrogate(id.get()) {
        return Err(unavailable("answered with an id that has a lone surrogate"));
    }
    // The JSON is valid: it was parsed above.
    let id = match serde_json::from_str(id.get()).unwrap_or_default() {
        Value::String(id) => UserId::new(&id),
        // A float is rejected: large numbers are rounded, and two users would become one.
        Value::Number(id) if id.is_u64() || id.is_i64() => UserId::new(&id.to_string()),
        _ => return Err(unavailable("answered with an id that is neither a string nor a whole number")),
    };
    let id = id.map_err(|error| unavailable(&format!("answered with an invalid id: {error}")))?;
    let expires = expires.map(|seconds| {
        let since = Duration::try_from_secs_f64(seconds).ok();
        since
            .and_then(|since| UNIX_EPOCH.checked_add(since))
            .ok_or_else(|| unavailable("answered with `expires` that is not a time"))
    });
    let expires = expires.transpose()?;
    if expires.is_some_and(|expires| expires <= now) {
        return Err(rejected("the webhook's answer has expired (expires)"));
    }
    let user = user_object(user.map_or("{}", RawValue::get), &id);
    let (user, user_text) = user.ok_or_else(|| unavailable("did not answer with {id, user?, expires?}"))?;
    Ok(Identity { id, user, expires, user_text })
}

fn unavailable(what: &str) -> AuthError {
    AuthError::Unavailable(format!("the webhook {what}"))
}
