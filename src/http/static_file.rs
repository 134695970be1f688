//! Serves files that are part of the program, with a tag by which browsers keep them.

use axum::{
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};

/// A file of the program.
pub(super) struct StaticFile {
    content_type: &'static str,
    text: &'static str,
    etag: HeaderValue,
}

impl StaticFile {
    pub(super) fn new(content_type: &'static str, text: &'static str) -> Self {
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

    /// Responds with the file, or with 304 if the browser has it. Browsers ask each time.
    pub(super) fn respond(&self, headers: &HeaderMap) -> Response {
        let mut response = if self.is_cached(headers) {
            StatusCode::NOT_MODIFIED.into_response()
        } else {
            ([(header::CONTENT_TYPE, self.content_type)], self.text).into_response()
        };
        let headers = response.headers_mut();
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        headers.insert(header::ETAG, self.etag.clone());
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        response
    }
}
