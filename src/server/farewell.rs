//! How a connection ends: the session first, so that nothing more is left for it, then the socket.

use std::{
    future::poll_fn,
    task::{Context, Poll},
    time::Duration,
};

use super::{
    connection::{Connection, End},
    socket::Inbound,
};

/// How long a peer has to take our close frame and to answer it.
const FAREWELL_MAX: Duration = Duration::from_secs(2);

/// Frames of a peer that are read past while waiting for its close frame.
const FRAMES_PAST_MAX: usize = 1024;

impl Connection {
    /// Detaches the session, says why, and closes the socket within [`FAREWELL_MAX`].
    pub(super) async fn farewell(&mut self, end: End) {
        drop(self.session.take());
        let goodbye = self.goodbye.take();
        match (&end, &goodbye) {
            (End::Gone, Some(goodbye)) => self.connected.ends(goodbye.0, &goodbye.1),
            (End::Gone | End::Stuck, _) => {}
            (End::Told(code), _) => self.connected.ends(*code, ""),
            (End::Close(code, reason), _) => self.connected.ends(code.code(), reason),
        }
        match end {
            End::Stuck => {
                tracing::info!("a client took nothing for too long and was cut; what it was owed stays in its log");
                return;
            }
            End::Gone => {}
            End::Told(code) => self.socket.push_close(code, ""),
            End::Close(code, reason) => self.socket.push_close(code.code(), reason),
        }
        let mut frames = 0;
        // Whoever does not take part in the farewell is cut: there is nothing left to lose here.
        _ = tokio::time::timeout(FAREWELL_MAX, poll_fn(|cx| self.poll_farewell(cx, &mut frames))).await;
    }

    fn poll_farewell(&mut self, cx: &mut Context<'_>, frames: &mut usize) -> Poll<()> {
        let (_, written) = self.socket.poll_write_out(cx);
        match written {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Err(_)) => return Poll::Ready(()),
            Poll::Ready(Ok(())) => {}
        }
        loop {
            match self.socket.poll_inbound(cx) {
                Poll::Pending => break,
                Poll::Ready(Inbound::Closed(_) | Inbound::Refused(_)) => *frames = FRAMES_PAST_MAX,
                Poll::Ready(_) => *frames += 1,
            }
            if *frames >= FRAMES_PAST_MAX {
                // Reading may have left an answer to the peer's own close frame.
                if self.socket.poll_write_out(cx).1.is_pending() {
                    return Poll::Pending;
                }
                return self.socket.poll_shutdown(cx).map(|_| ());
            }
        }
        // Reading a ping leaves a pong behind.
        if self.socket.unsent() > 0 {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }
}
