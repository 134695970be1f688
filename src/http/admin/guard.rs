//! Checks that a request of the admin page has a session.

use std::{sync::Arc, time::Instant};

use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderName, header},
    middleware::Next,
    response::{IntoResponse, Response},
};

use super::{
    super::{Api, Caller, api::end_stream, error::ApiError, head},
    sessions::{Ended, Secrets},
};

/// Header with the session's token, which only a page of this origin can read and send.
const CSRF_HEADER: HeaderName = HeaderName::from_static("x-csrf-token");

/// Name of the cookie. The port of the `Host` follows, because servers on other ports of a host share its cookies.
const COOKIE: &str = "mesa_admin";

/// Returns the name of the cookie for a request.
pub(super) fn cookie_name(headers: &HeaderMap) -> String {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    match host.rsplit_once(':') {
        Some((_, port)) if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) => {
            format!("{COOKIE}_{port}")
        }
        _ => COOKIE.to_owned(),
    }
}

/// Finds the session of a request's cookie.
pub(super) fn session(api: &Api, headers: &HeaderMap) -> Option<(Secrets, Ended)> {
    let name = cookie_name(headers);
    let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut values = cookies.flat_map(|value| value.split(';')).filter_map(|cookie| cookie.trim().split_once('='));
    let (_, token) = values.find(|(key, _)| *key == name)?;
    api.admin.find(token, Instant::now())
}

/// Finds the session of a request, and checks the token in its header.
pub(super) fn check_session(api: &Api, headers: &HeaderMap) -> Result<(Secrets, Ended), ApiError> {
    let (secrets, ended) = session(api, headers).ok_or(ApiError::NoSession)?;
    let mut tokens = headers.get_all(CSRF_HEADER).iter();
    match (tokens.next(), tokens.next()) {
        (Some(token), None) if secrets.check_csrf(token.as_bytes()) => Ok((secrets, ended)),
        _ => Err(ApiError::CsrfToken),
    }
}

/// Rejects a request without a session. A stream ends with its session.
pub(super) async fn require_session(State(api): State<Arc<Api>>, request: Request, next: Next) -> Response {
    let ended = match check_session(&api, request.headers()) {
        Ok((_, ended)) => ended,
        Err(error) => return error.into_response(),
    };
    end_stream(next.run(request).await, ended.wait())
}

/// Rejects requests of other machines while the page is open without a password.
pub(super) async fn require_this_machine(State(api): State<Arc<Api>>, request: Request, next: Next) -> Response {
    if api.admin.is_open() {
        let address = request.extensions().get::<Caller>().and_then(|caller| caller.address);
        let is_local = address.is_some_and(|address| address.to_canonical().is_loopback());
        if !is_local || !head::is_of_this_machine(request.headers()) {
            let why = "without admin.password the admin page is open only to this machine, at http://localhost:PORT/admin and not \
                       through a proxy; set admin.password to use it from elsewhere";
            return ApiError::ForeignPage(why).into_response();
        }
    }
    next.run(request).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cookie_of_each_port_has_its_own_name() {
        let name = |host: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, host.parse().unwrap());
            cookie_name(&headers)
        };
        assert_eq!(name("localhost:4000"), "mesa_admin_4000");
        assert_eq!(name("[::1]:4001"), "mesa_admin_4001");
        assert_eq!((name("example.org").as_str(), name("[::1]").as_str()), (COOKIE, COOKIE));
        assert_eq!(cookie_name(&HeaderMap::new()), COOKIE);
    }
}
