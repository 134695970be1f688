//! What is written to a client and when: the greeting, unsynced messages, entries of the log, the heartbeat.
//!
//! Everything goes into one buffer and from there to the socket in one call. Nothing is put in while more than
//! `limits.unsentBytes` are waiting there, so a client that reads slowly is simply read for slowly.

use std::{
    task::{Context, Poll},
    time::Instant,
};

use super::{
    connection::{Connection, End},
    failpoints::mix_up,
    inbound::UNSENT_WHILE_LISTENING_MAX,
};
use crate::{
    config::Confirmation,
    health::LogLimit,
    hub::{Batch, Entry, Missed, Resumed, Session},
    message::Payload,
    protocol::{close_code::CloseCode, encode},
};

/// A log that is damaged fails each connection of its user.
static UNREAD: LogLimit = LogLimit::new();

impl Connection {
    /// The first frame.
    pub(super) fn greet(&mut self) {
        let hello = self.shared.hello.clone();
        self.push(&hello);
    }

    /// Puts a ready frame into the buffer.
    pub(super) fn push(&mut self, text: &str) {
        self.socket.push_text(text.len(), |out| out.extend_from_slice(text.as_bytes()));
    }

    fn push_delivery(&mut self, payload: &Payload, position: Option<u64>) {
        let bytes = encode::delivery_len(payload, position);
        self.socket.push_text(bytes, |out| encode::delivery(payload, position, out));
        self.shared.metrics.deliveries.inc();
    }

    /// Fills the buffer with what is to be delivered, unless deliveries are held back.
    pub(super) fn fill(&mut self, cx: &mut Context<'_>, now: Instant) -> Result<(), End> {
        if self.held_until.is_some() {
            return Ok(());
        }
        self.fill_unsynced();
        self.fill_from_log(cx, now)
    }

    fn room(&self) -> Option<usize> {
        let room = self.shared.config.limits.unsent_bytes.saturating_sub(self.socket.unsent());
        (room > 0).then_some(room)
    }

    fn fill_unsynced(&mut self) {
        // Half of the room at most: what is only worth something now must not keep out what was promised.
        let half = self.shared.config.limits.unsent_bytes / 2;
        while self.unsynced && self.socket.unsent() <= half {
            match self.connected.mailbox().take() {
                Some(payload) => self.push_delivery(&payload, None),
                None => self.unsynced = false,
            }
        }
    }

    fn fill_from_log(&mut self, cx: &mut Context<'_>, now: Instant) -> Result<(), End> {
        self.paced_until = None;
        while let Some(room) = self.room() {
            let Some(session) = &mut self.session else { return Ok(()) };
            match session.poll_batch(cx, now, room) {
                Poll::Pending | Poll::Ready(Ok(Batch::Idle)) => return Ok(()),
                Poll::Ready(Ok(Batch::Entries(entries))) => {
                    for entry in &mix_up(entries) {
                        self.deliver(entry, now)?;
                    }
                }
                Poll::Ready(Ok(Batch::Resumed(resumed))) => self.push_resumed(&resumed),
                Poll::Ready(Ok(Batch::WaitUntil(due))) => {
                    self.paced_until = Some(due);
                    return Ok(());
                }
                Poll::Ready(Err(error)) => {
                    if let Some(suppressed) = UNREAD.due("log") {
                        tracing::error!(%error, suppressed, "a log could not be read");
                    }
                    self.connected.report_error(&error);
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
        self.budget.expect_acknowledgement();
        Ok(())
    }

    /// Tells a client that resumes what there is, and what is not there any more: each range in a frame of its own.
    fn push_resumed(&mut self, resumed: &Resumed) {
        let Resumed { first, last, missed } = resumed;
        self.budget.expect_acknowledgement();
        if missed.is_empty() {
            self.push(&encode::resumed(*first, *last, None));
        }
        for Missed { from, to, reason } in missed {
            self.push(&encode::resumed(*first, *last, Some((*from, *to, reason.as_str()))));
        }
    }

    /// Asks what the heartbeat wants to know.
    pub(super) fn ask(&mut self, now: Instant) -> Result<(), End> {
        let ask = self.heartbeat.ask(now, self.wants_receipt());
        if ask.give_up {
            return Err(End::Close(CloseCode::GoingAway, "the heartbeat was not answered"));
        }
        if let Some(retry) = ask.heartbeat {
            self.push(&encode::heartbeat(retry));
        }
        if let Some(payload) = ask.ping {
            self.socket.push_ping(payload.to_vec());
        }
        Ok(())
    }

    /// What a receipt would prove now; nothing where being written counts as received.
    pub(super) fn wants_receipt(&self) -> Option<crate::hub::SentPosition> {
        match self.shared.config.sync.confirmation {
            Confirmation::Receipt => self.session.as_ref().and_then(Session::unacknowledged),
            Confirmation::Write => None,
        }
    }

    /// Hands the buffer to the system; true if it became empty, so that it can be filled again.
    pub(super) fn poll_write(&mut self, cx: &mut Context<'_>, now: Instant) -> Result<bool, End> {
        if self.socket.unsent() == 0 {
            self.confirm_written();
            return Ok(false);
        }
        // Of what was not done for want of room, all can be done now: filling, and listening.
        let unsynced = self.unsynced && self.held_until.is_none();
        let full = self.room().is_none() || unsynced || self.socket.unsent() > UNSENT_WHILE_LISTENING_MAX;
        let (went, done) = self.socket.poll_write_out(cx);
        match done {
            Poll::Ready(Ok(())) => {
                self.stuck_since = None;
                self.confirm_written();
                // Where there was room before, everything there was to write is in what has just been written.
                Ok(full)
            }
            Poll::Ready(Err(_)) => Err(End::Gone),
            Poll::Pending => {
                if went > 0 || self.stuck_since.is_none() {
                    self.stuck_since = Some(now);
                }
                Ok(false)
            }
        }
    }

    /// Where being written counts as received, takes note of it.
    fn confirm_written(&mut self) {
        if self.shared.config.sync.confirmation == Confirmation::Write
            && let Some(session) = &mut self.session
            && let Some(mark) = session.unacknowledged()
        {
            session.acknowledge(mark);
        }
    }
}
