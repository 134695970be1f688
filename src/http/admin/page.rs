//! Files of the admin page, and the headers that protect it.

use std::sync::LazyLock;

use axum::{
    extract::Path,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};

use super::super::{error::ApiError, static_file::StaticFile};

/// The page may load its own files and call its own server, and nothing else.
const CONTENT_SECURITY_POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; frame-ancestors 'none'; \
     base-uri 'none'; form-action 'self'",
);

/// Headers of every response under `/admin`.
const HEADERS: [(HeaderName, HeaderValue); 5] = [
    (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY),
    (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (HeaderName::from_static("cross-origin-opener-policy"), HeaderValue::from_static("same-origin")),
    (HeaderName::from_static("cross-origin-resource-policy"), HeaderValue::from_static("same-origin")),
];

const JAVASCRIPT: &str = "text/javascript; charset=utf-8";

static INDEX: LazyLock<StaticFile> =
    LazyLock::new(|| StaticFile::new("text/html; charset=utf-8", include_str!("page/index.html")));

static FILES: LazyLock<[(&str, StaticFile); 13]> = LazyLock::new(|| {
    let script = |name, text| (name, StaticFile::new(JAVASCRIPT, text));
    [
        ("admin.css", StaticFile::new("text/css; charset=utf-8", include_str!("page/admin.css"))),
        ("icon.svg", StaticFile::new("image/svg+xml", include_str!("page/icon.svg"))),
        script("admin.mjs", include_str!("page/admin.mjs")),
        script("api.mjs", include_str!("page/api.mjs")),
        script("dialogs.mjs", include_str!("page/dialogs.mjs")),
        script("dom.mjs", include_str!("page/dom.mjs")),
        script("events.mjs", include_str!("page/events.mjs")),
        script("format.mjs", include_str!("page/format.mjs")),
        script("overview.mjs", include_str!("page/overview.mjs")),
        script("plot.mjs", include_str!("page/plot.mjs")),
        script("poller.mjs", include_str!("page/poller.mjs")),
        script("user.mjs", include_str!("page/user.mjs")),
        script("users.mjs", include_str!("page/users.mjs")),
    ]
});

/// Serves `GET /admin`.
pub(super) async fn index(headers: HeaderMap) -> Response {
    INDEX.respond(&headers)
}

/// Serves `GET /admin/`: leads to the page, whose links are relative to `/admin`.
pub(super) async fn redirect() -> Response {
    (StatusCode::PERMANENT_REDIRECT, [(header::LOCATION, "../admin")]).into_response()
}

/// Serves `GET /admin/{file}`.
pub(super) async fn file(Path(name): Path<String>, headers: HeaderMap) -> Result<Response, ApiError> {
    let file = FILES.iter().find(|(known, _)| *known == name).ok_or(ApiError::NotFound)?;
    Ok(file.1.respond(&headers))
}

/// Adds the headers that protect the page.
pub(super) async fn protect(mut response: Response) -> Response {
    let headers = response.headers_mut();
    HEADERS.into_iter().for_each(|(name, value)| _ = headers.insert(name, value));
    response
}
