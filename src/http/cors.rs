//! Lets web pages of `api.corsOrigins` call the API: cross-origin resource sharing (CORS).
//!
//! A browser sends the origin of a page, and passes a response to the page only if the response allows that origin. It
//! first asks by a preflight (`OPTIONS`, without the key) whether the page may send `Authorization`. Cookies and other
//! credentials of the browser are never allowed, because the API authenticates by keys.
//!
//! `CorsLayer` of tower-http is not used: to other origins it still sends the allowed methods and headers.

use axum::{
    http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, header},
    response::{IntoResponse, Response},
};

/// Item of `api.corsOrigins` that allows every origin.
const ANY: &str = "*";

/// Methods of the API. Browsers always allow HEAD.
const METHODS: HeaderValue = HeaderValue::from_static("GET, POST, DELETE");

/// Headers that a page may send. `Last-Event-ID` resumes an event stream.
const ALLOWED_HEADERS: HeaderValue = HeaderValue::from_static("authorization, content-type, last-event-id");

/// Headers that a page may read, in addition to those that browsers always expose.
const EXPOSED_HEADERS: HeaderValue = HeaderValue::from_static("retry-after, www-authenticate");

/// Seconds for which a browser remembers the answer to a preflight: the limit of Chromium.
const MAX_AGE_SECS: HeaderValue = HeaderValue::from_static("7200");

/// Describes what CORS means for one request.
pub(super) struct Cors {
    /// Value that allows the origin; `None`: there is no origin, or it is not allowed.
    allowed: Option<HeaderValue>,
    is_preflight: bool,
}

impl Cors {
    /// Checks a request; `None`: no origin is allowed at all.
    pub(super) fn of<B>(origins: &[String], request: &Request<B>) -> Option<Self> {
        if origins.is_empty() {
            return None;
        }
        let headers = request.headers();
        let is_preflight =
            request.method() == Method::OPTIONS && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
        Some(Self { allowed: allowed(origins, headers), is_preflight })
    }

    /// Reports whether the request is a preflight of an allowed origin, which needs no key.
    pub(super) fn is_allowed_preflight(&self) -> bool {
        self.is_preflight && self.allowed.is_some()
    }

    /// Adds headers to a response.
    pub(super) fn apply(self, response: &mut Response) {
        let headers = response.headers_mut();
        // Also without an origin: otherwise a cache could answer one origin with the response to another.
        headers.append(header::VARY, HeaderValue::from(header::ORIGIN));
        let Some(origin) = self.allowed else { return };
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        let others: &[(HeaderName, HeaderValue)] = if self.is_preflight {
            &[
                (header::ACCESS_CONTROL_ALLOW_METHODS, METHODS),
                (header::ACCESS_CONTROL_ALLOW_HEADERS, ALLOWED_HEADERS),
                (header::ACCESS_CONTROL_MAX_AGE, MAX_AGE_SECS),
            ]
        } else {
            &[(header::ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED_HEADERS)]
        };
        headers.extend(others.iter().cloned());
    }
}

/// Responds to an allowed preflight. [`Cors::apply`] adds the headers.
pub(super) fn preflight() -> Response {
    StatusCode::NO_CONTENT.into_response()
}

fn allowed(origins: &[String], headers: &HeaderMap) -> Option<HeaderValue> {
    let mut sent = headers.get_all(header::ORIGIN).iter();
    let origin = sent.next().filter(|_| sent.next().is_none())?;
    if origins.iter().any(|allowed| allowed == ANY) {
        return Some(HeaderValue::from_static(ANY));
    }
    origins.iter().any(|allowed| allowed.as_bytes() == origin.as_bytes()).then(|| origin.clone())
}
