//! Sends the server's HTTP requests: to webhooks, and for published keys (JWKS).
//!
//! A third party may control the configured host, and could direct requests to internal services (server-side request
//! forgery, SSRF). So the client follows no redirect, uses no proxy, and bounds time and response size. It rejects
//! private addresses unless they are allowed. It checks the resolved address to which it connects, so a name whose
//! address changes (DNS rebinding) cannot bypass the check.
//!
//! - [`private_ip`]: classifies private addresses
//! - [`signing`]: signs requests

pub mod private_ip;
#[cfg(test)]
#[path = "../../tests/support/http_receiver.rs"]
#[allow(dead_code, missing_docs, reason = "the unit tests use only some of it")]
pub(crate) mod receiver;
pub mod signing;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use reqwest::{
    Method, Response, Url,
    dns::{Addrs, Name, Resolve, Resolving},
    redirect,
};
use tokio::{sync::Semaphore, time::timeout};

use crate::logging::network_error;

/// Length limit of a URL, in bytes.
pub const URL_BYTES_MAX: usize = 2048;

/// Bytes of an unused response body that are read, so that the connection can be reused.
const DISCARDED_BYTES_MAX: usize = 64 << 10;

/// Time limit for reading an unused response body.
const DISCARD_TIMEOUT: Duration = Duration::from_secs(1);

/// Maximum delay that `Retry-After` can cause.
const RETRY_DELAY_MAX: Duration = Duration::from_secs(60 * 60);

/// Maximum number of concurrent DNS lookups of one client.
///
/// A lookup cannot be cancelled, and occupies a thread until the system ends it. Without the limit each timed-out
/// request would occupy another thread.
const LOOKUPS_MAX: usize = 4;

/// Time after which the client closes an idle connection: shorter than the keep-alive timeout of most servers.
const IDLE_TIMEOUT: Duration = Duration::from_secs(4);

/// Describes why a URL is rejected, as the end of a sentence that begins with its configuration key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UrlError(String);

/// Checks a URL without a lookup.
///
/// # Errors
/// Fails unless it is an `https` URL of a public host (with `allow_private`: any `http` or `https` URL). Fails if it has a
/// user name, a password or a fragment.
pub fn check_url(url: &str, allow_private: bool) -> Result<(), UrlError> {
    parse(url, allow_private).map(drop)
}

fn parse(url: &str, allow_private: bool) -> Result<Url, UrlError> {
    let reject = |text: &str| Err(UrlError(text.to_owned()));
    if url.len() > URL_BYTES_MAX {
        return Err(UrlError(format!("may have at most {URL_BYTES_MAX} bytes")));
    }
    let Ok(url) = Url::parse(url) else { return reject("must be a URL, as in https://example.org/hooks") };
    match url.scheme() {
        "https" => {}
        "http" if allow_private => {}
        "http" => return reject("must start with https://; plain http:// is for private networks (allowPrivate)"),
        _ => return reject("must start with https://"),
    }
    if !url.username().is_empty() || url.password().is_some() || url.fragment().is_some() {
        return reject("must not have a user name, a password or a fragment");
    }
    // The parser has normalized all spellings of an address, such as 0x7f.1.
    let Some(host) = url.host_str() else { return reject("must name a host") };
    let literal = host.trim_start_matches('[').trim_end_matches(']').parse().ok();
    let local = host.trim_end_matches('.');
    let local = local == "localhost" || local.ends_with(".localhost");
    if !allow_private && (local || literal.is_some_and(private_ip::is_private)) {
        return reject("names a private address; set allowPrivate to true to allow it");
    }
    Ok(url)
}

/// Sends requests to one URL. Cheap to clone; reuses connections.
#[derive(Clone)]
pub struct HttpClient {
    http: reqwest::Client,
    url: Url,
    timeout: Duration,
}

/// Holds a response.
#[derive(Clone, Debug)]
pub struct HttpResponse {
    /// HTTP status.
    pub status: u16,
    /// Requested delay before a retry; at most 1 h.
    pub retry_after: Option<Duration>,
    /// Body; empty after [`HttpClient::post`].
    pub body: Vec<u8>,
}

impl HttpResponse {
    /// Returns whether the status is 200 to 299.
    #[must_use]
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }
}

/// Describes why there is no response.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HttpError {
    /// The host is unreachable, or its address is private and not allowed.
    #[error("{host} cannot be reached: {reason}")]
    Unreachable {
        /// Origin of the URL.
        host: String,
        /// Cause as reported by the system.
        reason: String,
    },
    /// The request timed out.
    #[error("{host} did not answer within {} ms", waited.as_millis())]
    TimedOut {
        /// Origin of the URL.
        host: String,
        /// Time limit of the request.
        waited: Duration,
    },
    /// The connection broke within the response.
    #[error("the response of {host} broke off: {reason}")]
    Broken {
        /// Origin of the URL.
        host: String,
        /// Cause as reported by the system.
        reason: String,
    },
    /// The response was too large.
    #[error("the response of {host} has more than {bytes} bytes")]
    TooLarge {
        /// Origin of the URL.
        host: String,
        /// Limit in bytes.
        bytes: usize,
    },
}

impl HttpClient {
    /// Creates a client of `url`, and does not connect. `timeout` covers a request from DNS lookup to the end of the
    /// response.
    ///
    /// # Errors
    /// Fails if the URL is rejected (see [`check_url`]), or the system's certificates cannot be loaded.
    pub fn new(url: &str, timeout: Duration, allow_private: bool) -> Result<Self, UrlError> {
        let url = parse(url, allow_private)?;
        let mut builder = reqwest::Client::builder()
            .timeout(timeout)
            .redirect(redirect::Policy::none())
            // A proxy would resolve names itself, and bypass the check of addresses.
            .no_proxy()
            .pool_idle_timeout(IDLE_TIMEOUT)
            .user_agent(concat!("mesa/", env!("CARGO_PKG_VERSION")))
            .dns_resolver(Arc::new(PublicResolver::new(allow_private)));
        if url.scheme() == "http" {
            // Otherwise even plain HTTP would need installed certificates.
            builder = builder.tls_certs_only([]);
        }
        let http = builder.build().map_err(|error| UrlError(format!("cannot be used: {}", network_error(&error))))?;
        Ok(Self { http, url, timeout })
    }

    /// Posts JSON, and discards the body of the response.
    ///
    /// # Errors
    /// Fails if no status is received.
    pub async fn post(&self, body: Vec<u8>, headers: &[(&'static str, String)]) -> Result<HttpResponse, HttpError> {
        let mut response = self.send(Method::POST, Some(body), headers).await?;
        let mut result = status_of(&response);
        let mut read = 0;
        let discard = async {
            while let Ok(Some(chunk)) = response.chunk().await {
                read += chunk.len();
                if read > DISCARDED_BYTES_MAX {
                    break;
                }
            }
        };
        // If the body does not end in time, its connection is closed and not reused.
        _ = timeout(DISCARD_TIMEOUT, discard).await;
        result.body = Vec::new();
        Ok(result)
    }

    /// Posts JSON, and reads a response of at most `bytes_max`.
    ///
    /// # Errors
    /// Fails if no complete response of that size is received.
    pub async fn post_json(
        &self,
        body: Vec<u8>,
        headers: &[(&'static str, String)],
        bytes_max: usize,
    ) -> Result<HttpResponse, HttpError> {
        let response = self.send(Method::POST, Some(body), headers).await?;
        self.read(response, bytes_max).await
    }

    /// Gets the URL, and reads a response of at most `bytes_max`.
    ///
    /// # Errors
    /// Fails if no complete response of that size is received.
    pub async fn get(&self, bytes_max: usize) -> Result<HttpResponse, HttpError> {
        let response = self.send(Method::GET, None, &[]).await?;
        self.read(response, bytes_max).await
    }

    async fn send(
        &self,
        method: Method,
        body: Option<Vec<u8>>,
        headers: &[(&'static str, String)],
    ) -> Result<Response, HttpError> {
        let mut request = self.http.request(method, self.url.clone()).header("accept", "application/json");
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body);
        }
        request.send().await.map_err(|error| self.error(&error))
    }

    async fn read(&self, mut response: Response, bytes_max: usize) -> Result<HttpResponse, HttpError> {
        let mut result = status_of(&response);
        while let Some(chunk) = response.chunk().await.map_err(|error| self.error(&error))? {
            if result.body.len() + chunk.len() > bytes_max {
                return Err(HttpError::TooLarge { host: self.host(), bytes: bytes_max });
            }
            result.body.extend_from_slice(&chunk);
        }
        Ok(result)
    }

    fn error(&self, error: &reqwest::Error) -> HttpError {
        let host = self.host();
        if error.is_timeout() {
            HttpError::TimedOut { host, waited: self.timeout }
        } else if error.is_connect() {
            HttpError::Unreachable { host, reason: network_error(error) }
        } else {
            HttpError::Broken { host, reason: network_error(error) }
        }
    }

    /// Returns the origin of the URL, without parts that may be secret.
    fn host(&self) -> String {
        self.url.origin().ascii_serialization()
    }
}

impl std::fmt::Debug for HttpClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HttpClient").field("host", &self.host()).finish_non_exhaustive()
    }
}

/// Converts the status and `Retry-After` of a response, without its body.
fn status_of(response: &Response) -> HttpResponse {
    let retry_after = response.headers().get("retry-after").and_then(|value| value.to_str().ok()?.trim().parse().ok());
    HttpResponse {
        status: response.status().as_u16(),
        retry_after: retry_after.map(|seconds| Duration::from_secs(seconds).min(RETRY_DELAY_MAX)),
        body: Vec::new(),
    }
}

/// Resolves names to addresses that may be connected to.
struct PublicResolver {
    allow_private: bool,
    lookups: Arc<Semaphore>,
}

impl PublicResolver {
    fn new(allow_private: bool) -> Self {
        Self { allow_private, lookups: Arc::new(Semaphore::new(LOOKUPS_MAX)) }
    }
}

impl Resolve for PublicResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let (allow_private, lookups) = (self.allow_private, self.lookups.clone());
        Box::pin(async move {
            let permit = lookups.acquire_owned().await?;
            // A task of its own, which holds the permit until the lookup ends even if the request is dropped.
            let lookup = tokio::spawn(async move {
                let _permit = permit;
                let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
                Ok::<Vec<SocketAddr>, io::Error>(found.collect())
            });
            let allowed = allowed(lookup.await??, allow_private)?;
            Ok(Box::new(allowed.into_iter()) as Addrs)
        })
    }
}

/// Filters private addresses out. Fails if no other remains.
fn allowed(found: Vec<SocketAddr>, allow_private: bool) -> Result<Vec<SocketAddr>, io::Error> {
    let rejected = found.iter().map(SocketAddr::ip).find(|address| !allow_private && private_ip::is_private(*address));
    let allowed: Vec<_> =
        found.into_iter().filter(|found| allow_private || !private_ip::is_private(found.ip())).collect();
    match rejected {
        Some(address) if allowed.is_empty() => {
            Err(io::Error::other(format!("its address {address} is private; set allowPrivate to true to allow it")))
        }
        _ => Ok(allowed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_or_private_url_is_rejected() {
        for url in [
            "https://example.org/hooks?x=1",
            "https://93.184.215.14/",
            "https://[2606:2800:21f:cb07:6820:80da:af6b:8b2c]/",
        ] {
            assert_eq!(check_url(url, false), Ok(()), "{url}");
        }
        for (url, expected) in [
            ("", "must be a URL"),
            ("example.org", "must be a URL"),
            ("ftp://example.org/", "must start with https://"),
            ("file:///etc/passwd", "must start with https://"),
            ("http://example.org/", "plain http://"),
            ("https://me:secret@example.org/", "user name"),
            ("https://example.org/#here", "fragment"),
            ("https://localhost/", "private"),
            ("https://LOCALHOST./", "private"),
            ("https://a.localhost/", "private"),
            ("https://127.0.0.1/", "private"),
            ("https://127.1/", "private"),
            ("https://2130706433/", "private"),
            ("https://0x7f000001/", "private"),
            ("https://0177.0.0.1/", "private"),
            ("https://[::1]/", "private"),
            ("https://[::ffff:10.0.0.1]/", "private"),
            ("https://169.254.169.254/latest/meta-data/", "private"),
        ] {
            let error = check_url(url, false).expect_err(url).to_string();
            assert!(error.contains(expected), "{url}: {error}");
        }
        for url in ["http://127.0.0.1:8000/", "http://localhost/", "https://[::1]/", "http://10.0.0.1/"] {
            assert_eq!(check_url(url, true), Ok(()), "{url}");
        }
        assert!(check_url(&format!("https://example.org/{}", "x".repeat(URL_BYTES_MAX)), false).is_err());
    }

    #[test]
    fn resolved_private_addresses_are_filtered() {
        let at = |text: &str| SocketAddr::new(text.parse().unwrap(), 0);
        let both = vec![at("10.0.0.1"), at("93.184.215.14"), at("::1")];
        assert_eq!(allowed(both.clone(), false).unwrap(), [at("93.184.215.14")]);
        assert_eq!(allowed(both.clone(), true).unwrap(), both);
        let error = allowed(vec![at("::ffff:127.0.0.1")], false).unwrap_err().to_string();
        assert!(error.contains("127.0.0.1 is private"), "{error}");
        assert!(allowed(Vec::new(), false).unwrap().is_empty());
    }

    #[tokio::test]
    async fn connection_to_name_of_private_address_is_rejected() {
        // The name passes the check of the URL, but its address is rejected.
        let resolver = PublicResolver::new(false);
        let rejected = resolver.resolve("localhost".parse().unwrap()).await.err().expect("a rejection").to_string();
        assert!(rejected.contains("is private"), "{rejected}");
        assert!(PublicResolver::new(true).resolve("localhost".parse().unwrap()).await.is_ok());

        // The same in a request: no connection is made.
        let receiver = receiver::Receiver::start();
        let mut client = HttpClient::new("https://example.org/", Duration::from_secs(5), false).unwrap();
        client.url = format!("http://localhost:{}/", receiver.address.port()).parse().unwrap();
        let error = client.get(1000).await.unwrap_err().to_string();
        assert!(error.contains("cannot be reached") && error.contains("is private"), "{error}");
        assert_eq!(receiver.connections(), 0);
        let mut allowed = HttpClient::new("http://localhost/", Duration::from_secs(5), true).unwrap();
        allowed.url = client.url;
        assert_eq!(allowed.get(1000).await.unwrap().status, 200);
    }
}
