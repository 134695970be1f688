//! Sends many dispatches over one NDJSON stream: one line for each, with the results in the same order.

use std::{collections::VecDeque, convert::Infallible};

use bytes::Bytes;
use http_body_util::channel::{Channel, Sender};
use reqwest::{Body, Method, Response};

use super::{
    Dispatch, DispatchError, DispatchResult, Dispatcher, RESPONSE_BYTES_MAX, Rejection, STREAM_TIMEOUT, TIMEOUT,
    response,
};
use crate::logging::json_error;

/// Chunks that are queued for the connection.
const CHUNKS_MAX: usize = 2;

/// Bytes of lines that are sent as one chunk, approximately.
const CHUNK_BYTES: usize = 32 << 10;

/// Maximum number of lines for which memory is reserved in advance.
const LINES_EXPECTED_MAX: usize = 1 << 16;

impl Dispatcher {
    /// Sends dispatches in order, and returns their results in the same order.
    ///
    /// With retries ([`Dispatcher::retrying`]), all dispatches are in memory. When a stream breaks, the dispatcher
    /// resends those without a result over the next stream. A stream that returned results resets the delay between
    /// attempts, but not the time limit.
    ///
    /// # Errors
    /// Fails if the server cannot be reached, ends the stream early, or sends nothing for 30 s. The server may have accepted
    /// dispatches without a result. With ids they can be retried.
    pub async fn dispatch_all(
        &self,
        dispatches: impl IntoIterator<Item = Dispatch, IntoIter: Send> + Send,
    ) -> Result<Vec<Result<DispatchResult, Rejection>>, DispatchError> {
        let (mut results, dispatches) = (Vec::new(), dispatches.into_iter());
        if self.retry.is_none() {
            self.dispatch_each(dispatches.map(|dispatch| dispatch.body()), &mut results).await?;
            return Ok(results);
        }
        let mut lines = Vec::with_capacity(dispatches.size_hint().0.min(LINES_EXPECTED_MAX));
        for mut dispatch in dispatches {
            if dispatch.id.is_none() {
                dispatch.id = self.generated_id(&dispatch.message)?;
            }
            lines.push(dispatch.body()?);
        }
        let mut attempts = self.attempts();
        loop {
            let done = results.len();
            let Err(error) = self.dispatch_each(lines[done..].iter().cloned().map(Ok), &mut results).await else {
                return Ok(results);
            };
            if results.len() > done {
                attempts.reset_delay();
            }
            attempts.wait_after(error).await?;
        }
    }

    /// Sends lines over one stream, and appends the results that arrive.
    async fn dispatch_each(
        &self,
        bodies: impl Iterator<Item = Result<Vec<u8>, DispatchError>> + Send,
        results: &mut Vec<Result<DispatchResult, Rejection>>,
    ) -> Result<(), DispatchError> {
        let (mut lines, mut reader) = self.stream().await?;
        let before = results.len();
        let send = async move {
            let (mut sent, mut chunk) = (0_usize, Vec::new());
            for body in bodies {
                chunk.extend(body?);
                chunk.push(b'\n');
                sent += 1;
                if chunk.len() >= CHUNK_BYTES {
                    lines.send_json(std::mem::take(&mut chunk)).await?;
                }
            }
            if !chunk.is_empty() {
                lines.send_json(chunk).await?;
            }
            Ok(sent)
        };
        let receive = async {
            loop {
                match tokio::time::timeout(TIMEOUT, reader.next()).await {
                    Err(_) => return Err(DispatchError::TimedOut { url: self.origin(), waited: TIMEOUT }),
                    Ok(Err(error)) => return Err(error),
                    Ok(Ok(None)) => return Ok(()),
                    Ok(Ok(Some(result))) => results.push(result),
                }
            }
        };
        // Concurrently: the server reads no more lines while results are not read.
        let (sent, received) = tokio::join!(send, receive);
        // The reader's error is the cause. A failed write is only its consequence.
        received?;
        let (sent, received): (usize, usize) = (sent?, results.len() - before);
        if received == sent {
            return Ok(());
        }
        let reason = format!("the stream ended after {received} of {sent} results");
        Err(DispatchError::Broken { url: self.origin(), reason })
    }

    /// Opens a stream, and returns the writer of dispatches and the reader of results.
    ///
    /// Use both concurrently, from two tasks or with `select!`: while results are not read, the server reads no more
    /// lines.
    ///
    /// # Errors
    /// Fails if the server cannot be reached, or rejects the request.
    pub async fn stream(&self) -> Result<(DispatchWriter, ResultReader), DispatchError> {
        let (chunks, body) = Channel::<Bytes, Infallible>::new(CHUNKS_MAX);
        let request = self.request(Method::POST, self.url(&["dispatch"])?).timeout(STREAM_TIMEOUT);
        let request = request.header("content-type", "application/x-ndjson").body(Body::wrap(body));
        let response = request.send().await.map_err(|error| self.network_error(&error))?;
        if !response.status().is_success() {
            return Err(self.rejection(response).await);
        }
        let reader = ResultReader { dispatcher: self.clone(), response, partial: Vec::new(), lines: VecDeque::new() };
        Ok((DispatchWriter { chunks, url: self.origin() }, reader))
    }
}

/// Writes dispatches to a stream. After it is dropped, the remaining results still arrive.
pub struct DispatchWriter {
    chunks: Sender<Bytes, Infallible>,
    url: String,
}

impl DispatchWriter {
    /// Sends a dispatch.
    ///
    /// # Errors
    /// Fails if it cannot be serialized, or the stream has ended: the reader has the cause.
    pub async fn send(&mut self, dispatch: &Dispatch) -> Result<(), DispatchError> {
        let mut line = dispatch.body()?;
        line.push(b'\n');
        self.send_json(line).await
    }

    /// Sends a part of the stream that is JSON lines already. It may end within a line.
    ///
    /// # Errors
    /// Fails if the stream has ended: the reader has the cause.
    pub async fn send_json(&mut self, text: Vec<u8>) -> Result<(), DispatchError> {
        let sent = self.chunks.send_data(text.into()).await;
        sent.map_err(|_| DispatchError::Broken { url: self.url.clone(), reason: "the stream has ended".into() })
    }
}

impl std::fmt::Debug for DispatchWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DispatchWriter").field("url", &self.url).finish_non_exhaustive()
    }
}

/// Reads the results of a stream, in the order of the dispatches.
#[derive(Debug)]
pub struct ResultReader {
    dispatcher: Dispatcher,
    response: Response,
    /// Start of an incomplete line.
    partial: Vec<u8>,
    /// Complete lines that were not returned yet.
    lines: VecDeque<Vec<u8>>,
}

impl ResultReader {
    /// Returns the next result; `None` after the last. Cancel-safe, as in `select!`.
    ///
    /// # Errors
    /// Fails if the connection breaks, or a line is not a result.
    pub async fn next(&mut self) -> Result<Option<Result<DispatchResult, Rejection>>, DispatchError> {
        let Some(line) = self.next_line().await? else { return Ok(None) };
        if let Ok(result) = serde_json::from_slice(&line) {
            return Ok(Some(Ok(result)));
        }
        match serde_json::from_slice::<response::ErrorResponse>(&line) {
            Ok(response) => Ok(Some(Err(response.error))),
            Err(error) => {
                Err(self.dispatcher.invalid_response(&format!("a result cannot be parsed ({})", json_error(&error))))
            }
        }
    }

    async fn next_line(&mut self) -> Result<Option<Vec<u8>>, DispatchError> {
        loop {
            if let Some(line) = self.lines.pop_front() {
                return Ok(Some(line));
            }
            let Some(chunk) = self.response.chunk().await.map_err(|error| self.dispatcher.network_error(&error))?
            else {
                if self.partial.is_empty() {
                    return Ok(None);
                }
                return Err(self.dispatcher.invalid_response("the last result is incomplete"));
            };
            let mut parts = chunk.split(|byte| *byte == b'\n');
            // `split` always yields a first part.
            self.partial.extend_from_slice(parts.next().unwrap_or_default());
            for part in parts {
                self.lines.push_back(std::mem::replace(&mut self.partial, part.to_vec()));
            }
            if self.partial.len() > RESPONSE_BYTES_MAX {
                return Err(self
                    .dispatcher
                    .invalid_response(&format!("a result has more than {} MiB", RESPONSE_BYTES_MAX >> 20)));
            }
        }
    }
}
