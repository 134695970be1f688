//! Writes to a client: the first frame, unsynced messages, log entries, the heartbeat.
//!
//! All frames go into one buffer, and from there to the socket in one call. While `limits.unsentBytes` or more are in
//! the buffer, no message is added. This is the backpressure of a slow client: the server reads its log slowly.

use std::{
    task::{Context, Poll},
    time::Instant,
};

use super::{
    connection::{Connection, End},
    failpoints::corrupt_batch,
    inbound::UNSENT_WHILE_READING_MAX,
};
use crate::{
    config::Confirmation,
    health::LogLimit,
    hub::{Batch, Entry, Gap, Resumed, Session},
    message::Payload,
    protocol::{close_code::CloseCode, encode},
};

/// A damaged log fails each connection of its user, so the log line is rate-limited.
static UNREADABLE: LogLimit = LogLimit::new();

impl Connection {
    /// Writes the first frame.
    pub(super) fn push_hello(&mut self) {
        let hello = self.context.hello.clone();
        self.push(&hello);
    }

    /// Puts an encoded frame into the buffer.
    pub(super) fn push(&mut self, text: &str) {
        self.socket.push_text(text.len(), |out| out.extend_from_slice(text.as_bytes()));
    }

    fn push_delivery(&mut self, payload: &Payload, position: Option<u64>) {
        let bytes = encode::delivery_len(payload, position);
        self.socket.push_text(bytes, |out| encode::delivery(payload, position, out));
        self.context.metrics.deliveries.inc();
    }

    /// Fills the buffer with deliveries, unless they are held back.
    pub(super) fn fill_buffer(&mut self, cx: &mut Context<'_>, now: Instant) -> Result<(), End> {
        if self.held_until.is_some() {
            return Ok(());
        }
        self.fill_unsynced();
        self.fill_from_log(cx, now)
    }

    /// Returns the bytes that deliveries may add to the buffer; `None` if it is full.
    fn space(&self) -> Option<usize> {
        let space = self.context.live.load().limits.unsent_bytes.saturating_sub(self.socket.unsent());
        (space > 0).then_some(space)
    }

    fn fill_unsynced(&mut self) {
        // At most half of the buffer, so that unsynced messages do not delay stored ones.
        let half = self.context.live.load().limits.unsent_bytes / 2;
        while self.unsynced && self.socket.unsent() <= half {
            match self.hub_handle.mailbox().take() {
                Some(payload) => self.push_delivery(&payload, None),
                None => self.unsynced = false,
            }
        }
    }

    fn fill_from_log(&mut self, cx: &mut Context<'_>, now: Instant) -> Result<(), End> {
        self.paced_until = None;
        while let Some(space) = self.space() {
            let Some(session) = &mut self.session else { return Ok(()) };
            match session.poll_batch(cx, now, space) {
                Poll::Pending | Poll::Ready(Ok(Batch::Idle)) => return Ok(()),
                Poll::Ready(Ok(Batch::Entries(entries))) => {
                    for entry in &corrupt_batch(entries) {
                        self.deliver(entry, now)?;
                    }
                }
                Poll::Ready(Ok(Batch::Resumed(resumed))) => self.push_resumed(&resumed),
                Poll::Ready(Ok(Batch::WaitUntil(due))) => {
                    self.paced_until = Some(due);
                    return Ok(());
                }
                Poll::Ready(Err(error)) => {
                    if let Some(suppressed) = UNREADABLE.due("log") {
                        tracing::error!(%error, suppressed, "a log could not be read");
                    }
                    self.hub_handle.report_error(&error);
                    return Err(End::close(CloseCode::Internal));
                }
            }
        }
        Ok(())
    }

    fn deliver(&mut self, entry: &Entry, now: Instant) -> Result<(), End> {
        let Some(session) = &mut self.session else { return Ok(()) };
        let position = session.accept(entry, now).map_err(|_| End::close(CloseCode::Internal))?;
        self.push_delivery(&entry.payload, position);
        self.frame_rate.expect_acknowledgement();
        Ok(())
    }

    /// Sends a resuming client the range of its log: one frame for each gap, at least one.
    fn push_resumed(&mut self, resumed: &Resumed) {
        let Resumed { first, last, missed } = resumed;
        self.frame_rate.expect_acknowledgement();
        if missed.is_empty() {
            self.push(&encode::resumed(*first, *last, None));
        }
        for Gap { from, to, reason } in missed {
            self.push(&encode::resumed(*first, *last, Some((*from, *to, reason.as_str()))));
        }
    }

    /// Sends op 1 and pings that are due.
    pub(super) fn send_heartbeat(&mut self, now: Instant) -> Result<(), End> {
        let probes = self.heartbeat.due_probes(now, self.position_to_acknowledge());
        if probes.timed_out {
            return Err(End::Close(CloseCode::GoingAway, "the heartbeat was not answered"));
        }
        if let Some(retry) = probes.heartbeat {
            self.push(&encode::heartbeat(retry));
        }
        if let Some(payload) = probes.ping {
            self.socket.push_ping(payload.to_vec());
        }
        Ok(())
    }

    /// Returns the position that an acknowledgement would cover; `None` with `sync.confirmation: 'write'`.
    pub(super) fn position_to_acknowledge(&self) -> Option<crate::hub::SentPosition> {
        match self.context.config.sync.confirmation {
            Confirmation::Receipt => self.session.as_ref().and_then(Session::unacknowledged),
            Confirmation::Write => None,
        }
    }

    /// Writes the buffer to the socket; true if reading or filling can continue.
    pub(super) fn poll_write(&mut self, cx: &mut Context<'_>, now: Instant) -> Result<bool, End> {
        if self.socket.unsent() == 0 {
            self.acknowledge_written();
            return Ok(false);
        }
        // Filling and reading may have stopped for lack of space; both can continue now.
        let unsynced = self.unsynced && self.held_until.is_none();
        let was_full = self.space().is_none() || unsynced || self.socket.unsent() > UNSENT_WHILE_READING_MAX;
        let (written, done) = self.socket.poll_write_out(cx);
        match done {
            Poll::Ready(Ok(())) => {
                self.stalled_since = None;
                self.acknowledge_written();
                // If there was space before, all deliveries have just been written.
                Ok(was_full)
            }
            Poll::Ready(Err(_)) => Err(End::Gone),
            Poll::Pending => {
                if written > 0 || self.stalled_since.is_none() {
                    self.stalled_since = Some(now);
                }
                Ok(false)
            }
        }
    }

    /// Acknowledges everything written, with `sync.confirmation: 'write'`.
    fn acknowledge_written(&mut self) {
        if self.context.config.sync.confirmation == Confirmation::Write
            && let Some(session) = &mut self.session
            && let Some(position) = session.unacknowledged()
        {
            session.acknowledge(position);
        }
    }
}
