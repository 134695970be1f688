//! Dispatches, a line each, and their results, a line each and in order, for as long as both sides like.
//!
//! The answer is a body that works while it is read: it takes lines in, hands those that are at hand to the hub
//! together, and while they are being made durable takes in more. So lines share commits, and nothing is taken in for a
//! backend that does not read its answers, nor while the store's queue is full.
//!
//! One batch of a stream is under way at a time, which is what keeps its lines in order however full the queue is. The
//! next is made meanwhile, so that the store waits for nothing but to be handed it.

use std::{
    future::{pending, poll_fn},
    pin::Pin,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use axum::{
    BoxError,
    body::{Body, Bytes, HttpBody},
    http::{HeaderValue, Request, header},
    response::Response,
};
use futures_util::{future::BoxFuture, stream};
use http_body_util::BodyExt as _;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout},
};

use super::{
    batch::{Batch, Done, Task},
    ndjson::{Line, Lines},
    request,
};
use crate::http::{Api, BODY_TIME_MAX, error::ApiError};

/// How long the rest of a line that was begun may take to come. Between lines a stream may be idle for as long as it
/// likes.
const LINE_TIME_MAX: Duration = Duration::from_secs(30);

/// For how long what comes is still read, and thrown away, when a stream is ended while its lines come: a connection
/// that is closed with something unread takes back what was written to it last.
const LINGER: Duration = Duration::from_millis(500);

/// Answers a stream: at once, with a body that goes on for as long as lines come.
pub(super) async fn open<B>(
    api: Arc<Api>,
    stopping: watch::Receiver<bool>,
    request: Request<B>,
) -> Result<Response, ApiError>
where
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let waits = request.headers().contains_key(header::EXPECT);
    let mut talk = Talk::new(api, stopping, request.into_body());
    if waits {
        // A backend that waits to be told to go on is told so when we read, and not after an answer has begun.
        let piece = timeout(BODY_TIME_MAX, talk.piece()).await.map_err(|_| ApiError::TooSlow)?;
        talk.take(piece);
    }
    let answers = stream::unfold(talk, |mut talk| async {
        let text = talk.answers().await?;
        Some((Ok::<_, BoxError>(text), talk))
    });
    let mut response = Response::new(Body::from_stream(answers));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    Ok(response)
}

/// A stream.
struct Talk<B> {
    api: Arc<Api>,
    body: Pin<Box<B>>,
    lines: Lines,
    /// Being collected.
    next: Batch,
    /// The line behind it, which has to wait for a batch of its own.
    held: Option<(usize, Task)>,
    under_way: UnderWay,
    stopping: watch::Receiver<bool>,
    /// By then the line that was begun has to be whole.
    line_by: Option<Instant>,
    /// Why nothing more is taken in, if nothing is.
    over: Option<Over>,
}

/// The batch that was handed to the hub.
enum UnderWay {
    Nothing,
    Waiting(BoxFuture<'static, Done>),
    Done(Done),
}

/// Why a stream takes nothing more in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Over {
    /// The backend has said all, or is gone.
    Said,
    /// We end it.
    Cut,
}

impl<B> Talk<B>
where
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    fn new(api: Arc<Api>, stopping: watch::Receiver<bool>, body: B) -> Self {
        Self {
            body: Box::pin(body),
            lines: Lines::new(api.limits.request_bytes),
            next: Batch::default(),
            held: None,
            under_way: UnderWay::Nothing,
            stopping,
            line_by: None,
            over: None,
            api,
        }
    }

    /// The results of a batch, one a line; `None` when all is answered and nothing more comes.
    async fn answers(&mut self) -> Option<Bytes> {
        loop {
            self.collect();
            self.set_off().await;
            if let (UnderWay::Nothing, Some(over)) = (&self.under_way, self.over) {
                if over == Over::Cut {
                    _ = timeout(LINGER, self.pass_over()).await;
                }
                return None;
            }
            let room = self.held.is_none() && !self.next.is_full();
            let hungry = self.over.is_none() && self.lines.is_hungry() && room;
            let line_by = self.line_by;
            tokio::select! {
                biased;
                done = self.under_way.done() => {
                    // First of all, so that the store has something to do meanwhile.
                    self.set_off().await;
                    // It waited for us, if for anybody.
                    self.line_by = None;
                    return Some(done.answers(&self.api.hub).into());
                }
                piece = piece(&mut self.body), if hungry => self.take(piece),
                () = stopped(&mut self.stopping), if self.over.is_none() => self.over = Some(Over::Cut),
                () = until(line_by), if hungry => {
                    self.add(0, Task::Refuse(ApiError::TooSlow));
                    self.over = Some(Over::Cut);
                }
            }
        }
    }

    /// Reads the lines that are at hand, as many as one batch has room for.
    fn collect(&mut self) {
        if let Some((bytes, task)) = self.held.take() {
            self.add(bytes, task);
        }
        while self.held.is_none() && !self.next.is_full() {
            let (bytes, asked) = match self.lines.next() {
                None => break,
                Some(Line::Whole(text)) => (text.len(), request::read(text, self.api.limits.recipients)),
                Some(Line::TooLong) => (0, Err(ApiError::TooLarge(self.api.limits.request_bytes))),
            };
            self.add(bytes, Task::new(asked, &self.api.hub));
            self.line_by = None;
        }
        if self.lines.in_the_middle() {
            self.line_by.get_or_insert_with(|| Instant::now() + LINE_TIME_MAX);
        } else {
            self.line_by = None;
        }
    }

    fn add(&mut self, bytes: usize, task: Task) {
        self.held = self.next.push(bytes, task).err().map(|task| (bytes, task));
    }

    /// Hands what was collected to the hub, unless an earlier batch is there.
    async fn set_off(&mut self) {
        if self.next.is_empty() || !matches!(self.under_way, UnderWay::Nothing) {
            return;
        }
        let (batch, api) = (std::mem::take(&mut self.next), self.api.clone());
        let mut batch: BoxFuture<'static, _> = Box::pin(async move { batch.dispatch(&api.hub).await });
        // Nothing is done before it is asked for once.
        self.under_way = match poll_fn(|cx| Poll::Ready(batch.as_mut().poll(cx))).await {
            Poll::Ready(done) => UnderWay::Done(done),
            Poll::Pending => UnderWay::Waiting(batch),
        };
    }

    fn take(&mut self, piece: Option<Bytes>) {
        match piece {
            Some(piece) => self.lines.push(piece),
            None => {
                self.lines.end();
                self.over = Some(Over::Said);
            }
        }
    }

    async fn piece(&mut self) -> Option<Bytes> {
        piece(&mut self.body).await
    }

    async fn pass_over(&mut self) {
        while self.piece().await.is_some() {}
    }
}

impl UnderWay {
    /// Resolves when the batch is done, and then it is under way no more; never where there is none.
    async fn done(&mut self) -> Done {
        if let Self::Waiting(batch) = self {
            *self = Self::Done(batch.await);
        }
        match std::mem::replace(self, Self::Nothing) {
            Self::Done(done) => done,
            // The first is what it was, and the second is done by now.
            Self::Nothing | Self::Waiting(_) => pending().await,
        }
    }
}

/// What comes next of a body; `None` where nothing does.
async fn piece<B>(body: &mut Pin<Box<B>>) -> Option<Bytes>
where
    B: HttpBody<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    loop {
        match body.frame().await? {
            // Anything but data is of no interest here.
            Ok(frame) => {
                if let Ok(piece) = frame.into_data() {
                    return Some(piece);
                }
            }
            Err(error) => {
                tracing::debug!(error = %error.into(), "a stream of dispatches broke off");
                return None;
            }
        }
    }
}

/// Resolves when the server is to stop.
async fn stopped(stopping: &mut watch::Receiver<bool>) {
    _ = stopping.wait_for(|stopping| *stopping).await;
}

async fn until(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant).await,
        None => pending().await,
    }
}
