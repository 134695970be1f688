//! Checks the parameters of queries, and describes their errors.
//!
//! An unknown parameter is rejected, because ignoring it could do harm: `?after=3` on a path that clears a log.

use axum::{
    extract::{MatchedPath, Request, rejection::QueryRejection},
    http::Method,
    middleware::Next,
    response::{IntoResponse, Response},
};

use super::{api::ADMIN_PREFIX, error::ApiError, head};
use crate::logging::excerpt;

/// Lists every method of each route under `/v1`, with its parameters.
pub(super) const ROUTE_PARAMETERS: [(Method, &str, &[&str]); 13] = [
    (Method::POST, "/v1/dispatch", &[]),
    (Method::GET, "/v1/backup", &[]),
    (Method::GET, "/v1/drain", &[]),
    (Method::POST, "/v1/drain", &[]),
    (Method::DELETE, "/v1/drain", &[]),
    (Method::GET, "/v1/status", &[]),
    (Method::GET, "/v1/users/{id}", &[]),
    (Method::DELETE, "/v1/users/{id}", &[]),
    (Method::DELETE, "/v1/users/{id}/messages", &[]),
    (Method::GET, "/v1/events", &["all", "observe"]),
    (Method::GET, "/v1/users", &["online", "pending", "prefix", "cursor", "limit"]),
    (Method::GET, "/v1/users/{id}/messages", &["after", "limit"]),
    (Method::POST, "/v1/users/{id}/disconnect", &["reason"]),
];

/// Rejects a request whose query has a parameter that its route does not have.
pub(super) async fn reject_unknown(request: Request, next: Next) -> Response {
    let path = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str);
    // The admin page calls the same routes.
    let path = path.strip_prefix(ADMIN_PREFIX).unwrap_or(path);
    // HEAD has the parameters of GET.
    let method = if request.method() == Method::HEAD { &Method::GET } else { request.method() };
    let Some(known) = parameters_of(method, path) else {
        // The response is 405, whatever the query.
        return next.run(request).await;
    };
    match check(request.uri().query(), known) {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

/// Returns the parameters of a route; `None` if it does not support the method. A route that is not listed has none.
fn parameters_of(method: &Method, path: &str) -> Option<&'static [&'static str]> {
    let mut is_listed = false;
    for (known, route, names) in &ROUTE_PARAMETERS {
        if *route == path {
            is_listed = true;
            if known == method {
                return Some(names);
            }
        }
    }
    (!is_listed).then_some(&[])
}

/// Checks the parameter names of a query.
fn check(query: Option<&str>, known: &[&str]) -> Result<(), ApiError> {
    let Some(query) = query else { return Ok(()) };
    head::check_query(Some(query))?;
    let mut seen = Vec::new();
    for part in query.split('&').filter(|part| !part.is_empty()) {
        let name = part.split('=').next().unwrap_or_default().replace('+', " ");
        let name = head::percent_decode(&name).unwrap_or_default();
        let name = String::from_utf8_lossy(&name);
        let Some(name) = known.iter().find(|known| **known == name) else {
            return Err(ApiError::BadParameter(unknown_error(&name, known)));
        };
        if seen.contains(name) {
            return Err(ApiError::BadParameter(format!("the parameter `{name}` was sent twice; send it once")));
        }
        seen.push(name);
    }
    Ok(())
}

fn unknown_error(name: &str, known: &[&str]) -> String {
    let wrong = if name.is_empty() {
        "the query has a parameter without a name".to_owned()
    } else {
        format!("the parameter `{}` is unknown", excerpt(name))
    };
    let known: Vec<String> = known.iter().map(|name| format!("`{name}`")).collect();
    match known.as_slice() {
        [] => format!("{wrong}: omit it, this request takes no parameters"),
        known => format!("{wrong}: this request takes {}", known.join(", ")),
    }
}

/// Turns a failed decode of a query into an error that states what is valid.
pub(super) fn decode_error(rejection: &QueryRejection) -> ApiError {
    let text = rejection.body_text();
    ApiError::BadParameter(reword(text.strip_prefix("Failed to deserialize query string: ").unwrap_or(&text)))
}

/// Replaces serde's description of an error by one for people.
fn reword(text: &str) -> String {
    let Some((name, reason)) = text.split_once(": ") else { return text.to_owned() };
    match reason {
        "invalid digit found in string" | "cannot parse integer from empty string" => {
            format!("{name} must be a whole number, 0 or more")
        }
        "number too large to fit in target type" => format!("{name} is too large"),
        "provided string was not `true` or `false`" => format!("{name} must be true or false"),
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn query_with_unknown_or_repeated_name_is_rejected_with_known_names() {
        let known = &["after", "limit"];
        for good in
            [None, Some(""), Some("&"), Some("after=1&limit=2"), Some("limit=2&"), Some("l%69mit=1"), Some("after")]
        {
            assert!(check(good, known).is_ok(), "{good:?}");
        }
        for (bad, expected) in [
            ("zz=1", "`zz` is unknown: this request takes `after`, `limit`"),
            ("after=1&zz", "`zz` is unknown"),
            ("%7az=1", "`zz` is unknown"),
            ("After=1", "`After` is unknown"),
            ("=1", "a parameter without a name"),
            ("after=1&after=2", "`after` was sent twice"),
            ("%zz=1", "hexadecimal"),
            ("%ff=1", "UTF-8"),
        ] {
            let error = check(Some(bad), known).expect_err(bad).to_string();
            assert!(error.contains(expected), "{bad}: {error}");
        }
        let long = check(Some(&"x".repeat(10_000)), &[]).expect_err("unknown").to_string();
        assert!(long.len() < 300 && long.ends_with("this request takes no parameters"), "{long}");
    }
}
