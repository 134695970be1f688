//! `POST /v1/dispatch`: messages for some users, or for everyone.
//!
//! - `request`: from a JSON text to what is asked for
//! - `response`: what became of it, as JSON text
//! - `ndjson`, `batch`, `stream`: the same, many times over: a dispatch a line, a result a line

mod batch;
mod ndjson;
mod request;
mod response;
mod stream;
#[cfg(test)]
mod tests;

use std::{error::Error, io, sync::Arc};

use axum::{
    BoxError,
    body::{Bytes, HttpBody},
    http::{HeaderMap, Request, StatusCode, header},
    response::Response,
};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use tokio::sync::watch;

use super::{Api, error::ApiError};
use crate::logging::{excerpt, network_error, sentence};
use request::Asked;

/// Where dispatches are posted.
pub(super) const PATH: &str = "/v1/dispatch";

pub(super) async fn dispatch<B>(
    api: &Arc<Api>,
    stopping: &watch::Sender<bool>,
    request: Request<B>,
) -> Result<Response, ApiError>
where
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    check_encoding(request.headers())?;
    match form(request.headers())? {
        Form::One => one(api, request.into_body()).await,
        Form::Lines => stream::open(api.clone(), stopping.subscribe(), request).await,
    }
}

async fn one<B>(api: &Api, body: B) -> Result<Response, ApiError>
where
    B: HttpBody<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    let bytes_max = api.limits.request_bytes;
    // A body that is here already sets no timer.
    let body = tokio::time::timeout(super::BODY_TIME_MAX, Limited::new(body, bytes_max).collect()).await;
    let body = body.map_err(|_| ApiError::TooSlow)?.map_err(|error| {
        if error.is::<LengthLimitError>() { ApiError::TooLarge(bytes_max) } else { ApiError::Body(unread(&*error)) }
    })?;
    let outcome = match request::read(&body.to_bytes(), api.limits.recipients)?.checked(&api.hub)? {
        Asked::Dispatch(dispatch) => api.hub.dispatch(dispatch).await?,
        Asked::Disconnect(disconnect) => disconnect.run(&api.hub).await,
    };
    let mut text = Vec::with_capacity(response::BYTES_USUAL);
    response::write(&outcome, &mut text);
    Ok(super::json(StatusCode::OK, text))
}

/// Why a body could not be read, in words of HTTP.
fn unread(error: &(dyn Error + 'static)) -> String {
    tracing::debug!(error = %sentence(network_error(error)), "a body could not be read");
    let mut cause = error;
    while let Some(below) = cause.source() {
        cause = below;
    }
    match cause.downcast_ref::<io::Error>().map(io::Error::kind) {
        Some(io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData) => {
            "a chunk of it (Transfer-Encoding: chunked) does not begin with its length in hexadecimal and a line end, or does not \
             end with one"
        }
        Some(io::ErrorKind::TimedOut) => "it stopped coming. Send it again",
        _ => "it ended before the length that was announced. Send it again",
    }
    .into()
}

/// Refuses a body that is compressed: it would be read as if it were not.
fn check_encoding(headers: &HeaderMap) -> Result<(), ApiError> {
    let codings =
        headers.get_all(header::CONTENT_ENCODING).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    match codings.map(<[u8]>::trim_ascii).find(|coding| !coding.is_empty() && !coding.eq_ignore_ascii_case(b"identity"))
    {
        Some(coding) => Err(ApiError::Encoding(excerpt(String::from_utf8_lossy(coding)))),
        None => Ok(()),
    }
}

/// How dispatches are sent.
#[derive(Debug, PartialEq, Eq)]
enum Form {
    One,
    Lines,
}

/// What the type of a body says, whatever its parameters; a body without a type is taken for JSON.
fn form(headers: &HeaderMap) -> Result<Form, ApiError> {
    let Some(value) = headers.get(header::CONTENT_TYPE) else { return Ok(Form::One) };
    let kind = value.to_str().unwrap_or_default().split(';').next().unwrap_or_default().trim();
    let is = |known: &str| kind.eq_ignore_ascii_case(known);
    match kind {
        // The second is what curl says when it is told nothing.
        _ if is("application/json") || is("application/x-www-form-urlencoded") => Ok(Form::One),
        _ if is("application/x-ndjson") => Ok(Form::Lines),
        _ => Err(ApiError::MediaType),
    }
}
