//! Adds the body of an error response to responses that hyper writes by itself.
//!
//! hyper answers a head that it cannot parse with a status and no body, and calls no service. Such a response is
//! recognized in the output, at the end of a write: hyper closes the connection after it.

use http::StatusCode;

use crate::http::error_response;

/// Maximum bytes of the head of a request; a longer one gets 431.
pub(super) const HEAD_BYTES_MAX: usize = 16 << 10;

/// Maximum bytes of a response without a body: a status line and three short headers, with some margin.
const BARE_BYTES_MAX: usize = 512;

const HEAD_END: &[u8] = b"\r\n\r\n";
const NO_BODY: &str = "content-length: 0\r\n";

/// Returns the offset of such a response in the output, if the output ends with one.
pub(super) fn find(bytes: &[u8]) -> Option<usize> {
    if !bytes.ends_with(HEAD_END) {
        return None;
    }
    let from = bytes.len().saturating_sub(BARE_BYTES_MAX);
    let begins = |at: &usize| bytes[*at..].starts_with(b"HTTP/1.");
    let at = (from..bytes.len() - HEAD_END.len()).rev().find(begins)?;
    status(&bytes[at..]).map(|_| at)
}

/// Returns the response with a body.
pub(super) fn with_body(bytes: &[u8]) -> Option<Vec<u8>> {
    let status = status(bytes)?;
    let why = match status {
        StatusCode::BAD_REQUEST => {
            "not an HTTP/1.1 request: the request line, a header, the length or the coding is malformed".to_owned()
        }
        _ => format!("the head of a request may have at most {HEAD_BYTES_MAX} bytes and 100 headers"),
    };
    let body = error_response::body(status, &why);
    let headers = format!("content-type: application/json\r\ncontent-length: {}\r\n", body.len());
    let head = std::str::from_utf8(bytes).ok()?.replacen(NO_BODY, &headers, 1);
    Some([head.as_bytes(), &body].concat())
}

/// Returns the status of a head without a body with which hyper rejects a request.
fn status(bytes: &[u8]) -> Option<StatusCode> {
    let head = std::str::from_utf8(bytes).ok()?;
    // Complete lines, so that no other header matches.
    let (line, headers) = head.split_once("\r\n")?;
    let status = line.split(' ').nth(1)?.parse().ok()?;
    let is_bare = headers.starts_with(NO_BODY) || headers.contains(&format!("\r\n{NO_BODY}"));
    (is_bare && matches!(status, 400 | 414 | 431)).then(|| StatusCode::from_u16(status).ok())?
}

#[cfg(test)]
mod tests;
