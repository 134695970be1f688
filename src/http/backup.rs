//! Streams a backup of the whole store, in the format of `mesa restore`.

use axum::{
    body::Body,
    extract::State as FromState,
    http::header,
    response::{IntoResponse, Response},
};
use futures_util::stream;

use super::{State, error::ApiError};

/// Serves `GET /v1/backup`.
pub(super) async fn backup(FromState(api): State) -> Result<Response, ApiError> {
    if api.hub.has_remote_logs() {
        return Err(ApiError::BackupElsewhere);
    }
    let chunks = api.hub.backup().ok_or(ApiError::BackupRunning("a backup is under way; wait until it is done"))?;
    // An error closes the connection before the last chunk, so that the client detects an incomplete file.
    let chunks = stream::unfold(chunks, |mut chunks| async { Some((chunks.next().await?, chunks)) });
    let headers = [(header::CONTENT_TYPE, "application/octet-stream"), (header::CACHE_CONTROL, "no-store")];
    Ok((headers, Body::from_stream(chunks)).into_response())
}
