//! Upgrades an HTTP request to a WebSocket.

use std::{net::SocketAddr, sync::Arc};

use axum::body::Body;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Version, header};
use hyper::{Request, upgrade::OnUpgrade};
use hyper_util::rt::TokioIo;
use tracing::field::display;

use super::{
    connection::Connection,
    connection_limit::Permit,
    context::ServerContext,
    http_io::HttpIo,
    peer::HandshakeInfo,
    socket::{self, Socket, Transport},
};
use crate::{
    health::{LogLimit, info_seldom},
    http::{
        error_response,
        head::{self, HeadError},
    },
    logging::excerpt,
};

/// Responds to an upgrade request for the WebSocket path, and starts the connection's task after the response.
pub(super) fn answer<B>(
    context: &Arc<ServerContext>,
    request: Request<B>,
    from: Option<SocketAddr>,
    permit: Permit,
) -> Response<Body> {
    if context.hub.is_draining() {
        context.metrics.rejected_connections.inc();
        tracing::debug!(peer = from.map(display), "WebSocket refused: the server is draining");
        return error_response::stopping("the server is draining; connect to another one, or try again later");
    }
    let live = context.live.load();
    let checked = head::check(&request, live.local_only)
        .map_err(HeadError::status_and_message)
        .and_then(|()| check_upgrade(request.method(), request.version(), request.headers(), live.origins.as_deref()));
    drop(live);
    let admitted = checked.and_then(|key| match context.sockets.acquire(None) {
        Ok(socket_permit) => Ok((key, socket_permit)),
        Err(_) => Err((StatusCode::SERVICE_UNAVAILABLE, "the limit of WebSockets is reached; try again later")),
    });
    match admitted {
        Ok((key, socket_permit)) => {
            let accept = socket::accept_key(&key);
            let subprotocol = subprotocol(request.headers());
            let handshake = context.runner.is_some().then(|| HandshakeInfo::new(from, &request));
            tokio::spawn(serve_upgraded(
                context.clone(),
                hyper::upgrade::on(request),
                from,
                handshake,
                (permit, socket_permit),
            ));
            let response = Response::builder()
                .status(StatusCode::SWITCHING_PROTOCOLS)
                .header(header::UPGRADE, "websocket")
                .header(header::CONNECTION, "Upgrade")
                .header(header::SEC_WEBSOCKET_ACCEPT, accept)
                .body(Body::empty());
            // All parts are constants or base64, which are always legal.
            let mut response = response.expect("a legal response");
            if let Some(subprotocol) = subprotocol {
                response.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, subprotocol);
            }
            response
        }
        Err((status, reason)) => {
            context.metrics.rejected_connections.inc();
            log_refusal(from, status, reason, request.headers());
            let header = match status {
                StatusCode::UPGRADE_REQUIRED => (header::SEC_WEBSOCKET_VERSION, "13"),
                StatusCode::METHOD_NOT_ALLOWED => (header::ALLOW, "GET"),
                StatusCode::SERVICE_UNAVAILABLE => (header::RETRY_AFTER, "5"),
                _ => return error_response::response(status, reason),
            };
            error_response::with_header(status, reason, header)
        }
    }
}

/// Limits the log lines about pages that may not connect: any page in any browser can cause one.
static FOREIGN_ORIGIN: LogLimit = LogLimit::new();

/// Logs a refused WebSocket. An operator who configures `origins` has to see a page that is missing there.
fn log_refusal(from: Option<SocketAddr>, status: StatusCode, reason: &str, headers: &HeaderMap) {
    let (peer, status) = (from.map(display), status.as_u16());
    match headers.get(header::ORIGIN) {
        Some(origin) if status == StatusCode::FORBIDDEN => {
            let origin = excerpt(String::from_utf8_lossy(origin.as_bytes()));
            info_seldom!(FOREIGN_ORIGIN, peer, origin, status, reason, "WebSocket refused");
        }
        _ => tracing::debug!(peer, status, reason, "WebSocket refused"),
    }
}

/// Reports whether a request is an upgrade to a WebSocket.
pub(super) fn is_upgrade_request(headers: &HeaderMap) -> bool {
    has_token(headers, header::UPGRADE, "websocket")
}

/// Validates an upgrade request and returns its key, or the status and message of the error.
fn check_upgrade(
    method: &Method,
    version: Version,
    headers: &HeaderMap,
    origins: Option<&[String]>,
) -> Result<String, (StatusCode, &'static str)> {
    if method != Method::GET {
        return Err((StatusCode::METHOD_NOT_ALLOWED, "a WebSocket begins with GET"));
    }
    if version < Version::HTTP_11 {
        return Err((StatusCode::BAD_REQUEST, "a WebSocket begins with HTTP/1.1"));
    }
    if !has_token(headers, header::CONNECTION, "upgrade") {
        return Err((StatusCode::BAD_REQUEST, "the Connection header must contain Upgrade"));
    }
    let mut versions = headers.get_all(header::SEC_WEBSOCKET_VERSION).iter();
    let version = versions.next();
    if versions.next().is_some() {
        return Err((StatusCode::BAD_REQUEST, "one Sec-WebSocket-Version is needed"));
    }
    if version.is_none_or(|version| version != "13") {
        return Err((StatusCode::UPGRADE_REQUIRED, "Sec-WebSocket-Version must be 13"));
    }
    if let (Some(origins), Some(origin)) = (origins, headers.get(header::ORIGIN)) {
        // An exact comparison, because a similar origin is another site. Only browsers send an Origin.
        if !origins.iter().any(|allowed| allowed.as_bytes() == origin.as_bytes()) {
            return Err((StatusCode::FORBIDDEN, "this origin may not connect; see `origins`"));
        }
    }
    let mut keys = headers.get_all(header::SEC_WEBSOCKET_KEY).iter();
    match (keys.next().and_then(|key| key.to_str().ok()), keys.next()) {
        (Some(key), None) if is_key(key) => Ok(key.to_owned()),
        _ => Err((StatusCode::BAD_REQUEST, "one Sec-WebSocket-Key is needed: 16 bytes in base64")),
    }
}

/// Selects the subprotocol: the first that the client offers, as the original does.
///
/// A client that offers subprotocols closes the connection if the server selects none.
fn subprotocol(headers: &HeaderMap) -> Option<HeaderValue> {
    let offers = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter();
    let mut offers = offers.filter_map(|offers| offers.to_str().ok()).flat_map(|offers| offers.split(','));
    let first = offers.find_map(|offer| Some(offer.trim()).filter(|offer| !offer.is_empty()))?;
    // A subprotocol is a token of HTTP (RFC 6455 §4.1), like a method.
    Method::from_bytes(first.as_bytes()).ok()?;
    HeaderValue::from_str(first).ok()
}

/// Reports whether a text is 16 bytes in base64.
fn is_key(text: &str) -> bool {
    let is_legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
    text.len() == 24 && text.strip_suffix("==").is_some_and(|digits| digits.bytes().all(is_legal))
}

fn has_token(headers: &HeaderMap, name: header::HeaderName, token: &str) -> bool {
    let values = headers.get_all(name);
    values
        .iter()
        .filter_map(|value| value.to_str().ok())
        .any(|value| value.split(',').any(|part| part.trim().eq_ignore_ascii_case(token)))
}

/// Waits until the response is written, then serves the socket as a WebSocket.
async fn serve_upgraded(
    context: Arc<ServerContext>,
    upgrade: OnUpgrade,
    from: Option<SocketAddr>,
    handshake: Option<HandshakeInfo>,
    permits: (Permit, Permit),
) {
    let Ok(upgraded) = upgrade.await else { return };
    // From the server's listener it is a TCP socket. In another program's router it may be any stream.
    let (transport, early) = match upgraded.downcast::<TokioIo<HttpIo>>() {
        // Copied, because the returned buffer would retain hyper's 8 KiB read buffer as long as the connection lives.
        Ok(parts) => (Transport::Accepted(parts.io.into_inner().into_stream()), parts.read_buf.to_vec()),
        Err(upgraded) => (Transport::Embedded(Box::new(TokioIo::new(upgraded))), Vec::new()),
    };
    let frame_bytes = context.live.load().limits.frame_bytes;
    let socket = Socket::upgraded(transport, early, frame_bytes).await;
    // A new task with the size of the connection: this one has the size of the upgrade.
    tokio::spawn(Connection::serve(context, socket, from, handshake, permits));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(changes: &[(&'static str, Option<&str>)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let good = [
            ("upgrade", Some("websocket")),
            ("connection", Some("keep-alive, Upgrade")),
            ("sec-websocket-version", Some("13")),
            ("sec-websocket-key", Some("dGhlIHNhbXBsZSBub25jZQ==")),
        ];
        for (name, value) in good.iter().chain(changes) {
            headers.remove(*name);
            if let Some(value) = value {
                headers.insert(*name, HeaderValue::from_str(value).unwrap());
            }
        }
        headers
    }

    fn status(changes: &[(&'static str, Option<&str>)], origins: Option<&[String]>) -> Option<u16> {
        check_upgrade(&Method::GET, Version::HTTP_11, &headers(changes), origins)
            .err()
            .map(|(status, _)| status.as_u16())
    }

    #[test]
    fn invalid_upgrade_request_is_rejected() {
        assert_eq!(status(&[], None), None);
        assert_eq!(status(&[("connection", Some("close"))], None), Some(400));
        assert_eq!(status(&[("sec-websocket-version", Some("8"))], None), Some(426));
        assert_eq!(status(&[("sec-websocket-version", None)], None), Some(426));
        assert_eq!(status(&[("sec-websocket-key", None)], None), Some(400));
        for key in [
            "short",
            "AAAAAAAAAAAAAAAAAAAAAAAA",
            "!!!!!!!!!!!!!!!!!!!!!!==",
            "AAAAAAAAAAAAAAAAAAAAA===",
            "dGhlIHNhbXBsZSBub25jZQ= ",
        ] {
            assert_eq!(status(&[("sec-websocket-key", Some(key))], None), Some(400), "{key}");
        }
        let mut twice = headers(&[]);
        twice.append("sec-websocket-version", HeaderValue::from_static("13"));
        assert_eq!(check_upgrade(&Method::GET, Version::HTTP_11, &twice, None).unwrap_err().0, StatusCode::BAD_REQUEST);
        assert_eq!(
            check_upgrade(&Method::GET, Version::HTTP_10, &headers(&[]), None).unwrap_err().0,
            StatusCode::BAD_REQUEST
        );
        assert_eq!(
            check_upgrade(&Method::POST, Version::HTTP_11, &headers(&[]), None).unwrap_err().0,
            StatusCode::METHOD_NOT_ALLOWED
        );
        assert!(!is_upgrade_request(&headers(&[("upgrade", Some("h2c"))])));
    }

    #[test]
    fn origin_is_compared_exactly() {
        let origins = ["https://good.com".to_owned()];
        let with = |origin| status(&[("origin", Some(origin))], Some(&origins));
        assert_eq!(with("https://good.com"), None);
        assert_eq!(status(&[], Some(&origins)), None, "a client that is not a browser sends no Origin");
        for evil in ["https://good.com.evil", "http://good.com", "https://good.com:8443", "null", "https://GOOD.com"] {
            assert_eq!(with(evil), Some(403), "{evil}");
        }
    }
}
