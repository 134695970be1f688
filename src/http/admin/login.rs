//! Serves `/admin/session`: the state of the session, login and logout.

use std::{net::Ipv6Addr, time::Instant};

use axum::{
    body::Body,
    extract::{Request, State as FromState},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::Response,
};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use serde::Deserialize;
use serde_json::json;

use super::{
    super::{
        Api, Caller,
        api::{State, json},
        error::ApiError,
    },
    guard::{check_session, cookie_name, session},
    sessions::SESSION_TTL,
};
use crate::logging::json_error;

/// Bytes of the body of a login. The longest password fits, also with an escape for each character.
const BODY_BYTES_MAX: usize = 8 << 10;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Login {
    password: String,
}

/// Serves `GET /admin/session`: whether a password is needed, and the token of the session, if there is one.
pub(super) async fn show(FromState(api): State, headers: HeaderMap) -> Response {
    let csrf = session(&api, &headers).map(|(secrets, _)| secrets.csrf);
    let body = json!({"open": api.admin.is_open(), "csrf": csrf, "version": env!("CARGO_PKG_VERSION")});
    json(StatusCode::OK, body.to_string())
}

/// Serves `POST /admin/session`: begins a session, if the password is right.
pub(super) async fn open(FromState(api): State, request: Request) -> Result<Response, ApiError> {
    let (head, body) = request.into_parts();
    let caller = head.extensions.get::<Caller>().cloned().unwrap_or_default();
    // A page of another origin can send this type only after a preflight, which fails.
    let is_json = |kind: &HeaderValue| kind.as_bytes().eq_ignore_ascii_case(b"application/json");
    if !head.headers.get(header::CONTENT_TYPE).is_some_and(is_json) {
        return Err(ApiError::UnsupportedMediaType);
    }
    let login = read(body).await?;
    if !api.admin.is_open() {
        check_password(&api, &caller, &login.password).await?;
    }
    let secrets = api.admin.begin(Instant::now()).map_err(|error| ApiError::NoRandomBytes(error.to_string()))?;
    let mut response = json(StatusCode::OK, json!({"csrf": secrets.csrf}).to_string());
    set_cookie(&mut response, &cookie_name(&head.headers), &secrets.token, SESSION_TTL.as_secs(), caller.is_secure());
    Ok(response)
}

/// Serves `DELETE /admin/session`: ends the session.
pub(super) async fn close(FromState(api): State, request: Request) -> Result<Response, ApiError> {
    let (secrets, _) = check_session(&api, request.headers())?;
    api.admin.end(&secrets.token);
    let is_secure = request.extensions().get::<Caller>().is_some_and(Caller::is_secure);
    let mut response = json(StatusCode::OK, json!({"ended": true}).to_string());
    set_cookie(&mut response, &cookie_name(request.headers()), "", 0, is_secure);
    Ok(response)
}

async fn read(body: Body) -> Result<Login, ApiError> {
    let body = Limited::new(body, BODY_BYTES_MAX).collect().await.map_err(|error| {
        if error.is::<LengthLimitError>() {
            ApiError::BadBody(format!("a login has at most {BODY_BYTES_MAX} bytes"))
        } else {
            ApiError::BadBody("it ended before its announced length. Retry".into())
        }
    })?;
    serde_json::from_slice(&body.to_bytes()).map_err(|error| ApiError::BadJson(json_error(&error)))
}

/// Compares the password. A wrong one is answered after a delay, and counts against the address.
async fn check_password(api: &Api, caller: &Caller, password: &str) -> Result<(), ApiError> {
    // In the router of another program the address may be unknown. All such clients count as one: a password is easier to
    // guess than an API key.
    let address = caller.address.or(Some(Ipv6Addr::UNSPECIFIED.into()));
    if !caller.proof.is_given() {
        api.guess_limiter.admit(address).map_err(ApiError::TooManyWrongPasswords)?;
    }
    if api.admin.check(password) {
        api.guess_limiter.record_valid(address, &caller.proof);
        return Ok(());
    }
    api.metrics.wrong_secrets.inc();
    tokio::time::sleep(api.guess_limiter.record_wrong(address, password.as_bytes())).await;
    Err(ApiError::WrongPassword)
}

fn set_cookie(response: &mut Response, name: &str, token: &str, max_age: u64, is_secure: bool) {
    let secure = if is_secure { "; Secure" } else { "" };
    let cookie = format!("{name}={token}; Path=/admin; Max-Age={max_age}; HttpOnly; SameSite=Strict{secure}");
    let cookie = HeaderValue::try_from(cookie).expect("letters, digits and punctuation");
    response.headers_mut().insert(header::SET_COOKIE, cookie);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cookie_over_https_is_never_sent_in_plain_text() {
        let cookie = |is_secure| {
            let mut response = Response::default();
            set_cookie(&mut response, "mesa_admin", "token", 60, is_secure);
            response.headers()[header::SET_COOKIE].to_str().unwrap().to_owned()
        };
        let plain = "mesa_admin=token; Path=/admin; Max-Age=60; HttpOnly; SameSite=Strict";
        assert_eq!((cookie(false), cookie(true)), (plain.to_owned(), format!("{plain}; Secure")));
    }
}
