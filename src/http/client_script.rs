//! Serves the JavaScript client to web pages. Needs no key.

use std::sync::LazyLock;

use axum::{
    http::{HeaderMap, HeaderValue, Uri, header},
    response::Response,
};

use super::static_file::StaticFile;

/// Path of the ES module.
pub(super) const SCRIPT_PATH: &str = "/client.js";

/// Path of its types for TypeScript.
pub(super) const TYPES_PATH: &str = "/client.d.ts";

/// A response with this version in its query never changes, so browsers keep it for a year.
const IMMUTABLE: &str = "public, max-age=31536000, immutable";

static SCRIPT: LazyLock<StaticFile> =
    LazyLock::new(|| StaticFile::new("text/javascript; charset=utf-8", include_str!("../client/js/mesa.min.js")));

static TYPES: LazyLock<StaticFile> =
    LazyLock::new(|| StaticFile::new("application/typescript; charset=utf-8", include_str!("../client/js/mesa.d.ts")));

/// Adds the headers of a public file, which any page and program may load.
fn respond(file: &StaticFile, uri: &Uri, headers: &HeaderMap) -> Response {
    let mut response = file.respond(headers);
    let headers = response.headers_mut();
    let has_version = |query: &str| query.split('&').any(|part| part == concat!("v=", env!("CARGO_PKG_VERSION")));
    if uri.query().is_some_and(has_version) {
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(IMMUTABLE));
    }
    // Browsers load modules of another origin only with this header. The file is public.
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    // Deno finds the types by this header.
    headers.insert("x-typescript-types", HeaderValue::from_static(TYPES_PATH));
    response
}

/// Serves `GET /client.js`.
pub(super) async fn script(uri: Uri, headers: HeaderMap) -> Response {
    respond(&SCRIPT, &uri, &headers)
}

/// Serves `GET /client.d.ts`.
pub(super) async fn types(uri: Uri, headers: HeaderMap) -> Response {
    respond(&TYPES, &uri, &headers)
}
