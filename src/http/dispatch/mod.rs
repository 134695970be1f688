//! Serves `POST /v1/dispatch`: one dispatch, or an NDJSON stream of them.
//!
//! - `request`: parses a dispatch
//! - `response`: encodes its result
//! - `ndjson`, `batch`, `stream`: the NDJSON form, with one dispatch and one result per line

mod batch;
mod ndjson;
mod request;
mod response;
mod stream;
#[cfg(test)]
mod tests;

use std::{
    error::Error,
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    body::Body,
    http::{HeaderMap, Request, StatusCode, header},
    response::Response,
};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use tokio::sync::watch;

use super::{Api, Caller, error::ApiError, request_log::BodyTime};
use crate::logging::{excerpt, network_error, sentence};
pub(super) use request::DispatchBody;
use request::DispatchRequest;
pub(super) use response::DispatchResult;

/// Path of the endpoint.
pub(super) const PATH: &str = "/v1/dispatch";

/// Time for a body to arrive beyond which a slow request is partly the backend's.
const SLOW_BODY: Duration = Duration::from_secs(1);

pub(super) async fn dispatch(
    api: &Arc<Api>,
    stopping: &watch::Sender<bool>,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    check_encoding(request.headers())?;
    match body_form(request.headers())? {
        Form::Json => {
            let caller = request.extensions().get::<Caller>().cloned().unwrap_or_default();
            dispatch_one(api, &caller, request.into_body()).await
        }
        Form::Ndjson => stream::open(api.clone(), stopping.subscribe(), request).await,
    }
}

async fn dispatch_one(api: &Api, caller: &Caller, body: Body) -> Result<Response, ApiError> {
    let bytes_max = api.live.load().limits.request_bytes;
    let began = Instant::now();
    // The timeout sets no timer for a body that has arrived already.
    let body = tokio::time::timeout(super::BODY_TIMEOUT, Limited::new(body, bytes_max).collect()).await;
    let body = body.map_err(|_| ApiError::TooSlow)?.map_err(|error| {
        if error.is::<LengthLimitError>() {
            ApiError::TooLarge(bytes_max)
        } else {
            ApiError::BadBody(body_error(&*error))
        }
    })?;
    let body_time = began.elapsed();
    let recipients_max = api.live.load().limits.recipients;
    let outcome = match request::read(&body.to_bytes(), recipients_max)?.checked(&api.hub)? {
        DispatchRequest::Dispatch(dispatch) => api.hub.dispatch(dispatch).await?,
        DispatchRequest::Disconnect(disconnect) => disconnect.run(&api.hub).await,
    };
    let mut text = Vec::with_capacity(response::USUAL_BYTES);
    response::log(caller, &outcome);
    response::write(&outcome, &mut text);
    let mut response = super::json(StatusCode::OK, text);
    if body_time >= SLOW_BODY {
        response.extensions_mut().insert(BodyTime(body_time));
    }
    Ok(response)
}

/// Describes in terms of HTTP why a body could not be read.
fn body_error(error: &(dyn Error + 'static)) -> String {
    tracing::debug!(error = %sentence(network_error(error)), "request body could not be read");
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    match cause.downcast_ref::<io::Error>().map(io::Error::kind) {
        Some(io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData) => {
            "a chunk (Transfer-Encoding: chunked) does not begin with its length in hexadecimal and a line end, or does not \
             end with one. Check the encoding"
        }
        Some(io::ErrorKind::TimedOut) => "the connection timed out. Retry",
        _ => "it ended before its announced length. Retry",
    }
    .into()
}

/// Rejects a compressed body, which would otherwise be parsed as plain text.
fn check_encoding(headers: &HeaderMap) -> Result<(), ApiError> {
    let codings =
        headers.get_all(header::CONTENT_ENCODING).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    match codings.map(<[u8]>::trim_ascii).find(|coding| !coding.is_empty() && !coding.eq_ignore_ascii_case(b"identity"))
    {
        Some(coding) => Err(ApiError::UnsupportedEncoding(excerpt(String::from_utf8_lossy(coding)))),
        None => Ok(()),
    }
}

/// Distinguishes the two forms of a body.
#[derive(Debug, PartialEq, Eq)]
enum Form {
    Json,
    Ndjson,
}

/// Returns the form for the Content-Type, without its parameters. A body without a type counts as JSON.
fn body_form(headers: &HeaderMap) -> Result<Form, ApiError> {
    let Some(value) = headers.get(header::CONTENT_TYPE) else { return Ok(Form::Json) };
    let kind = value.to_str().unwrap_or_default().split(';').next().unwrap_or_default().trim();
    let is = |known: &str| kind.eq_ignore_ascii_case(known);
    match kind {
        // curl sends the second type by default.
        _ if is("application/json") || is("application/x-www-form-urlencoded") => Ok(Form::Json),
        _ if is("application/x-ndjson") => Ok(Form::Ndjson),
        _ => Err(ApiError::UnsupportedMediaType),
    }
}
