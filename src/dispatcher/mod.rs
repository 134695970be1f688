//! A backend's side: the HTTP API, as a client of it.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use mesa::{dispatcher::Dispatcher, message::{Message, Recipients, UserId}};
//!
//! let dispatcher = Dispatcher::new("http://127.0.0.1:4000", "the API key")?;
//! let message = Message::new("GREETING", &serde_json::json!({ "text": "Hello" }))?;
//! let result = dispatcher.dispatch(&message, &Recipients::Users(vec![UserId::new("alice")?]), &[]).await?;
//! assert!(result.rejected.is_empty());
//! # Ok(())
//! # }
//! ```
//!
//! A dispatch that returned `Ok` is kept by the server as durably as it is configured, but for those recipients that
//! the result names as rejected. One that returned an error may or may not have been taken: sent again, it may arrive
//! twice, unless it has an id ([`Dispatch::id`]). How long a message is kept, and what it takes the place of, stands in
//! the message itself ([`Options`](crate::message::Options)).
//!
//! A dispatcher that is to repeat what may have failed for now gives ids by itself: [`Dispatcher::retrying`].
//!
//! Many dispatches go best over a stream ([`Dispatcher::dispatch_all`], [`Dispatcher::stream`]): they share syncs, and
//! no call waits for the one before it.

mod backoff;
mod backup;
mod error;
mod ndjson;
mod response;
mod retry;
#[cfg(test)]
mod tests;

use std::time::Duration;

use reqwest::{Method, RequestBuilder, Response, StatusCode, Url, redirect};
use serde::{Serialize, de::DeserializeOwned};
use tokio::time::Instant;

use crate::{
    client::without_userinfo,
    logging::{json_error, network_error},
    message::{DispatchId, Message, Recipients, Seq, UserId},
    protocol::opcode,
};

pub(crate) use backoff::jittered;
pub use error::DispatchError;
pub use ndjson::{Answers, Lines};
pub use response::{Cleared, Device, DispatchResult, Messages, PendingMessage, Refusal, Rejected, User, Users};
use retry::Attempts;
pub use retry::Retry;

/// How long a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a call may take in all: a commit may have to wait for others, but not this long.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Longest answer that is read: a page of a thousand of the largest messages would be more, so pages are smaller.
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Calls the API of one server. Cheap to clone; keeps its connections.
#[derive(Clone)]
pub struct Dispatcher {
    http: reqwest::Client,
    /// Ends without a slash.
    base: Url,
    key: String,
    retry: Option<Retry>,
}

/// Without the key.
impl std::fmt::Debug for Dispatcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dispatcher").field("base", &self.base.as_str()).finish_non_exhaustive()
    }
}

/// One dispatch.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Dispatch {
    /// What is said.
    pub message: Message,
    /// Who it is for.
    pub recipients: Recipients,
    /// And who not.
    pub excluding: Vec<UserId>,
    /// Names it, so that it can be said again when it is not known whether it was taken: within the server's
    /// `api.idWindow` a repeat gets the first result, with [`DispatchResult::duplicate`], and is not sent again.
    pub id: Option<DispatchId>,
}

impl Dispatch {
    /// A message for some users, without anything special.
    #[must_use]
    pub fn new(message: Message, recipients: Recipients) -> Self {
        Self { message, recipients, excluding: Vec::new(), id: None }
    }

    /// Not for these.
    #[must_use]
    pub fn excluding(mut self, users: Vec<UserId>) -> Self {
        self.excluding = users;
        self
    }

    /// Named, so that it can be said again: [`Dispatch::id`].
    #[must_use]
    pub fn id(mut self, id: DispatchId) -> Self {
        self.id = Some(id);
        self
    }

    fn body(&self) -> Result<Vec<u8>, DispatchError> {
        body(&self.message, &self.recipients, &self.excluding, self.id.as_ref())
    }
}

/// The body of a dispatch.
#[derive(Serialize)]
struct DispatchBody<'a> {
    message: &'a Message,
    recipients: Names<'a>,
    #[serde(skip_serializing_if = "<[UserId]>::is_empty")]
    excluding: &'a [UserId],
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
}

fn body(
    message: &Message,
    recipients: &Recipients,
    excluding: &[UserId],
    id: Option<&DispatchId>,
) -> Result<Vec<u8>, DispatchError> {
    let recipients = match recipients {
        Recipients::Everyone => Names::Everyone(["*"]),
        Recipients::Users(users) => Names::Users(users),
    };
    let body = DispatchBody { message, recipients, excluding, id: id.map(DispatchId::as_str) };
    serde_json::to_vec(&body).map_err(|error| DispatchError::Message(error.to_string()))
}

/// Recipients as the API has them.
#[derive(Serialize)]
#[serde(untagged)]
enum Names<'a> {
    Everyone([&'static str; 1]),
    Users(&'a [UserId]),
}

impl Dispatcher {
    /// For the server at `url` (`http://HOST[:PORT]`, also `https://`, with or without the `/v1` of its API), with a key of
    /// its `api.keys`. Does not connect.
    ///
    /// # Errors
    /// When `url` is no such address, or the key could not stand in a header.
    pub fn new(url: &str, api_key: &str) -> Result<Self, DispatchError> {
        let named = |base: &Url| {
            // With a user name there would be two ways to authenticate in one request.
            matches!(base.scheme(), "http" | "https")
                && base.has_host()
                && base.username().is_empty()
                && base.password().is_none()
        };
        let base = Url::parse(url).ok().filter(named);
        let mut base = base.ok_or_else(|| DispatchError::Address(without_userinfo(url)))?;
        // Where the API is, as the server prints it. Each call adds it.
        if let Some(server) = base.path().trim_end_matches('/').strip_suffix("/v1").map(str::to_owned) {
            base.set_path(&server);
        }
        if api_key.is_empty() || !api_key.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(DispatchError::Key);
        }
        let mut builder = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(TIMEOUT)
            // The key must not follow to wherever an answer points, nor go through a proxy nobody thought of.
            .redirect(redirect::Policy::none())
            .no_proxy();
        if base.scheme() == "http" {
            // Without this, a machine that has no certificates installed could not even speak plain HTTP.
            builder = builder.tls_certs_only([]);
        }
        let http = builder.build().map_err(|error| DispatchError::Setup(network_error(&error)))?;
        Ok(Self { http, base, key: api_key.to_owned(), retry: None })
    }

    /// Sends a message, and returns once every copy that is to be kept is durable. Look at
    /// [`DispatchResult::rejected`].
    ///
    /// # Errors
    /// When the server cannot be reached, or takes nothing of it.
    pub async fn dispatch(
        &self,
        message: &Message,
        recipients: &Recipients,
        excluding: &[UserId],
    ) -> Result<DispatchResult, DispatchError> {
        self.post(message, recipients, excluding, None).await
    }

    /// The same, with all that can be said of a dispatch.
    ///
    /// # Errors
    /// When the server cannot be reached, or takes nothing of it.
    pub async fn send(&self, dispatch: &Dispatch) -> Result<DispatchResult, DispatchError> {
        let Dispatch { message, recipients, excluding, id } = dispatch;
        self.post(message, recipients, excluding, id.as_ref()).await
    }

    async fn post(
        &self,
        message: &Message,
        recipients: &Recipients,
        excluding: &[UserId],
        id: Option<&DispatchId>,
    ) -> Result<DispatchResult, DispatchError> {
        let made = if id.is_none() { self.made_id(message)? } else { None };
        let body = body(message, recipients, excluding, id.or(made.as_ref()))?;
        let url = self.url(&["dispatch"])?;
        let mut attempts = self.attempts();
        loop {
            let request = self.request(Method::POST, url.clone()).header("content-type", "application/json");
            match self.call(request.body(body.clone())).await {
                Ok(result) => return Ok(result),
                Err(error) => attempts.wait_after(error).await?,
            }
        }
    }

    /// The id that a dispatch gets which has none and may be repeated. Internal events need none: repeating one does no harm.
    fn made_id(&self, message: &Message) -> Result<Option<DispatchId>, DispatchError> {
        let wanted = self.retry.is_some() && message.op != opcode::INTERNAL;
        wanted.then(retry::random_id).transpose()
    }

    /// What the server knows of a user.
    ///
    /// # Errors
    /// When the server cannot be reached, or refuses.
    pub async fn user(&self, id: &UserId) -> Result<User, DispatchError> {
        self.call(self.request(Method::GET, self.user_url(id, None)?)).await
    }

    /// A page of the users the server knows: with `online` those of them who are connected, without it everybody. Go on with
    /// the page's cursor, if it has one.
    ///
    /// # Errors
    /// When the server cannot be reached, or refuses.
    pub async fn users(
        &self,
        online: bool,
        cursor: Option<&str>,
        limit: Option<usize>,
    ) -> Result<Users, DispatchError> {
        let mut url = self.url(&["users"])?;
        {
            let mut query = url.query_pairs_mut();
            // `online=false` would be those who are away.
            if online {
                query.append_pair("online", "true");
            }
            if let Some(cursor) = cursor {
                query.append_pair("cursor", cursor);
            }
            if let Some(limit) = limit {
                query.append_pair("limit", &limit.to_string());
            }
        }
        // Without a pair there would be a question mark and nothing behind it.
        if url.query() == Some("") {
            url.set_query(None);
        }
        self.call(self.request(Method::GET, url)).await
    }

    /// What waits for a user with a sequence above `after`, without taking it.
    ///
    /// # Errors
    /// When the server cannot be reached, or refuses.
    pub async fn messages(&self, id: &UserId, after: Seq, limit: Option<usize>) -> Result<Messages, DispatchError> {
        let mut url = self.user_url(id, Some("messages"))?;
        url.query_pairs_mut().append_pair("after", &after.to_string());
        if let Some(limit) = limit {
            url.query_pairs_mut().append_pair("limit", &limit.to_string());
        }
        self.call(self.request(Method::GET, url)).await
    }

    /// Counts all that waits for a user as received.
    ///
    /// # Errors
    /// When the server cannot be reached, or refuses.
    pub async fn clear(&self, id: &UserId) -> Result<Cleared, DispatchError> {
        self.call(self.request(Method::DELETE, self.user_url(id, Some("messages"))?)).await
    }

    /// Tells all connections of a user to go, for good (close code 1000).
    ///
    /// # Errors
    /// When the server cannot be reached, or refuses.
    pub async fn disconnect(&self, id: &UserId) -> Result<(), DispatchError> {
        let request = self.request(Method::POST, self.user_url(id, Some("disconnect"))?);
        self.answer(request).await.map(drop)
    }

    fn url(&self, path: &[&str]) -> Result<Url, DispatchError> {
        let mut url = self.base.clone();
        url.set_query(None);
        url.set_fragment(None);
        url.path_segments_mut()
            .map_err(|()| DispatchError::Address(self.base.to_string()))?
            .pop_if_empty()
            .push("v1")
            .extend(path);
        Ok(url)
    }

    fn user_url(&self, id: &UserId, what: Option<&str>) -> Result<Url, DispatchError> {
        // In a path these two mean "here" and "one up", however they are written: clearing the messages of a user
        // named `..` must not become a call to another address.
        if matches!(id.as_str(), "." | "..") {
            return Err(DispatchError::Unaddressable(id.to_string()));
        }
        let mut path = vec!["users", id.as_str()];
        path.extend(what);
        self.url(&path)
    }

    fn request(&self, method: Method, url: Url) -> RequestBuilder {
        self.http.request(method, url).bearer_auth(&self.key)
    }

    async fn call<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, DispatchError> {
        let body = self.answer(request).await?;
        serde_json::from_slice(&body)
            .map_err(|error| self.strange(&format!("its answer cannot be read ({})", json_error(&error))))
    }

    /// The body of a successful answer.
    async fn answer(&self, request: RequestBuilder) -> Result<Vec<u8>, DispatchError> {
        let response = request.send().await.map_err(|error| self.failed(&error))?;
        if response.status().is_success() {
            return self.body(response).await;
        }
        Err(self.refused(response).await)
    }

    /// Why the server says no.
    async fn refused(&self, response: Response) -> DispatchError {
        let status = response.status();
        let body = match self.body(response).await {
            Ok(body) => body,
            Err(error) => return error,
        };
        match serde_json::from_slice::<response::Refused>(&body) {
            Ok(refused) => DispatchError::Refused {
                status: status.as_u16(),
                hint: hint(status, &refused.error),
                code: refused.error.code,
                message: refused.error.message,
            },
            Err(_) => self.strange(&format!("it answers {status} without saying why")),
        }
    }

    async fn body(&self, mut response: Response) -> Result<Vec<u8>, DispatchError> {
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| self.failed(&error))? {
            if body.len() + chunk.len() > ANSWER_BYTES_MAX {
                return Err(self.strange(&format!("its answer has more than {} MiB", ANSWER_BYTES_MAX >> 20)));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    fn failed(&self, error: &reqwest::Error) -> DispatchError {
        let url = self.shown();
        if error.is_connect() {
            DispatchError::Unreachable { url, reason: network_error(error) }
        } else if error.is_timeout() {
            DispatchError::Silent { url, waited: TIMEOUT }
        } else {
            DispatchError::Broken { url, reason: network_error(error) }
        }
    }

    fn strange(&self, what: &str) -> DispatchError {
        DispatchError::Strange { url: self.shown(), what: what.to_owned() }
    }

    /// The address without what may be secret in it.
    fn shown(&self) -> String {
        self.base.origin().ascii_serialization()
    }
}

impl Dispatcher {
    /// This dispatcher, repeating what may have failed for now. Without it each call is one attempt.
    #[must_use]
    pub fn retrying(self, retry: Retry) -> Self {
        Self { retry: Some(retry), ..self }
    }

    /// Attempts of one thing to do.
    fn attempts(&self) -> Attempts {
        Attempts {
            retry: self.retry,
            end: self.retry.map(|retry| Instant::now() + retry.within),
            pause: self.retry.map_or(Duration::ZERO, |retry| retry.pause),
        }
    }
}

/// What to do about a status, beyond what the server says itself.
fn hint(status: StatusCode, refusal: &Refusal) -> &'static str {
    match status {
        // These end with what to do as it is.
        _ if matches!(&*refusal.code, "unreachable" | "store_failed") => "",
        _ if refusal.message.contains("api.keys") => "",
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            ". Check the API key: it must be one of the server's api.keys"
        }
        StatusCode::INSUFFICIENT_STORAGE => ". It takes messages again by itself once there is room",
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => ". Try again in a moment",
        _ => "",
    }
}
