//! The task of a WebSocket connection. It waits for all of its inputs at once: frames, signals from the hub, a writable
//! socket, deadlines.
//!
//! Its steps are in other files: [`inbound`](super::inbound) reads frames, [`outbound`](super::outbound) writes
//! them, [`closing`](super::closing) ends the connection.

use std::{
    fmt,
    future::{Future, poll_fn},
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant, SystemTime},
};

use futures_util::future::BoxFuture;
use tokio::time::Sleep;

use super::{
    connection_limit::Permit, context::ServerContext, frame_rate::FrameRateLimiter, heartbeat::Heartbeat,
    peer::HandshakeInfo, socket::Socket,
};
use crate::{
    auth::{AuthError, Identity},
    hub::{Attach, CloseReason, ConnectionHandle, Session, Signals, StoreError},
    protocol::close_code::{CloseCode, reason},
};

/// Rounds per wake-up, before the task yields.
///
/// Otherwise a fast client with a long backlog would occupy a thread until the backlog is sent.
const ROUNDS_MAX: usize = 8;

/// Reason for which a connection ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The peer has closed or disconnected: no close frame is sent.
    Gone,
    /// The server closes with this code and reason.
    Close(CloseCode, &'static str),
    /// A backend disconnects the client with this text.
    Disconnected(Arc<str>),
    /// The server is shutting down. Messages that the client sends before it receives the close frame still count.
    Stopping,
    /// The embedding program closes with this code.
    Requested(u16),
    /// The peer does not read, so no close frame is sent.
    Stalled,
}

impl End {
    pub(super) fn close(code: CloseCode) -> Self {
        Self::Close(code, code.reason())
    }
}

/// An authentication in progress.
pub(super) struct Authenticating {
    pub checking: BoxFuture<'static, Result<Identity, AuthError>>,
    pub how: Attach,
}

/// An authenticated client whose session is being attached.
pub(super) struct Attaching {
    pub session: BoxFuture<'static, Result<Session, StoreError>>,
    /// The answer to the authentication.
    pub frame: String,
    /// Whether the client resumes (`after`), so that its deliveries are not held back.
    pub resumes: bool,
    /// When the client's identity expires.
    pub expires: Option<SystemTime>,
}

/// State of one connection.
pub(super) struct Connection {
    pub context: Arc<ServerContext>,
    pub socket: Socket,
    /// Detached first when closing, so that the hub puts no more messages into the mailbox.
    pub session: Option<Session>,
    pub hub_handle: ConnectionHandle,
    /// The client's address, for log lines.
    pub peer: Option<SocketAddr>,
    pub heartbeat: Heartbeat,
    /// Boxed like `attaching`: an idle connection has neither.
    pub authenticating: Option<Box<Authenticating>>,
    pub attaching: Option<Box<Attaching>>,
    /// Deadline of the authentication, after which the connection is closed; `None` once authenticated.
    pub authenticate_by: Option<Instant>,
    /// When the client's identity expires.
    pub expires: Option<SystemTime>,
    pub frame_rate: FrameRateLimiter,
    /// Whether unsynced messages are in the mailbox.
    pub unsynced: bool,
    /// Time until which deliveries are held back (see [`hold`](super::hold)).
    pub held_until: Option<Instant>,
    /// When the next entry is due, if the session is paced.
    pub paced_until: Option<Instant>,
    /// Time since which the socket has accepted no bytes of the write buffer.
    pub stalled_since: Option<Instant>,
    /// Code and reason of the peer's close frame.
    pub peer_close: Option<Box<(u16, String)>>,
    timer: Timer,
}

impl Connection {
    /// Sends the first frame to a new client and serves it until the connection ends.
    ///
    /// The connection is boxed here, so that the task holds a pointer instead of several copies of its state. The permits
    /// are released after the last byte.
    pub(super) fn serve(
        context: Arc<ServerContext>,
        socket: Socket,
        from: Option<SocketAddr>,
        handshake: Option<HandshakeInfo>,
        permits: (Permit, Permit),
    ) -> impl Future<Output = ()> + Send {
        let hub_handle = context.hub.connect_from(from.map(|from| from.ip()), |id| {
            if let (Some(runner), Some(handshake)) = (&context.runner, handshake) {
                runner.add_peer(id, handshake);
            }
        });
        let now = Instant::now();
        let heart = &context.config.heartbeat;
        let nonce = context.nonce();
        let heartbeat = Heartbeat::new(heart.enabled, heart.interval, heart.max_attempts, nonce, now);
        let mut connection = Box::new(Self {
            // Without an authenticator the missing authentication must not close the connection.
            authenticate_by: context
                .live
                .load()
                .authenticator
                .is_some()
                .then(|| now + context.config.authentication.timeout),
            frame_rate: FrameRateLimiter::new(context.live.load().limits.frames_per_second, now),
            context,
            socket,
            session: None,
            hub_handle,
            peer: from,
            heartbeat,
            authenticating: None,
            attaching: None,
            expires: None,
            unsynced: false,
            held_until: None,
            paced_until: None,
            stalled_since: None,
            peer_close: None,
            timer: Timer::default(),
        });
        connection.context.metrics.connections_accepted.inc();
        connection.context.metrics.connections.inc();
        let (id, peer) = connection.origin();
        tracing::debug!(connection = id, peer, "client connected");
        connection.push_hello();
        async move {
            let end = poll_fn(|cx| connection.poll_end(cx)).await;
            // Boxed, so that the task of an open connection does not hold the space for its end.
            Box::pin(connection.end(end)).await;
            drop(permits);
        }
    }

    /// Closes the connection, and discards what the peer still sends.
    async fn end(mut self: Box<Self>, end: End) {
        self.context.metrics.connections.dec();
        if let Some(bytes_left) = self.close(end).await {
            // All other state is dropped here.
            self.into_socket().linger(bytes_left).await;
        }
    }

    fn into_socket(self: Box<Self>) -> Socket {
        self.socket
    }

    /// Runs the steps of the connection; ready when it has to end.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        for _ in 0..ROUNDS_MAX {
            let now = Instant::now();
            match self.poll_once(cx, now) {
                Err(end) => return Poll::Ready(end),
                Ok(true) => continue,
                Ok(false) => {}
            }
            if !self.timer.poll_elapsed(cx, self.deadline()) {
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Runs all steps once; true if there may be more to do at once.
    fn poll_once(&mut self, cx: &mut Context<'_>, now: Instant) -> Result<bool, End> {
        if let Poll::Ready(signals) = self.hub_handle.mailbox().poll_signals(cx) {
            self.apply_signals(signals)?;
        }
        self.check_deadlines(now)?;
        self.release_if_due(now);
        let mut busy = self.poll_inbound(cx, now)?;
        // After the frames, because one of them may just have started it without registering a waker.
        busy |= self.poll_authentication(cx, now)?;
        busy |= self.poll_attach(cx, now)?;
        self.fill_buffer(cx, now)?;
        self.send_heartbeat(now)?;
        busy |= self.poll_write(cx, now)?;
        Ok(busy)
    }

    fn apply_signals(&mut self, signals: Signals) -> Result<(), End> {
        match signals.close {
            Some(CloseReason::WithCode(code)) => return Err(End::Requested(code)),
            Some(CloseReason::Requested(Some(reason))) => return Err(End::Disconnected(reason)),
            Some(CloseReason::Requested(None)) => return Err(End::close(CloseCode::Normal)),
            Some(CloseReason::Shutdown) => return Err(End::Stopping),
            Some(CloseReason::StoreFailed) => return Err(End::close(CloseCode::Internal)),
            None => {}
        }
        self.unsynced |= signals.unsynced;
        if let (true, Some(session)) = (signals.log, &mut self.session) {
            session.on_log_signal();
        }
        Ok(())
    }

    fn check_deadlines(&mut self, now: Instant) -> Result<(), End> {
        if self.authenticate_by.is_some_and(|by| by <= now) {
            self.context.metrics.authentication_failures.inc();
            if self.authenticating.is_some() || self.attaching.is_some() {
                // The client has authenticated in time, and its credentials may be valid.
                return Err(End::Close(CloseCode::TooBusy, reason::AUTHENTICATION_UNAVAILABLE));
            }
            return Err(End::Close(CloseCode::Policy, reason::AUTHENTICATION_TIMED_OUT));
        }
        if self.expires.is_some_and(|at| at <= SystemTime::now()) {
            return Err(End::Close(CloseCode::Policy, reason::TOKEN_EXPIRED));
        }
        if self.stalled_since.is_some_and(|since| since + self.context.live.load().limits.write_timeout <= now) {
            return Err(End::Stalled);
        }
        Ok(())
    }

    /// Returns the next deadline at which the task has to run without another event.
    fn deadline(&self) -> Option<Instant> {
        let stalled = self.stalled_since.map(|since| since + self.context.live.load().limits.write_timeout);
        // The wall clock may be set, so it is checked at least once a minute.
        let expires = self.expires.map(|at| {
            let left = at.duration_since(SystemTime::now()).unwrap_or(Duration::ZERO);
            Instant::now() + left.min(Duration::from_secs(60)) + Duration::from_millis(1)
        });
        let heartbeat = self.heartbeat.deadline(self.position_to_acknowledge());
        [self.authenticate_by, expires, stalled, self.held_until, self.paced_until, heartbeat]
            .into_iter()
            .flatten()
            .min()
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("session", &self.session).finish_non_exhaustive()
    }
}

/// Timer for all deadlines of a connection, created when the first is needed.
#[derive(Default)]
struct Timer {
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Timer {
    /// Reports whether `deadline` has passed; if not, the task is woken then.
    fn poll_elapsed(&mut self, cx: &mut Context<'_>, deadline: Option<Instant>) -> bool {
        let Some(deadline) = deadline.map(tokio::time::Instant::from_std) else { return false };
        match &mut self.sleep {
            Some(sleep) => {
                if sleep.deadline() != deadline {
                    sleep.as_mut().reset(deadline);
                }
            }
            None => self.sleep = Some(Box::pin(tokio::time::sleep_until(deadline))),
        }
        self.sleep.as_mut().is_some_and(|sleep| sleep.as_mut().poll(cx).is_ready())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the bytes of the future that a function with five arguments returns.
    fn future_bytes<A, B, C, D, E, F>(_: impl Fn(A, B, C, D, E) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn task_of_an_open_connection_holds_no_space_for_its_start_and_its_end() {
        let bytes = future_bytes(Connection::serve);
        assert!(bytes <= 128, "the future has {bytes} bytes: move what it holds into the box of the connection");
    }
}
