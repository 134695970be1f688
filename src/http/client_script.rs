//! Serves the JavaScript client to web pages. Needs no key.

use std::sync::LazyLock;

use axum::{
    http::{HeaderMap, HeaderValue, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};

/// Path of the ES module.
pub(super) const SCRIPT_PATH: &str = "/client.js";

/// Path of its types for TypeScript.
pub(super) const TYPES_PATH: &str = "/client.d.ts";

/// A response with this version in its query never changes, so browsers keep it for a year.
const IMMUTABLE: &str = "public, max-age=31536000, immutable";

static SCRIPT: LazyLock<File> =
    LazyLock::new(|| File::new("text/javascript; charset=utf-8", include_str!("../client/js/mesa.min.js")));

static TYPES: LazyLock<File> =
    LazyLock::new(|| File::new("application/typescript; charset=utf-8", include_str!("../client/js/mesa.d.ts")));

struct File {
    content_type: &'static str,
    text: &'static str,
    etag: HeaderValue,
}

impl File {
    fn new(content_type: &'static str, text: &'static str) -> Self {
        let etag = format!("\"{}-{:08x}\"", env!("CARGO_PKG_VERSION"), crc32fast::hash(text.as_bytes()));
        Self { content_type, text, etag: HeaderValue::try_from(etag).expect("a version and hexadecimal digits") }
    }

    /// Returns whether a copy of the browser is this file.
    fn is_cached(&self, headers: &HeaderMap) -> bool {
        let sent =
            headers.get_all(header::IF_NONE_MATCH).iter().flat_map(|value| value.as_bytes().split(|b| *b == b','));
        let is_this = |etag: &[u8]| etag == b"*" || etag.strip_prefix(b"W/").unwrap_or(etag) == self.etag.as_bytes();
        sent.map(<[u8]>::trim_ascii).any(is_this)
    }

    fn respond(&self, uri: &Uri, headers: &HeaderMap) -> Response {
        let has_version = |query: &str| query.split('&').any(|part| part == concat!("v=", env!("CARGO_PKG_VERSION")));
        let cache = if uri.query().is_some_and(has_version) { IMMUTABLE } else { "no-cache" };
        let mut response = if self.is_cached(headers) {
            StatusCode::NOT_MODIFIED.into_response()
        } else {
            ([(header::CONTENT_TYPE, self.content_type)], self.text).into_response()
        };
        let headers = response.headers_mut();
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(cache));
        headers.insert(header::ETAG, self.etag.clone());
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        // Browsers load modules of another origin only with this header. The file is public.
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
        // Deno finds the types by this header.
        headers.insert("x-typescript-types", HeaderValue::from_static(TYPES_PATH));
        response
    }
}

/// Serves `GET /client.js`.
pub(super) async fn script(uri: Uri, headers: HeaderMap) -> Response {
    SCRIPT.respond(&uri, &headers)
}

/// Serves `GET /client.d.ts`.
pub(super) async fn types(uri: Uri, headers: HeaderMap) -> Response {
    TYPES.respond(&uri, &headers)
}
