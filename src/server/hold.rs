//! Holds back every delivery of a new session until the client has answered the op 1 that follows op 22.
//!
//! Op 22 and the first message may arrive in one TCP read. A client in Node then handles both before the continuation of
//! `await client.authenticate(…)` runs, so an application that registers its message handler there loses that message.
//!
//! Nothing is copied while deliveries are held: synced messages stay in the log, unsynced ones in the bounded mailbox.

use std::time::{Duration, Instant};

use super::connection::Connection;
use crate::protocol::encode;

/// Longest time deliveries are held back; then they start without an answer. For clients that never answer op 1.
const HOLD_TIMEOUT: Duration = Duration::from_millis(250);

impl Connection {
    /// Sends op 1 and holds back deliveries until its answer, 250 ms at most.
    pub(super) fn hold(&mut self, now: Instant) {
        self.push(&encode::heartbeat(None));
        self.heartbeat.ask_authenticated(now);
        self.held_until = Some(now + HOLD_TIMEOUT);
    }

    /// Starts the deliveries that were held back; the pause before the first paced message begins here.
    pub(super) fn release(&mut self, now: Instant) {
        if self.held_until.take().is_some()
            && let Some(session) = &mut self.session
        {
            session.start_pacing(now);
        }
    }

    /// Starts the deliveries once [`HOLD_TIMEOUT`] has passed.
    pub(super) fn release_if_due(&mut self, now: Instant) {
        if self.held_until.is_some_and(|until| until <= now) {
            self.release(now);
        }
    }
}
