//! The socket below hyper, with all deadlines of an HTTP connection.
//!
//! - read: `limits.headerTimeout` for the head of a request, and `limits.idleTimeout` between requests
//! - write: `limits.writeTimeout` since the peer's socket last accepted a byte
//! - close: bytes that the peer still sends are discarded for a bounded time. Closing a socket with unread bytes resets the
//!   connection, and the peer then loses the response (RFC 9112, 9.6).
//!
//! A timer is set when a wait begins, and not reset for each request. A timer that fires early is set again.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::body::{Body, Bytes, HttpBody};
use hyper::body::{Frame, SizeHint};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep_until},
};

use super::{
    activity::{Activity, Phase},
    connection_limit::AddressPermit,
    proxies::is_proxy_header,
    stream::AcceptedStream,
    unreadable,
};
use crate::{
    config::Limits,
    health::{LogLimit, info_seldom},
    util::tls_record,
};

/// Limits the log lines about peers with another protocol: one can come with each connection.
static TLS_CLIENT: LogLimit = LogLimit::new();
static PROXY_HEADER: LogLimit = LogLimit::new();

/// Protocol in which a peer begins its connection.
#[derive(Clone, Copy)]
enum Protocol {
    Http,
    /// TLS, which this port does not have.
    Tls,
    /// The header of a proxy, which is not expected.
    ProxyHeader,
}

impl Protocol {
    fn of(first_bytes: &[u8]) -> Self {
        if tls_record::is_client_hello(first_bytes) {
            Self::Tls
        } else if is_proxy_header(first_bytes) {
            Self::ProxyHeader
        } else {
            Self::Http
        }
    }
}

/// Time without bytes from the peer after which a closing connection ends.
const LINGER_IDLE_TIMEOUT: Duration = Duration::from_secs(2);

/// Maximum time for closing a connection; then a connection whose peer still sends is reset.
const LINGER_TIMEOUT: Duration = Duration::from_secs(30);

/// The same limit during shutdown, less than `DRAIN_TIMEOUT` of [`shutdown`](super::shutdown).
const LINGER_STOPPING_TIMEOUT: Duration = Duration::from_millis(500);

/// Maximum bytes discarded while closing; a connection whose peer sends more is reset.
const LINGER_BYTES_MAX: usize = 128 << 20;

/// Bytes discarded per read.
const DISCARD_BYTES: usize = 16 << 10;

/// Reads per wake-up, before the task yields the thread.
const DISCARDS_MAX: usize = 16;

/// The socket of an HTTP connection.
pub(super) struct HttpIo {
    stream: AcceptedStream,
    activity: Arc<Activity>,
    head_timeout: Duration,
    idle_timeout: Duration,
    write_timeout: Duration,
    /// Deadline for the next bytes, or for the whole head.
    read_deadline: Instant,
    read_timer: Timer,
    /// Deadline for the peer to accept bytes; `None` while no write is pending.
    write_deadline: Option<Instant>,
    write_timer: Timer,
    closing: Option<Closing>,
    /// An error response that replaces hyper's bare one, and how much of it is written.
    error_response: Option<(Vec<u8>, usize)>,
    /// How the peer began its first request.
    protocol: Protocol,
    /// Whether the peer has closed its side, or a deadline has passed, so that the connection need not linger.
    no_linger: bool,
}

#[derive(Clone, Copy)]
struct Closing {
    deadline: Instant,
    discarded: usize,
}

impl HttpIo {
    /// Creates the socket. `head_deadline`: deadline of the first head.
    pub(super) fn new(
        stream: AcceptedStream,
        activity: Arc<Activity>,
        limits: &Limits,
        head_deadline: Instant,
    ) -> Self {
        Self {
            stream,
            activity,
            head_timeout: limits.header_timeout,
            idle_timeout: limits.idle_timeout,
            write_timeout: limits.write_timeout,
            read_deadline: head_deadline,
            read_timer: Timer::default(),
            write_deadline: None,
            write_timer: Timer::default(),
            closing: None,
            error_response: None,
            protocol: Protocol::Http,
            no_linger: false,
        }
    }

    /// Returns the socket, once the connection has become a WebSocket.
    pub(super) fn into_stream(self) -> AcceptedStream {
        self.stream
    }

    /// Records that bytes have arrived.
    fn received(&mut self, bytes: &[u8]) {
        match self.activity.phase() {
            // The deadline of the first head counts from the start of the connection.
            Phase::New => {
                self.activity.enter(Phase::Head);
                self.protocol = Protocol::of(bytes);
            }
            Phase::Answered | Phase::Idle => {
                self.read_deadline = Instant::now() + self.head_timeout;
                self.activity.enter(Phase::Head);
            }
            Phase::Head | Phase::Busy | Phase::Lingering => {}
        }
    }

    /// Records that a response is written.
    ///
    /// hyper polls for the next request only once it is woken: by bytes, by eviction, or by the timer.
    fn become_idle(&mut self, cx: &mut Context<'_>) {
        let now = Instant::now();
        self.read_deadline = now + self.idle_timeout;
        self.activity.become_idle(now.into_std());
        self.read_timer.wake_at(cx, self.read_deadline);
        if self.activity.poll_evicted(cx) {
            cx.waker().wake_by_ref();
        }
    }

    /// Fails once the read deadline has passed or the connection is evicted; pending until then.
    fn poll_read_timeout(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.activity.phase() {
            // Bodies, streams and writes have other deadlines.
            Phase::Busy | Phase::Answered => return Poll::Pending,
            Phase::New | Phase::Head | Phase::Idle | Phase::Lingering => {}
        }
        if self.activity.poll_evicted(cx) || self.read_timer.poll_elapsed(cx, self.read_deadline) {
            self.no_linger = true;
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Poll::Pending
    }

    /// Discards bytes of the peer; ready when the peer has closed or a limit is reached.
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let now = Instant::now();
        let mut closing = self.closing.unwrap_or_else(|| {
            self.activity.enter(Phase::Lingering);
            self.read_deadline = now + LINGER_IDLE_TIMEOUT;
            Closing { deadline: now + LINGER_TIMEOUT, discarded: 0 }
        });
        if self.activity.is_stopping() {
            closing.deadline = closing.deadline.min(now + LINGER_STOPPING_TIMEOUT);
        }
        self.closing = Some(closing);
        for _ in 0..DISCARDS_MAX {
            let mut discarded = [0; DISCARD_BYTES];
            let mut discarded = ReadBuf::new(&mut discarded);
            match Pin::new(&mut self.stream).poll_read(cx, &mut discarded) {
                Poll::Ready(Ok(())) if !discarded.filled().is_empty() => {
                    closing.discarded += discarded.filled().len();
                    if closing.discarded > LINGER_BYTES_MAX || closing.deadline <= now {
                        return Poll::Ready(());
                    }
                    self.read_deadline = now + LINGER_IDLE_TIMEOUT;
                    self.closing = Some(closing);
                }
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => {
                    let by = self.read_deadline.min(closing.deadline);
                    let over = self.activity.poll_evicted(cx) || self.read_timer.poll_elapsed(cx, by);
                    return if over { Poll::Ready(()) } else { Poll::Pending };
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl AsyncRead for HttpIo {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let (before, wanted) = (buf.filled().len(), buf.remaining());
        match Pin::new(&mut self.stream).poll_read(cx, buf) {
            Poll::Ready(Ok(())) => {
                if buf.filled().len() > before {
                    self.received(&buf.filled()[before..]);
                } else if wanted > 0 {
                    self.no_linger = true;
                }
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => {
                self.no_linger = true;
                Poll::Ready(Err(error))
            }
            Poll::Pending => self.poll_read_timeout(cx),
        }
    }
}

impl HttpIo {
    fn poll_write_stream(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_output(cx, |stream, cx| stream.poll_write(cx, bytes))
    }

    /// Polls a write, flush or shutdown of the stream, with the deadline of a write.
    fn poll_output<T>(
        &mut self,
        cx: &mut Context<'_>,
        poll: impl FnOnce(Pin<&mut AcceptedStream>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        match poll(Pin::new(&mut self.stream), cx) {
            Poll::Pending => {
                let by = self.write_deadline.unwrap_or_else(|| Instant::now() + self.write_timeout);
                if self.write_deadline.replace(by).is_none() {
                    self.activity.set_stalled(true);
                }
                if self.activity.poll_evicted(cx) || self.write_timer.poll_elapsed(cx, by) {
                    self.no_linger = true;
                    return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
                }
                Poll::Pending
            }
            done @ Poll::Ready(_) => {
                if self.write_deadline.take().is_some() {
                    self.activity.set_stalled(false);
                }
                done
            }
        }
    }

    /// Returns the response to a head that hyper could not parse, in place of hyper's own.
    fn error_response(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        match self.protocol {
            Protocol::Http => {}
            Protocol::Tls => {
                info_seldom!(
                    TLS_CLIENT,
                    "a client speaks TLS, but this port has none; use ws:// and http://, or set tls.cert and tls.key"
                );
                return Some(tls_record::ALERT.to_vec());
            }
            Protocol::ProxyHeader => info_seldom!(
                PROXY_HEADER,
                "a connection with a PROXY header was rejected; set proxyProtocol, and name the proxy in trustedProxies"
            ),
        }
        unreadable::with_body(bytes)
    }

    /// Writes the error response; ready when all of it is written.
    fn poll_error_response(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some((error_response, written)) = self.error_response.take() {
            let progress = self.poll_write_stream(cx, &error_response[written..]);
            let (progress, written_now) = match progress {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(bytes)) => (Poll::Ready(()), bytes),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => (Poll::Pending, 0),
            };
            let written = written + written_now;
            if written < error_response.len() {
                self.error_response = Some((error_response, written));
            }
            ready!(progress);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for HttpIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        // Bytes written while a request is answered are its response.
        if self.error_response.is_none()
            && self.activity.phase() != Phase::Busy
            && let Some(at) = unreadable::find(bytes)
        {
            if at > 0 {
                return self.poll_write_stream(cx, &bytes[..at]);
            }
            self.error_response = self.error_response(bytes).map(|error_response| (error_response, 0));
        }
        if self.error_response.is_none() {
            return self.poll_write_stream(cx, bytes);
        }
        // hyper passes the same bytes again until all of them are written.
        self.poll_error_response(cx).map_ok(|()| bytes.len())
    }

    /// Flushes the stream. hyper calls this whenever all of its output is written.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_output(cx, AcceptedStream::poll_flush))?;
        if self.activity.phase() == Phase::Answered {
            self.become_idle(cx);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.closing.is_none() {
            ready!(self.poll_output(cx, AcceptedStream::poll_shutdown))?;
            // Without a request there was no response that could be lost. An idle connection lingers too: bytes of a
            // rejected body may be unread.
            if self.no_linger || self.activity.phase() == Phase::New {
                return Poll::Ready(Ok(()));
            }
        }
        self.poll_linger(cx).map(Ok)
    }
}

/// A timer that is created when it is first needed, and reused.
#[derive(Default)]
struct Timer(Option<Pin<Box<Sleep>>>);

impl Timer {
    /// Wakes the task at `by` or earlier.
    fn wake_at(&mut self, cx: &mut Context<'_>, by: Instant) {
        // A timer set for an earlier time wakes the same task, which then sets it again. Most requests need no change.
        let is_armed = |sleep: &Pin<Box<Sleep>>| !sleep.is_elapsed() && sleep.deadline() <= by;
        if !self.0.as_ref().is_some_and(is_armed) && self.poll_elapsed(cx, by) {
            cx.waker().wake_by_ref();
        }
    }

    /// Reports whether `by` has passed; if not, the task is woken then, or earlier.
    fn poll_elapsed(&mut self, cx: &mut Context<'_>, by: Instant) -> bool {
        let sleep = self.0.get_or_insert_with(|| Box::pin(sleep_until(by)));
        if sleep.deadline() > by {
            sleep.as_mut().reset(by);
        }
        while sleep.as_mut().poll(cx).is_ready() {
            if by <= Instant::now() {
                return true;
            }
            sleep.as_mut().reset(by);
        }
        false
    }
}

/// Body of a response, which sets [`Phase::Answered`] when it is dropped.
pub(super) struct ResponseBody {
    body: Body,
    activity: Arc<Activity>,
    /// Held until the response is sent, for a client behind a proxy.
    _address: Option<Arc<AddressPermit>>,
}

impl ResponseBody {
    pub(super) fn new(body: Body, activity: Arc<Activity>, address: Option<Arc<AddressPermit>>) -> Self {
        Self { body, activity, _address: address }
    }
}

impl HttpBody for ResponseBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        self.activity.enter(Phase::Answered);
    }
}
