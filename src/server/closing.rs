//! Closes a connection: detaches the session, then the socket. On shutdown the order is reversed, so that late
//! acknowledgements count.

use std::{
    future::poll_fn,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use super::{
    connection::{Connection, End},
    socket::{Inbound, LINGER_BYTES_MAX},
};
use crate::{
    health::{LogLimit, info_seldom},
    logging::excerpt,
    protocol::close_code::CloseCode,
};

/// Limits the log lines about stalled clients: a client can cause one with each connection.
static STALLED: LogLimit = LogLimit::new();

/// Time for the peer to read the close frame and to answer it. Then the connection is dropped.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Maximum frames that are parsed while waiting for the peer's close frame. The bytes of later frames are discarded.
const CLOSING_FRAMES_MAX: usize = 1024;

/// State of the closing handshake.
struct ClosingState {
    /// Frames read so far.
    frames: usize,
    /// Whether application messages and acknowledgements of the peer still count.
    accepts: bool,
    /// Whether the peer has closed too, or the connection is broken.
    closed: bool,
    /// Bytes that may still be discarded.
    bytes_left: usize,
}

impl Connection {
    /// Detaches the session, sends the close frame, and closes the socket within [`CLOSE_TIMEOUT`].
    ///
    /// On shutdown a client sends frames until it receives the close frame. Until then its application messages are
    /// accepted and its acknowledgements count, so its session is detached last. For any other reason its frames are
    /// ignored.
    ///
    /// Returns the bytes that [`linger`](super::socket::Socket::linger) may still discard, if the peer may be sending.
    pub(super) async fn close(&mut self, end: End) -> Option<usize> {
        let left = self.close_socket(end).await;
        let (connection, peer) = self.origin();
        if let Some((code, reason)) = self.hub_handle.close() {
            tracing::debug!(connection, peer, code, reason = %excerpt(reason), "client disconnected");
        } else {
            tracing::debug!(connection, peer, "client disconnected without a close frame");
        }
        left
    }

    async fn close_socket(&mut self, end: End) -> Option<usize> {
        if !matches!(end, End::Stopping) {
            drop(self.session.take());
        }
        let mut state = ClosingState { frames: 0, accepts: false, closed: false, bytes_left: LINGER_BYTES_MAX };
        match end {
            End::Stalled => {
                let (connection, peer) = self.origin();
                info_seldom!(
                    STALLED,
                    connection,
                    peer,
                    "a client took no data within limits.writeTimeout and was disconnected; its pending messages stay in the log"
                );
                return None;
            }
            End::Gone => {
                state.closed = true;
                if let Some(peer_close) = self.peer_close.take() {
                    self.hub_handle.set_close(peer_close.0, &peer_close.1);
                }
            }
            End::Requested(code) => self.push_close(code, ""),
            End::Close(code, reason) => self.push_close(code.code(), reason),
            End::Disconnected(reason) => self.push_close(CloseCode::Normal.code(), &reason),
            End::Stopping => {
                if let Some(closing_hello) = self.context.closing_hello() {
                    self.push(&closing_hello);
                }
                self.push_close(CloseCode::GoingAway.code(), CloseCode::GoingAway.reason());
                // Frames after an authentication are of the user it admits, and it admits none now.
                state.accepts = self.authenticating.is_none() && self.attaching.is_none();
            }
        }
        // A peer that does not answer the close frame in time is disconnected: its pending messages are in the log.
        let closed = tokio::time::timeout(CLOSE_TIMEOUT, poll_fn(|cx| self.poll_close_handshake(cx, &mut state))).await;
        drop(self.session.take());
        (closed.is_ok() && !state.closed).then_some(state.bytes_left)
    }

    fn push_close(&mut self, code: u16, reason: &str) {
        self.hub_handle.set_close(code, reason);
        self.socket.push_close(code, reason);
    }

    fn poll_close_handshake(&mut self, cx: &mut Context<'_>, state: &mut ClosingState) -> Poll<()> {
        if let Poll::Ready(Err(_)) = self.socket.poll_write_out(cx).1 {
            state.closed = true;
            return Poll::Ready(());
        }
        // Also while the close frame cannot be written, because the peer may be blocked on its own writes.
        self.read_remaining(cx, state);
        if state.frames < CLOSING_FRAMES_MAX {
            // Reading a ping may have put a pong into the buffer.
            if let Poll::Ready(Err(_)) = self.socket.poll_write_out(cx).1 {
                state.closed = true;
                return Poll::Ready(());
            }
            return Poll::Pending;
        }
        state.closed |= self.socket.poll_discard(cx, &mut state.bytes_left).is_ready();
        // Reading may have put an answer to the peer's close frame into the buffer.
        if self.socket.poll_write_out(cx).1.is_pending() {
            return Poll::Pending;
        }
        self.socket.poll_shutdown(cx).map(|_| ())
    }

    /// Reads frames that have arrived, until a limit is reached.
    fn read_remaining(&mut self, cx: &mut Context<'_>, state: &mut ClosingState) {
        while state.frames < CLOSING_FRAMES_MAX {
            // As before shutdown, a message waits in the socket until the listeners have capacity.
            if state.accepts && self.hub_handle.poll_ready(cx).is_pending() {
                return;
            }
            let Poll::Ready(inbound) = self.socket.poll_inbound(cx) else { return };
            state.frames += 1;
            match inbound {
                Inbound::Closed(peer_close) => {
                    state.closed |= peer_close.is_some();
                    state.frames = CLOSING_FRAMES_MAX;
                }
                Inbound::Violation(..) => state.frames = CLOSING_FRAMES_MAX,
                Inbound::Fragments(count) => state.frames += count as usize,
                Inbound::Text(text) if state.accepts => {
                    state.accepts = self.handle_last_frame(text.as_str(), Instant::now());
                }
                Inbound::Pong(payload) if state.accepts => self.handle_pong(&payload),
                Inbound::Text(_) | Inbound::Ping | Inbound::Pong(_) => {}
            }
        }
    }
}
