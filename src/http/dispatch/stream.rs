//! Serves an NDJSON stream: one dispatch per line, and one result per line in the same order, without a time limit.
//!
//! The stream advances while the backend reads the response body. It passes the lines that have arrived to the hub as
//! one batch, and reads more while that batch commits. So lines share a group commit. Backpressure: the server reads no
//! lines of a backend that does not read its results, nor while the store's queue is full.
//!
//! One batch of a stream is in flight at a time, which keeps its lines in order even when the queue is full. The next
//! batch is collected meanwhile, so that the store never waits for parsing.

use std::{
    future::{pending, poll_fn},
    sync::Arc,
    task::Poll,
    time::Duration,
};

use axum::{
    BoxError,
    body::{Body, Bytes},
    http::{HeaderValue, Request, header},
    response::Response,
};
use futures_util::{future::BoxFuture, stream};
use http_body_util::BodyExt as _;
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};

use super::{
    batch::{Batch, BatchResult, Task},
    ndjson::{Line, LineSplitter},
    request,
};
use crate::{
    http::{Api, BODY_TIMEOUT, Caller, api::NDJSON, error::ApiError},
    util::sleep::sleep_until_optional,
};

/// Time limit for a line that has begun; then its result is `too_slow`, and the stream ends.
///
/// Between lines a stream may be idle without limit.
const LINE_TIMEOUT: Duration = Duration::from_secs(30);

/// Maximum time for discarding input after the server has ended a stream.
///
/// Closing a connection with unread input resets it, and the backend may lose the last results.
const LINGER_TIMEOUT: Duration = Duration::from_millis(500);

/// Responds to a stream at once, with a body that continues while lines arrive.
pub(super) async fn open(
    api: Arc<Api>,
    stopping: watch::Receiver<bool>,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    let expects_continue = request.headers().contains_key(header::EXPECT);
    let caller = request.extensions().get::<Caller>().cloned().unwrap_or_default();
    let mut stream = NdjsonStream::new(api, stopping, caller, request.into_body());
    if expects_continue {
        // Reading sends 100 Continue. That must happen before the response begins.
        let chunk = timeout(BODY_TIMEOUT, stream.chunk()).await.map_err(|_| ApiError::TooSlow)?;
        stream.accept(chunk);
    }
    let results = stream::unfold(stream, |mut stream| async {
        let text = stream.results().await?;
        Some((Ok::<_, BoxError>(text), stream))
    });
    let mut response = Response::new(Body::from_stream(results));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, NDJSON);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    Ok(response)
}

/// Holds the state of one stream.
struct NdjsonStream {
    api: Arc<Api>,
    caller: Caller,
    body: Body,
    lines: LineSplitter,
    /// Batch that is being collected.
    next: Batch,
    /// First line that does not fit into `next`.
    deferred: Option<(usize, Task)>,
    in_flight: InFlight,
    stopping: watch::Receiver<bool>,
    /// Deadline of the line that has begun.
    line_deadline: Option<Instant>,
    /// Why no more lines are read; `None`: they are.
    end: Option<StreamEnd>,
}

/// Holds the batch that was passed to the hub.
enum InFlight {
    Nothing,
    Waiting(BoxFuture<'static, BatchResult>),
    Done(BatchResult),
}

/// Distinguishes why no more lines are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StreamEnd {
    /// The backend has ended its body, or the connection broke.
    ByClient,
    /// The server ends the stream: shutdown, or a line that timed out.
    ByServer,
}

impl NdjsonStream {
    fn new(api: Arc<Api>, stopping: watch::Receiver<bool>, caller: Caller, body: Body) -> Self {
        Self {
            caller,
            body,
            lines: LineSplitter::new(api.live.load().limits.request_bytes),
            next: Batch::default(),
            deferred: None,
            in_flight: InFlight::Nothing,
            stopping,
            line_deadline: None,
            end: None,
            api,
        }
    }

    /// Returns the results of a batch, one per line; `None` at the end of the stream.
    async fn results(&mut self) -> Option<Bytes> {
        loop {
            self.collect();
            self.submit().await;
            if let (InFlight::Nothing, Some(end)) = (&self.in_flight, self.end) {
                if end == StreamEnd::ByServer {
                    _ = timeout(LINGER_TIMEOUT, self.discard_body()).await;
                }
                return None;
            }
            let has_space = self.deferred.is_none() && !self.next.is_full();
            let reads = self.end.is_none() && self.lines.needs_chunk() && has_space;
            let line_deadline = self.line_deadline;
            tokio::select! {
                biased;
                done = self.in_flight.done() => {
                    // First, so that the store has work while the results are encoded.
                    self.submit().await;
                    // The batch may have delayed reading the line, so its time limit starts anew.
                    self.line_deadline = None;
                    return Some(done.results(&self.api.hub, &self.caller).into());
                }
                chunk = chunk(&mut self.body), if reads => self.accept(chunk),
                () = stopped(&mut self.stopping), if self.end.is_none() => self.end = Some(StreamEnd::ByServer),
                () = sleep_until_optional(line_deadline), if reads => {
                    self.add(0, Task::Reject(ApiError::TooSlow));
                    self.end = Some(StreamEnd::ByServer);
                }
            }
        }
    }

    /// Parses lines that have arrived, until the batch is full.
    fn collect(&mut self) {
        if let Some((bytes, task)) = self.deferred.take() {
            self.add(bytes, task);
        }
        while self.deferred.is_none() && !self.next.is_full() {
            let (bytes, request) = match self.lines.next() {
                None => break,
                Some(Line::Whole(text)) => (text.len(), request::read(text, self.api.live.load().limits.recipients)),
                Some(Line::TooLong) => (0, Err(ApiError::TooLarge(self.lines.bytes_max()))),
            };
            self.add(bytes, Task::new(request, &self.api.hub));
            self.line_deadline = None;
        }
        if self.lines.is_in_line() {
            self.line_deadline.get_or_insert_with(|| Instant::now() + LINE_TIMEOUT);
        } else {
            self.line_deadline = None;
        }
    }

    fn add(&mut self, bytes: usize, task: Task) {
        self.deferred = self.next.push(bytes, task).err().map(|task| (bytes, task));
    }

    /// Passes the collected batch to the hub, unless one is in flight.
    async fn submit(&mut self) {
        if self.next.is_empty() || !matches!(self.in_flight, InFlight::Nothing) {
            return;
        }
        let (batch, api) = (std::mem::take(&mut self.next), self.api.clone());
        let mut batch: BoxFuture<'static, _> = Box::pin(async move { batch.dispatch(&api.hub).await });
        // The first poll passes it to the hub.
        self.in_flight = match poll_fn(|cx| Poll::Ready(batch.as_mut().poll(cx))).await {
            Poll::Ready(done) => InFlight::Done(done),
            Poll::Pending => InFlight::Waiting(batch),
        };
    }

    fn accept(&mut self, chunk: Option<Bytes>) {
        match chunk {
            Some(chunk) => self.lines.push(chunk),
            None => {
                self.lines.end();
                self.end = Some(StreamEnd::ByClient);
            }
        }
    }

    async fn chunk(&mut self) -> Option<Bytes> {
        chunk(&mut self.body).await
    }

    async fn discard_body(&mut self) {
        while self.chunk().await.is_some() {}
    }
}

impl InFlight {
    /// Waits for the batch in flight and takes its result; pending if there is none.
    async fn done(&mut self) -> BatchResult {
        if let Self::Waiting(batch) = self {
            *self = Self::Done(batch.await);
        }
        match std::mem::replace(self, Self::Nothing) {
            Self::Done(done) => done,
            // No batch; a waiting one became `Done` above.
            Self::Nothing | Self::Waiting(_) => pending().await,
        }
    }
}

/// Reads the next data of a body; `None` at its end or on an error.
async fn chunk(body: &mut Body) -> Option<Bytes> {
    loop {
        match body.frame().await? {
            // Trailers are ignored.
            Ok(frame) => {
                if let Ok(chunk) = frame.into_data() {
                    return Some(chunk);
                }
            }
            Err(error) => {
                tracing::debug!(%error, "a stream of dispatches could not be read to its end");
                return None;
            }
        }
    }
}

/// Resolves when the server shuts down.
async fn stopped(stopping: &mut watch::Receiver<bool>) {
    _ = stopping.wait_for(|stopping| *stopping).await;
}
