//! A backend says who a client is: what the client sent is posted to it.

use std::{
    fmt,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures_util::future::BoxFuture;
use serde::Deserialize;
use serde_json::{Map, Value, value::RawValue};
use tokio::{sync::Semaphore, time::timeout};

use super::{AuthError, AuthSetupError, Authenticator, Identity, refused, user_object};
use crate::{
    config,
    http_client::{Outgoing, signing},
    message::{UserId, surrogates},
};

/// Longest answer, in bytes.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// Asks a backend. The question is the `d` of the client's authentication as JSON, signed if there is a secret; the answer
/// is `{"id":"alice","user":{…},"expires":1700000000}`, of which only `id` has to be there, with a status of success. 401
/// and 403 say no. Whatever else comes, or that nothing does, says that it could not be found out.
pub struct Webhook {
    outgoing: Outgoing,
    secret: Option<String>,
    timeout: Duration,
    /// Who finds none left waits for his turn, and no longer than for an answer.
    turns: Semaphore,
}

/// What a backend says.
#[derive(Deserialize)]
struct Answer<'a> {
    #[serde(borrow)]
    id: &'a RawValue,
    #[serde(borrow, default)]
    user: Option<&'a RawValue>,
    /// Seconds since 1970.
    #[serde(default)]
    expires: Option<f64>,
}

impl Webhook {
    /// Sets it up; asks nothing yet.
    ///
    /// # Errors
    /// When the address is refused, or the system's certificates cannot be used.
    pub fn new(webhook: &config::AuthWebhook) -> Result<Self, AuthSetupError> {
        let outgoing = Outgoing::new(&webhook.url, webhook.timeout, webhook.allow_private);
        Ok(Self {
            outgoing: outgoing.map_err(|why| AuthSetupError(format!("authentication.webhook.url {why}")))?,
            secret: webhook.secret.clone(),
            timeout: webhook.timeout,
            turns: Semaphore::new(webhook.concurrency.clamp(1, Semaphore::MAX_PERMITS)),
        })
    }

    async fn ask_in_time(&self, body: Vec<u8>) -> Result<Identity, AuthError> {
        let asked = timeout(self.timeout, self.ask(body)).await;
        let late = || unavailable(&format!("did not answer within {} ms", self.timeout.as_millis()));
        asked.unwrap_or_else(|_| Err(late()))
    }

    async fn ask(&self, body: Vec<u8>) -> Result<Identity, AuthError> {
        // Never closed, so a turn always comes.
        let _turn = self.turns.acquire().await.expect("the semaphore is never closed");
        let headers = self.secret.as_ref().map(|secret| signing::headers(secret, &body));
        let headers = headers.as_ref().map_or(&[][..], |headers| &headers[..]);
        let answer = self.outgoing.ask(body, headers, ANSWER_BYTES_MAX).await;
        let answer = answer.map_err(|error| AuthError::Unavailable(error.to_string()))?;
        match answer.status {
            200..300 => identity(&answer.body, SystemTime::now()),
            300..=399 => Err(unavailable(&format!("answers {}, and redirections are not followed", answer.status))),
            401 | 403 => Err(refused("the webhook says no")),
            status => Err(unavailable(&format!("answers {status}"))),
        }
    }
}

impl Authenticator for Webhook {
    fn authenticate<'a>(&'a self, data: &'a Map<String, Value>) -> BoxFuture<'a, Result<Identity, AuthError>> {
        // A map of JSON values is JSON.
        Box::pin(self.ask_in_time(serde_json::to_vec(data).expect("JSON")))
    }

    fn authenticate_text<'a>(
        &'a self,
        _: &'a Map<String, Value>,
        text: &'a str,
    ) -> BoxFuture<'a, Result<Identity, AuthError>> {
        Box::pin(self.ask_in_time(text.as_bytes().to_vec()))
    }
}

impl fmt::Debug for Webhook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Webhook").field("outgoing", &self.outgoing).finish_non_exhaustive()
    }
}

fn identity(body: &[u8], now: SystemTime) -> Result<Identity, AuthError> {
    if body.trim_ascii_start().first() != Some(&b'{') {
        // A list of the same things would be taken for it below.
        return Err(unavailable("answers what is no {id, user?, expires?}"));
    }
    let answer = serde_json::from_slice::<Answer<'_>>(body);
    // What stands in it is not repeated: it may be about the client.
    let Answer { id, user, expires } = answer.map_err(|error| {
        let (line, column) = (error.line(), error.column());
        unavailable(&format!("answers what is no {{id, user?, expires?}} (line {line}, column {column})"))
    })?;
    if surrogates::has_half(id.get()) {
        return Err(unavailable("names a user whose id has half of a surrogate pair, so it is no text"));
    }
    // It was read as JSON a moment ago.
    let id = match serde_json::from_str(id.get()).unwrap_or_default() {
        Value::String(id) => UserId::new(&id),
        // Not what was read as a float: large numbers are rounded there, and two users would be one.
        Value::Number(id) if id.is_u64() || id.is_i64() => UserId::new(&id.to_string()),
        _ => return Err(unavailable("names a user whose id is neither a string nor a whole number")),
    };
    let id = id.map_err(|error| unavailable(&format!("names a user whose id cannot be: {error}")))?;
    let expires = expires.map(|seconds| {
        let since = Duration::try_from_secs_f64(seconds).ok();
        since.and_then(|since| UNIX_EPOCH.checked_add(since)).ok_or_else(|| unavailable("names an end that is no time"))
    });
    let expires = expires.transpose()?;
    if expires.is_some_and(|expires| expires <= now) {
        return Err(refused("what the webhook says has expired"));
    }
    let user = user_object(user.map_or("{}", RawValue::get), &id);
    let (user, user_text) = user.ok_or_else(|| unavailable("answers what is no {id, user?, expires?}"))?;
    Ok(Identity { id, user, expires, user_text })
}

fn unavailable(what: &str) -> AuthError {
    AuthError::Unavailable(format!("the webhook {what}"))
}
