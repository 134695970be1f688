//! How a connection ends: the session first, so that nothing more is left for it, then the socket. Where the server stops
//! it is the other way round.

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
    protocol::close_code::CloseCode,
};

/// A client can do so as often as it connects.
static CUT: LogLimit = LogLimit::new();

/// How long a peer has to take our close frame and to answer it.
const FAREWELL_MAX: Duration = Duration::from_secs(2);

/// Frames of a peer that are read while waiting for its close frame; what follows is discarded unread.
const LAST_FRAMES_MAX: usize = 1024;

/// What a peer says until it closes too.
struct LastWords {
    /// How much it was.
    frames: usize,
    /// They are taken, and not read past.
    heard: bool,
    /// It has closed too, or the connection is broken: nothing more comes.
    closed: bool,
    /// Bytes that may still be discarded.
    bytes_left: usize,
}

impl Connection {
    /// Detaches the session, says why, and closes the socket within [`FAREWELL_MAX`].
    ///
    /// A client whose server stops cannot know before our close frame has reached it: what it has said to the application
    /// by then is still taken, and what it confirms counts: so its session ends last. Everybody else is no longer heard.
    ///
    /// Bytes that [`linger`](super::socket::Socket::linger) may still discard, if the peer may be sending.
    pub(super) async fn farewell(&mut self, end: End) -> Option<usize> {
        if !matches!(end, End::Stopping) {
            drop(self.session.take());
        }
        let mut last = LastWords { frames: 0, heard: false, closed: false, bytes_left: LINGER_BYTES_MAX };
        match end {
            End::Stuck => {
                info_seldom!(CUT, "a client took nothing for too long and was cut; what it was owed stays in its log");
                return None;
            }
            End::Gone => {
                last.closed = true;
                if let Some(goodbye) = self.goodbye.take() {
                    self.connected.set_close(goodbye.0, &goodbye.1);
                }
            }
            End::Told(code) => self.closes(code, ""),
            End::Close(code, reason) => self.closes(code.code(), reason),
            End::Stopping => {
                self.closes(CloseCode::GoingAway.code(), CloseCode::GoingAway.reason());
                // What was said behind an authentication is to be heard as him who it lets in, and it lets in nobody now.
                last.heard = self.authenticating.is_none() && self.attaching.is_none();
            }
        }
        // Whoever does not take part in the farewell is cut: there is nothing left to lose here.
        let over = tokio::time::timeout(FAREWELL_MAX, poll_fn(|cx| self.poll_farewell(cx, &mut last))).await;
        drop(self.session.take());
        (over.is_ok() && !last.closed).then_some(last.bytes_left)
    }

    fn closes(&mut self, code: u16, reason: &str) {
        self.connected.set_close(code, reason);
        self.socket.push_close(code, reason);
    }

    fn poll_farewell(&mut self, cx: &mut Context<'_>, last: &mut LastWords) -> Poll<()> {
        if let Poll::Ready(Err(_)) = self.socket.poll_write_out(cx).1 {
            last.closed = true;
            return Poll::Ready(());
        }
        // Also while the close frame cannot be written: the peer may be blocked on what it is sending itself.
        self.hear_out(cx, last);
        if last.frames < LAST_FRAMES_MAX {
            // Reading a ping may have left a pong behind.
            if let Poll::Ready(Err(_)) = self.socket.poll_write_out(cx).1 {
                last.closed = true;
                return Poll::Ready(());
            }
            return Poll::Pending;
        }
        last.closed |= self.socket.poll_discard(cx, &mut last.bytes_left).is_ready();
        // Reading may have left an answer to the peer's own close frame.
        if self.socket.poll_write_out(cx).1.is_pending() {
            return Poll::Pending;
        }
        self.socket.poll_shutdown(cx).map(|_| ())
    }

    /// Reads what the peer still says, until nothing more is there or it was enough.
    fn hear_out(&mut self, cx: &mut Context<'_>, last: &mut LastWords) {
        while last.frames < LAST_FRAMES_MAX {
            // As ever, it waits where it is until there is room for it.
            if last.heard && self.connected.poll_ready(cx).is_pending() {
                return;
            }
            let Poll::Ready(said) = self.socket.poll_inbound(cx) else { return };
            last.frames += 1;
            match said {
                Inbound::Closed(goodbye) => {
                    last.closed |= goodbye.is_some();
                    last.frames = LAST_FRAMES_MAX;
                }
                Inbound::Refused(..) => last.frames = LAST_FRAMES_MAX,
                Inbound::Fragments(count) => last.frames += count as usize,
                Inbound::Text(text) if last.heard => last.heard = self.hear_last(text.as_str(), Instant::now()),
                Inbound::Pong(payload) if last.heard => self.arrived(&payload),
                Inbound::Text(_) | Inbound::Ping | Inbound::Pong(_) => {}
            }
        }
    }
}
