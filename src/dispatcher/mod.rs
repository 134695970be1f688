//! Calls the HTTP API of a server, for backends.
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
//! A dispatch that returned `Ok` is stored as durably as the server is configured, except for the rejected recipients
//! in the result. After an error the server may have accepted the dispatch. A retry may then deliver it twice, unless
//! it has an id ([`Dispatch::id`]). Time to live and collapse key are options of the message
//! ([`Options`](crate::message::Options)).
//!
//! [`Dispatcher::retrying`] retries temporary failures, and generates ids.
//!
//! Many dispatches are fastest over a stream ([`Dispatcher::dispatch_all`], [`Dispatcher::stream`]): they share group
//! commits, and do not wait for each other.

mod backup;
mod drain;
mod error;
mod ndjson;
mod response;
mod retry;
mod status;
#[cfg(test)]
mod tests;

use std::time::Duration;

use reqwest::{Certificate, Method, RequestBuilder, Response, StatusCode, Url, redirect};
use serde::{Serialize, de::DeserializeOwned};
use tokio::time::Instant;

use crate::{
    client::without_userinfo,
    logging::{json_error, network_error},
    message::{DispatchId, INTERNAL_EVENT, Message, Recipients, Seq, UserId},
    util::backoff::Backoff,
};

pub use drain::Drain;
pub use error::DispatchError;
pub use ndjson::{DispatchWriter, ResultReader};
pub use response::{
    Cleared, Device, Disconnected, DispatchResult, Messages, PendingMessage, Rejected, Rejection, User, Users,
};
use retry::Attempts;
pub use retry::Retry;
pub use status::{
    CommitLatency, ConnectionCounts, MessageCounts, PendingCounts, ProcessUsage, Status, StoreUsage, UserCounts,
    WebhookCounts,
};

/// Time limit for connecting.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Time limit of a call. A dispatch may wait for earlier commits, but not this long.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Time limit of a stream: one year, because a stream may stay open without an end.
const STREAM_TIMEOUT: Duration = Duration::from_secs(365 * 24 * 3600);

/// Size limit of a response, in bytes. The server's pages are smaller.
const RESPONSE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Calls the API of one server. Cheap to clone; reuses connections.
#[derive(Clone)]
pub struct Dispatcher {
    http: reqwest::Client,
    /// URL of the server, without a slash at its end.
    base: Url,
    key: String,
    retry: Option<Retry>,
}

/// Omits the key.
impl std::fmt::Debug for Dispatcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dispatcher").field("base", &self.base.as_str()).finish_non_exhaustive()
    }
}

/// Holds a dispatch.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Dispatch {
    /// Message to send.
    pub message: Message,
    /// Recipients.
    pub recipients: Recipients,
    /// Users who do not get it.
    pub excluding: Vec<UserId>,
    /// Idempotency id. Within the server's `api.idWindow` a retry returns the first result, with
    /// [`DispatchResult::duplicate`], and is not sent again.
    pub id: Option<DispatchId>,
}

impl Dispatch {
    /// Creates a dispatch without exclusions and id.
    #[must_use]
    pub fn new(message: Message, recipients: Recipients) -> Self {
        Self { message, recipients, excluding: Vec::new(), id: None }
    }

    /// Sets [`Dispatch::excluding`].
    #[must_use]
    pub fn excluding(mut self, users: Vec<UserId>) -> Self {
        self.excluding = users;
        self
    }

    /// Sets [`Dispatch::id`].
    #[must_use]
    pub fn id(mut self, id: DispatchId) -> Self {
        self.id = Some(id);
        self
    }

    fn body(&self) -> Result<Vec<u8>, DispatchError> {
        body(&self.message, &self.recipients, &self.excluding, self.id.as_ref())
    }
}

/// Mirrors the JSON of a dispatch.
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

/// Serializes recipients.
#[derive(Serialize)]
#[serde(untagged)]
enum Names<'a> {
    Everyone([&'static str; 1]),
    Users(&'a [UserId]),
}

impl Dispatcher {
    /// Creates a dispatcher for the server at `url` (`http://HOST[:PORT]`, also `https://`, with or without `/v1`),
    /// with a key of its `api.keys`. Does not connect.
    ///
    /// # Errors
    /// Fails if `url` is not such an address, or the key cannot be in a header.
    pub fn new(url: &str, api_key: &str) -> Result<Self, DispatchError> {
        Self::build(url, api_key, None)
    }

    /// Creates a dispatcher that trusts certificates in PEM, in place of the system's. See [`Dispatcher::new`].
    ///
    /// # Errors
    /// Fails as [`Dispatcher::new`], or if `ca_pem` has no certificate.
    pub fn with_ca(url: &str, api_key: &str, ca_pem: &[u8]) -> Result<Self, DispatchError> {
        Self::build(url, api_key, Some(ca_pem))
    }

    fn build(url: &str, api_key: &str, ca_pem: Option<&[u8]>) -> Result<Self, DispatchError> {
        let is_server_url = |base: &Url| {
            // A user name would be a second authentication in the request.
            matches!(base.scheme(), "http" | "https")
                && base.has_host()
                && base.username().is_empty()
                && base.password().is_none()
        };
        let base = Url::parse(url).ok().filter(is_server_url);
        let mut base = base.ok_or_else(|| DispatchError::Address(without_userinfo(url)))?;
        // The server prints its address with `/v1`, which each call adds.
        if let Some(server) = base.path().trim_end_matches('/').strip_suffix("/v1").map(str::to_owned) {
            base.set_path(&server);
        }
        if api_key.is_empty() || !api_key.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(DispatchError::Key);
        }
        let mut builder = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(TIMEOUT)
            // The key must reach neither the target of a redirect nor a proxy.
            .redirect(redirect::Policy::none())
            .no_proxy();
        if base.scheme() == "http" {
            // Otherwise even plain HTTP would need installed certificates.
            builder = builder.tls_certs_only([]);
        } else if let Some(pem) = ca_pem {
            let unusable = |why: String| DispatchError::Setup(format!("{why}. Give the certificate authority in PEM"));
            let trusted = Certificate::from_pem_bundle(pem).map_err(|error| unusable(network_error(&error)))?;
            if trusted.is_empty() {
                return Err(unusable("no certificate was given".into()));
            }
            builder = builder.tls_certs_only(trusted);
        }
        let http = builder.build().map_err(|error| DispatchError::Setup(network_error(&error)))?;
        Ok(Self { http, base, key: api_key.to_owned(), retry: None })
    }

    /// Sends a message, and returns after the server has stored its entries. Check [`DispatchResult::rejected`].
    ///
    /// # Errors
    /// Fails if the server cannot be reached, or rejects the dispatch as a whole.
    pub async fn dispatch(
        &self,
        message: &Message,
        recipients: &Recipients,
        excluding: &[UserId],
    ) -> Result<DispatchResult, DispatchError> {
        self.post(message, recipients, excluding, None).await
    }

    /// Sends a dispatch, like [`Dispatcher::dispatch`].
    ///
    /// # Errors
    /// Fails if the server cannot be reached, or rejects the dispatch as a whole.
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
        let generated = if id.is_none() { self.generated_id(message)? } else { None };
        let body = body(message, recipients, excluding, id.or(generated.as_ref()))?;
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

    /// Generates an id for a dispatch that may be retried. Internal events need none: they are idempotent.
    fn generated_id(&self, message: &Message) -> Result<Option<DispatchId>, DispatchError> {
        let is_needed = self.retry.is_some() && message.op != INTERNAL_EVENT;
        is_needed.then(retry::random_id).transpose()
    }

    /// Gets a user.
    ///
    /// # Errors
    /// Fails if the server cannot be reached, or rejects the request.
    pub async fn user(&self, id: &UserId) -> Result<User, DispatchError> {
        self.call(self.request(Method::GET, self.user_url(id, None)?)).await
    }

    /// Gets a page of users: all, or with `online` those that are online. Pass the page's cursor to get the next one.
    ///
    /// # Errors
    /// Fails if the server cannot be reached, or rejects the request.
    pub async fn users(
        &self,
        online: bool,
        cursor: Option<&str>,
        limit: Option<usize>,
    ) -> Result<Users, DispatchError> {
        let mut url = self.url(&["users"])?;
        {
            let mut query = url.query_pairs_mut();
            // `online=false` would list offline users.
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
        // Removes the question mark of an empty query.
        if url.query() == Some("") {
            url.set_query(None);
        }
        self.call(self.request(Method::GET, url)).await
    }

    /// Gets pending messages of a user with a sequence above `after`, without acknowledging them.
    ///
    /// # Errors
    /// Fails if the server cannot be reached, or rejects the request.
    pub async fn messages(&self, id: &UserId, after: Seq, limit: Option<usize>) -> Result<Messages, DispatchError> {
        let mut url = self.user_url(id, Some("messages"))?;
        url.query_pairs_mut().append_pair("after", &after.to_string());
        if let Some(limit) = limit {
            url.query_pairs_mut().append_pair("limit", &limit.to_string());
        }
        self.call(self.request(Method::GET, url)).await
    }

    /// Acknowledges all pending messages of a user.
    ///
    /// # Errors
    /// Fails if the server cannot be reached, or rejects the request.
    pub async fn clear(&self, id: &UserId) -> Result<Cleared, DispatchError> {
        self.call(self.request(Method::DELETE, self.user_url(id, Some("messages"))?)).await
    }

    /// Erases everything that the server has about a user, after it has disconnected the user.
    ///
    /// # Errors
    /// Fails if the server cannot be reached, or rejects the request: the user is unknown, or connects again and again.
    pub async fn erase(&self, id: &UserId) -> Result<(), DispatchError> {
        self.successful_body(self.request(Method::DELETE, self.user_url(id, None)?)).await.map(drop)
    }

    /// Closes all connections of a user, with code 1000: clients do not reconnect.
    ///
    /// # Errors
    /// Fails if the server cannot be reached, or rejects the request.
    pub async fn disconnect(&self, id: &UserId) -> Result<Disconnected, DispatchError> {
        self.call(self.request(Method::POST, self.user_url(id, Some("disconnect"))?)).await
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
        // In a path these are relative segments, even if escaped. A call to clear the messages of a user named `..`
        // must not reach another endpoint.
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

    /// Opens a response that has no end, for portals. `header` is an additional header.
    pub(crate) async fn open_stream(
        &self,
        path: &[&str],
        query: &[(&str, &str)],
        header: Option<(&'static str, &str)>,
    ) -> Result<Response, DispatchError> {
        let mut url = self.url(path)?;
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let mut request = self.request(Method::GET, url).timeout(STREAM_TIMEOUT);
        if let Some((name, value)) = header {
            request = request.header(name, value);
        }
        let sending = tokio::time::timeout(TIMEOUT, request.send()).await;
        let silent = |_| DispatchError::TimedOut { url: self.origin(), waited: TIMEOUT };
        let response = sending.map_err(silent)?.map_err(|error| self.network_error(&error))?;
        if response.status().is_success() { Ok(response) } else { Err(self.rejection(response).await) }
    }

    async fn call<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, DispatchError> {
        let body = self.successful_body(request).await?;
        serde_json::from_slice(&body)
            .map_err(|error| self.invalid_response(&format!("its response cannot be parsed ({})", json_error(&error))))
    }

    /// Returns the body of a successful response.
    async fn successful_body(&self, request: RequestBuilder) -> Result<Vec<u8>, DispatchError> {
        let response = request.send().await.map_err(|error| self.network_error(&error))?;
        if response.status().is_success() {
            return self.body(response).await;
        }
        Err(self.rejection(response).await)
    }

    /// Reads an error response.
    async fn rejection(&self, response: Response) -> DispatchError {
        let status = response.status();
        let body = match self.body(response).await {
            Ok(body) => body,
            Err(error) => return error,
        };
        match serde_json::from_slice::<response::ErrorResponse>(&body) {
            Ok(response) => DispatchError::Rejected {
                status: status.as_u16(),
                hint: hint(status, &response.error),
                code: response.error.code,
                message: response.error.message,
            },
            Err(_) => {
                self.invalid_response(&format!("it answered {status} without an error body{}", error::quoted(&body)))
            }
        }
    }

    async fn body(&self, mut response: Response) -> Result<Vec<u8>, DispatchError> {
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| self.network_error(&error))? {
            if body.len() + chunk.len() > RESPONSE_BYTES_MAX {
                return Err(
                    self.invalid_response(&format!("its response has more than {} MiB", RESPONSE_BYTES_MAX >> 20))
                );
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    fn network_error(&self, error: &reqwest::Error) -> DispatchError {
        let url = self.origin();
        if error.is_connect() {
            let reason = network_error(error);
            match error::tls_problem(&reason) {
                Some(reason) => DispatchError::Tls { url, reason },
                None => DispatchError::Unreachable { url, reason },
            }
        } else if error.is_timeout() {
            DispatchError::TimedOut { url, waited: TIMEOUT }
        } else {
            DispatchError::Broken { url, reason: network_error(error) }
        }
    }

    fn invalid_response(&self, what: &str) -> DispatchError {
        DispatchError::InvalidResponse { url: self.origin(), what: what.to_owned() }
    }

    /// Returns the origin of the URL, without parts that may be secret.
    fn origin(&self) -> String {
        self.base.origin().ascii_serialization()
    }
}

impl Dispatcher {
    /// Enables retries of temporary failures. Without it each call is one attempt.
    #[must_use]
    pub fn retrying(self, retry: Retry) -> Self {
        Self { retry: Some(retry), ..self }
    }

    /// Starts the attempts of one call.
    fn attempts(&self) -> Attempts {
        let retry = self.retry.unwrap_or_default();
        Attempts {
            end: self.retry.map(|retry| Instant::now() + retry.timeout),
            backoff: Backoff::new(retry.delay, retry.delay_max),
        }
    }
}

/// Returns advice for a status, to follow the server's text.
fn hint(status: StatusCode, rejection: &Rejection) -> &'static str {
    match status {
        // The texts of these errors end with advice already.
        _ if matches!(&*rejection.code, "unreachable" | "store_failed" | "outcome_unknown" | "busy") => "",
        _ if rejection.message.contains("api.keys") => "",
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            ". Check the API key: it must be one of the server's api.keys"
        }
        StatusCode::INSUFFICIENT_STORAGE => ". The server accepts messages again once it has space",
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => ". Retry in a moment",
        _ => "",
    }
}
