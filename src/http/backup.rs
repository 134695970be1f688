//! `GET /v1/backup`: the whole store, as a file that `mesa restore` takes.

use axum::{
    body::Body,
    extract::State as FromState,
    http::header,
    response::{IntoResponse, Response},
};
use futures_util::stream;

use super::{State, error::ApiError};

/// `GET /v1/backup`
pub(super) async fn backup(FromState(api): State) -> Result<Response, ApiError> {
    if api.hub.has_far_logs() {
        return Err(ApiError::BackupElsewhere);
    }
    let pieces = api.hub.backup().ok_or(ApiError::Busy("a backup is under way; wait until it is done"))?;
    // An error ends the connection before the last chunk, so that a client takes what it has for no whole file.
    let pieces = stream::unfold(pieces, |mut pieces| async { Some((pieces.next().await?, pieces)) });
    let headers = [(header::CONTENT_TYPE, "application/octet-stream"), (header::CACHE_CONTROL, "no-store")];
    Ok((headers, Body::from_stream(pieces)).into_response())
}
