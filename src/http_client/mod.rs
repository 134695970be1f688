//! Requests the server makes of its own accord: webhooks, and the keys that tokens are checked with.
//!
//! Where they go was configured, but who answers there may be anybody. So no redirect is followed and no proxy used, time
//! and answer are bounded, and private addresses are refused unless they are allowed: what counts is the address that
//! is connected to, after the name was looked up, so that a name which changes its mind gains nothing.
//!
//! - [`private_ip`]: which addresses are private
//! - [`signing`]: how a request shows that it is ours

pub mod private_ip;
#[cfg(test)]
#[path = "../../tests/support/http_receiver.rs"]
#[allow(dead_code, missing_docs, reason = "the tests of the built binary use the rest")]
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

/// Longest URL, in bytes.
pub const URL_BYTES_MAX: usize = 2048;

/// Of an answer whose content does not matter so much is read, so that its connection can be used again.
const DISCARDED_BYTES_MAX: usize = 64 << 10;

/// And for so long.
const DISCARDING_MAX: Duration = Duration::from_secs(1);

/// Longest that `Retry-After` is heeded.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60 * 60);

/// Names looked up at the same time for one address. A lookup cannot be called back, and takes a thread for as long as the
/// system lets it: whoever gave up waiting must not leave one more behind each time.
const LOOKUPS_MAX: usize = 4;

/// Connections that nobody uses are kept for so long: less than most servers keep theirs.
const IDLE_MAX: Duration = Duration::from_secs(4);

/// Why a URL cannot be asked: the end of a sentence that begins with what it is for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UrlError(String);

/// Checks what can be known of a URL without asking anybody.
///
/// # Errors
/// When it is no `https` URL of a public host (with `allow_private`: no `http` or `https` URL), or has a user name, a
/// password or a fragment in it.
pub fn check_url(url: &str, allow_private: bool) -> Result<(), UrlError> {
    parse(url, allow_private).map(drop)
}

fn parse(url: &str, allow_private: bool) -> Result<Url, UrlError> {
    let refuse = |text: &str| Err(UrlError(text.to_owned()));
    if url.len() > URL_BYTES_MAX {
        return Err(UrlError(format!("may have at most {URL_BYTES_MAX} bytes")));
    }
    let Ok(url) = Url::parse(url) else { return refuse("must be a URL, as in https://example.org/hooks") };
    match url.scheme() {
        "https" => {}
        "http" if allow_private => {}
        "http" => return refuse("must begin with https://; plain http:// is for private networks (allowPrivate)"),
        _ => return refuse("must begin with https://"),
    }
    if !url.username().is_empty() || url.password().is_some() || url.fragment().is_some() {
        return refuse("must not have a user name, a password or a fragment in it");
    }
    // The parser has turned every way of writing an address, such as 0x7f.1, into the plain one.
    let Some(host) = url.host_str() else { return refuse("must name a host") };
    let literal = host.trim_start_matches('[').trim_end_matches(']').parse().ok();
    let local = host.trim_end_matches('.');
    let local = local == "localhost" || local.ends_with(".localhost");
    if !allow_private && (local || literal.is_some_and(private_ip::is_private)) {
        return refuse("names a private address, which is refused unless allowPrivate is true");
    }
    Ok(url)
}

/// One address that is asked again and again. Cheap to clone; keeps its connections.
#[derive(Clone)]
pub struct Outgoing {
    http: reqwest::Client,
    url: Url,
    timeout: Duration,
}

/// What came back.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// For how long it asked to be left alone; at most an hour.
    pub retry_after: Option<Duration>,
    /// The body, where it was asked for.
    pub body: Vec<u8>,
}

impl Answer {
    /// Whether the status is one of success.
    #[must_use]
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OutgoingError {
    /// Nobody is there, or nobody who may be asked.
    #[error("{host} cannot be reached: {reason}")]
    Unreachable {
        /// Whom was asked.
        host: String,
        /// What the system says.
        reason: String,
    },
    /// It took too long.
    #[error("{host} did not answer within {} ms", waited.as_millis())]
    Silent {
        /// Whom was asked.
        host: String,
        /// How long was waited in all.
        waited: Duration,
    },
    /// The connection broke in the middle.
    #[error("the answer of {host} broke off: {reason}")]
    Broken {
        /// Whom was asked.
        host: String,
        /// What the system says.
        reason: String,
    },
    /// The answer was too long.
    #[error("the answer of {host} has more than {bytes} bytes")]
    TooLarge {
        /// Whom was asked.
        host: String,
        /// How many there may be.
        bytes: usize,
    },
}

impl Outgoing {
    /// Asks `url`, each time for `timeout` at most, from looking its name up to the end of the answer. Does not connect.
    ///
    /// # Errors
    /// When the URL is refused (see [`check_url`]), or the system's certificates cannot be used.
    pub fn new(url: &str, timeout: Duration, allow_private: bool) -> Result<Self, UrlError> {
        let url = parse(url, allow_private)?;
        let mut builder = reqwest::Client::builder()
            .timeout(timeout)
            .redirect(redirect::Policy::none())
            // A proxy would look names up itself, and connect to wherever that leads.
            .no_proxy()
            .pool_idle_timeout(IDLE_MAX)
            .user_agent(concat!("mesa/", env!("CARGO_PKG_VERSION")))
            .dns_resolver(Arc::new(Guard::new(allow_private)));
        if url.scheme() == "http" {
            // Without this, a machine that has no certificates installed could not even speak plain HTTP.
            builder = builder.tls_certs_only([]);
        }
        let http = builder.build().map_err(|error| UrlError(format!("cannot be asked: {}", network_error(&error))))?;
        Ok(Self { http, url, timeout })
    }

    /// Posts JSON. The body of the answer is of no interest.
    ///
    /// # Errors
    /// When nothing answers with a status.
    pub async fn post(&self, body: Vec<u8>, headers: &[(&'static str, String)]) -> Result<Answer, OutgoingError> {
        let mut response = self.send(Method::POST, Some(body), headers).await?;
        let mut answer = answer(&response);
        let mut read = 0;
        let discard = async {
            while let Ok(Some(chunk)) = response.chunk().await {
                read += chunk.len();
                if read > DISCARDED_BYTES_MAX {
                    break;
                }
            }
        };
        // The status was the answer. What does not end in time, or at all, costs its connection.
        _ = timeout(DISCARDING_MAX, discard).await;
        answer.body = Vec::new();
        Ok(answer)
    }

    /// Posts JSON, and reads an answer of at most `bytes_max`.
    ///
    /// # Errors
    /// When nothing answers, or not with a whole answer of that size.
    pub async fn ask(
        &self,
        body: Vec<u8>,
        headers: &[(&'static str, String)],
        bytes_max: usize,
    ) -> Result<Answer, OutgoingError> {
        let response = self.send(Method::POST, Some(body), headers).await?;
        self.read(response, bytes_max).await
    }

    /// Gets what is there, of at most `bytes_max`.
    ///
    /// # Errors
    /// When nothing answers, or not with a whole answer of that size.
    pub async fn get(&self, bytes_max: usize) -> Result<Answer, OutgoingError> {
        let response = self.send(Method::GET, None, &[]).await?;
        self.read(response, bytes_max).await
    }

    async fn send(
        &self,
        method: Method,
        body: Option<Vec<u8>>,
        headers: &[(&'static str, String)],
    ) -> Result<Response, OutgoingError> {
        let mut request = self.http.request(method, self.url.clone()).header("accept", "application/json");
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body);
        }
        request.send().await.map_err(|error| self.failed(&error))
    }

    async fn read(&self, mut response: Response, bytes_max: usize) -> Result<Answer, OutgoingError> {
        let mut answer = answer(&response);
        while let Some(chunk) = response.chunk().await.map_err(|error| self.failed(&error))? {
            if answer.body.len() + chunk.len() > bytes_max {
                return Err(OutgoingError::TooLarge { host: self.host(), bytes: bytes_max });
            }
            answer.body.extend_from_slice(&chunk);
        }
        Ok(answer)
    }

    fn failed(&self, error: &reqwest::Error) -> OutgoingError {
        let host = self.host();
        if error.is_timeout() {
            OutgoingError::Silent { host, waited: self.timeout }
        } else if error.is_connect() {
            OutgoingError::Unreachable { host, reason: network_error(error) }
        } else {
            OutgoingError::Broken { host, reason: network_error(error) }
        }
    }

    /// The address without what may be secret in it.
    fn host(&self) -> String {
        self.url.origin().ascii_serialization()
    }
}

impl std::fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outgoing").field("host", &self.host()).finish_non_exhaustive()
    }
}

fn answer(response: &Response) -> Answer {
    let retry_after = response.headers().get("retry-after").and_then(|value| value.to_str().ok()?.trim().parse().ok());
    Answer {
        status: response.status().as_u16(),
        retry_after: retry_after.map(|seconds| Duration::from_secs(seconds).min(RETRY_AFTER_MAX)),
        body: Vec::new(),
    }
}

/// Looks names up, and gives out only addresses that may be connected to.
struct Guard {
    allow_private: bool,
    lookups: Arc<Semaphore>,
}

impl Guard {
    fn new(allow_private: bool) -> Self {
        Self { allow_private, lookups: Arc::new(Semaphore::new(LOOKUPS_MAX)) }
    }
}

impl Resolve for Guard {
    fn resolve(&self, name: Name) -> Resolving {
        let (allow_private, lookups) = (self.allow_private, self.lookups.clone());
        Box::pin(async move {
            let turn = lookups.acquire_owned().await?;
            // Of its own, so that the turn is given back when the lookup has ended, and not when nobody waits for it.
            let looking = tokio::spawn(async move {
                let _turn = turn;
                let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
                Ok::<Vec<SocketAddr>, io::Error>(found.collect())
            });
            let allowed = allowed(looking.await??, allow_private)?;
            Ok(Box::new(allowed.into_iter()) as Addrs)
        })
    }
}

fn allowed(found: Vec<SocketAddr>, allow_private: bool) -> Result<Vec<SocketAddr>, io::Error> {
    let refused = found.iter().map(SocketAddr::ip).find(|address| !allow_private && private_ip::is_private(*address));
    let allowed: Vec<_> =
        found.into_iter().filter(|found| allow_private || !private_ip::is_private(found.ip())).collect();
    match refused {
        Some(address) if allowed.is_empty() => {
            Err(io::Error::other(format!("its address {address} is private, and allowPrivate is not set")))
        }
        _ => Ok(allowed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_that_cannot_be_meant_are_refused() {
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
            ("ftp://example.org/", "must begin with https://"),
            ("file:///etc/passwd", "must begin with https://"),
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
    fn of_what_a_name_leads_to_only_public_addresses_are_used() {
        let at = |text: &str| SocketAddr::new(text.parse().unwrap(), 0);
        let both = vec![at("10.0.0.1"), at("93.184.215.14"), at("::1")];
        assert_eq!(allowed(both.clone(), false).unwrap(), [at("93.184.215.14")]);
        assert_eq!(allowed(both.clone(), true).unwrap(), both);
        let error = allowed(vec![at("::ffff:127.0.0.1")], false).unwrap_err().to_string();
        assert!(error.contains("127.0.0.1 is private"), "{error}");
        assert!(allowed(Vec::new(), false).unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_name_that_leads_home_is_not_followed_there() {
        // Whatever the file of hosts calls this machine: the name passes the check of the URL, its address does not.
        let guard = Guard::new(false);
        let refused = guard.resolve("localhost".parse().unwrap()).await.err().expect("a refusal").to_string();
        assert!(refused.contains("is private"), "{refused}");
        assert!(Guard::new(true).resolve("localhost".parse().unwrap()).await.is_ok());

        // And as a request: nobody is connected to.
        let receiver = receiver::Receiver::start();
        let mut outgoing = Outgoing::new("https://example.org/", Duration::from_secs(5), false).unwrap();
        outgoing.url = format!("http://localhost:{}/", receiver.address.port()).parse().unwrap();
        let error = outgoing.get(1000).await.unwrap_err().to_string();
        assert!(error.contains("cannot be reached") && error.contains("is private"), "{error}");
        assert_eq!(receiver.connections(), 0);
        let mut allowed = Outgoing::new("http://localhost/", Duration::from_secs(5), true).unwrap();
        allowed.url = outgoing.url;
        assert_eq!(allowed.get(1000).await.unwrap().status, 200);
    }
}
