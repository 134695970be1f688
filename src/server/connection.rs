//! The life of one WebSocket connection: one task, which waits for whatever comes next (a frame, a signal from the
//! hub, room in the socket, a deadline) and never for one thing alone.
//!
//! The steps it takes are in files of their own: [`inbound`](super::inbound) what a client may say,
//! [`outbound`](super::outbound) what is written and when, [`farewell`](super::closing) how it ends.

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

use super::{context::Shared, frame_rate::FrameBudget, heartbeat::Heartbeat, peer::Arrival, socket::Socket};
use crate::{
    auth::{AuthError, Identity},
    hub::{Attach, CloseReason, ConnectionHandle, Session, Signals, StoreError},
    protocol::close_code::CloseCode,
};

/// Rounds a connection may go before it lets others have the thread. A client that reads fast and is owed much would
/// otherwise keep one for as long as its backlog lasts.
const ROUNDS_MAX: usize = 8;

/// Why a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The peer closed, or is gone: there is nobody to tell.
    Gone,
    /// We close, and say this.
    Close(CloseCode, &'static str),
    /// We close because the server stops: nothing is wrong with the client, and what it says until it hears of that counts.
    Stopping,
    /// We close with a code of the program that the server is part of.
    Told(u16),
    /// The peer takes nothing of what was written: it would not take a close frame either.
    Stuck,
}

impl End {
    pub(super) fn close(code: CloseCode) -> Self {
        Self::Close(code, code.reason())
    }
}

/// An authentication under way.
pub(super) struct Authenticating {
    pub checking: BoxFuture<'static, Result<Identity, AuthError>>,
    pub how: Attach,
}

/// A client that has shown who it is, on its way to its log.
pub(super) struct Attaching {
    pub session: BoxFuture<'static, Result<Session, StoreError>>,
    /// What it is answered.
    pub frame: String,
    /// It resumes (`after`), so its deliveries are not held back.
    pub resumes: bool,
    /// When what it showed stops being true.
    pub expires: Option<SystemTime>,
}

/// One connection.
pub(super) struct Connection {
    pub shared: Arc<Shared>,
    pub socket: Socket,
    /// Taken out first at the end: nothing more is to be left for a connection that is closing.
    pub session: Option<Session>,
    pub connected: ConnectionHandle,
    pub heartbeat: Heartbeat,
    pub authenticating: Option<Authenticating>,
    pub attaching: Option<Attaching>,
    /// By then the client has authenticated, or is closed; `None` once it has.
    pub authenticate_by: Option<Instant>,
    /// When what the client showed stops being true.
    pub expires: Option<SystemTime>,
    pub budget: FrameBudget,
    /// Unsynced messages are waiting in the mailbox.
    pub unsynced: bool,
    /// Until then every delivery is held back, unless op 1 is answered before (see [`hold`](super::hold)).
    pub held_until: Option<Instant>,
    /// When the next entry is due, if the session is waiting for that.
    pub paced_until: Option<Instant>,
    /// Since when the socket has taken nothing of what is waiting.
    pub stuck_since: Option<Instant>,
    /// What the peer said when it closed, if it did.
    pub goodbye: Option<Box<(u16, String)>>,
    timer: Timer,
}

impl Connection {
    /// Greets a new client and serves it until it goes or has to go.
    ///
    /// Built here and boxed, so that the task holds a pointer and not several places for a connection to be in.
    pub(super) fn serve(
        shared: Arc<Shared>,
        socket: Socket,
        from: Option<SocketAddr>,
        arrival: Option<Arrival>,
    ) -> impl Future<Output = ()> + Send {
        let connected = shared.hub.connect_from(from.map(|from| from.ip()), |id| {
            if let (Some(calls), Some(arrival)) = (&shared.calls, arrival) {
                calls.arrives(id, arrival);
            }
        });
        let now = Instant::now();
        let heart = &shared.config.heartbeat;
        let nonce = shared.nonce();
        let heartbeat = Heartbeat::new(heart.enabled, heart.interval, heart.max_attempts, nonce, now);
        let mut connection = Box::new(Self {
            // Where nobody can authenticate nobody is sent away for not having done so.
            authenticate_by: shared.authenticator.is_some().then(|| now + shared.config.authentication.timeout),
            budget: FrameBudget::new(shared.config.limits.frames_per_second, now),
            shared,
            socket,
            session: None,
            connected,
            heartbeat,
            authenticating: None,
            attaching: None,
            expires: None,
            unsynced: false,
            held_until: None,
            paced_until: None,
            stuck_since: None,
            goodbye: None,
            timer: Timer::default(),
        });
        connection.shared.metrics.connections_total.inc();
        connection.shared.metrics.connections.inc();
        connection.greet();
        async move {
            let end = poll_fn(|cx| connection.poll_end(cx)).await;
            connection.shared.metrics.connections.dec();
            if let Some(bytes_left) = connection.farewell(end).await {
                // The rest is dropped here: the connection has ended for everyone but its peer.
                connection.into_socket().linger(bytes_left).await;
            }
        }
    }

    fn into_socket(self: Box<Self>) -> Socket {
        self.socket
    }

    /// Does everything that can be done now; ready when the connection has to end.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        for _ in 0..ROUNDS_MAX {
            let now = Instant::now();
            match self.round(cx, now) {
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

    /// One round; true if there may be more to do at once.
    fn round(&mut self, cx: &mut Context<'_>, now: Instant) -> Result<bool, End> {
        if let Poll::Ready(signals) = self.connected.mailbox().poll_signals(cx) {
            self.heed(signals)?;
        }
        self.check_deadlines(now)?;
        self.release_if_due(now);
        let mut busy = self.poll_inbound(cx, now)?;
        // Behind the frames, because one of them may just have begun it, and nobody has asked it to wake us yet.
        busy |= self.poll_authentication(cx, now)?;
        busy |= self.poll_attaching(cx, now)?;
        self.fill(cx, now)?;
        self.ask(now)?;
        busy |= self.poll_write(cx, now)?;
        Ok(busy)
    }

    fn heed(&mut self, signals: Signals) -> Result<(), End> {
        match signals.close {
            Some(CloseReason::WithCode(code)) => return Err(End::Told(code)),
            Some(CloseReason::Requested) => return Err(End::close(CloseCode::Normal)),
            Some(CloseReason::Shutdown) => return Err(End::Stopping),
            Some(CloseReason::StoreFailed) => return Err(End::close(CloseCode::Internal)),
            None => {}
        }
        self.unsynced |= signals.unsynced;
        if let (true, Some(session)) = (signals.log, &mut self.session) {
            session.log_has_more();
        }
        Ok(())
    }

    fn check_deadlines(&mut self, now: Instant) -> Result<(), End> {
        if self.authenticate_by.is_some_and(|by| by <= now) {
            self.shared.metrics.authentication_failures.inc();
            return Err(End::Close(CloseCode::Policy, "authentication timed out"));
        }
        if self.expires.is_some_and(|at| at <= SystemTime::now()) {
            return Err(End::Close(CloseCode::Policy, "the token has expired"));
        }
        if self.stuck_since.is_some_and(|since| since + self.shared.config.limits.write_timeout <= now) {
            return Err(End::Stuck);
        }
        Ok(())
    }

    /// When something has to be done although nothing has happened.
    fn deadline(&self) -> Option<Instant> {
        let stuck = self.stuck_since.map(|since| since + self.shared.config.limits.write_timeout);
        // The clock of the calendar may be set; looking again once a minute bounds what that can do.
        let expires = self.expires.map(|at| {
            let left = at.duration_since(SystemTime::now()).unwrap_or(Duration::ZERO);
            Instant::now() + left.min(Duration::from_secs(60)) + Duration::from_millis(1)
        });
        let heartbeat = self.heartbeat.deadline(self.wants_receipt());
        [self.authenticate_by, expires, stuck, self.held_until, self.paced_until, heartbeat].into_iter().flatten().min()
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("session", &self.session).finish_non_exhaustive()
    }
}

/// One timer for all deadlines of a connection, made when the first is needed.
#[derive(Default)]
struct Timer {
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Timer {
    /// True if `deadline` has passed; otherwise the task is woken when it has.
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
