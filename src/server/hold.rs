//! Holds back the deliveries of a new session until shortly after the client has answered the op 1 that follows op 22.
//!
//! Op 22 and the first message may arrive in one TCP read. A client in Node then handles both before the continuation
//! of `await client.authenticate(…)` runs, so an application that registers its message handler there loses that
//! message.
//!
//! Nothing is copied meanwhile: synced messages stay in the log, unsynced ones in the bounded mailbox.

use std::time::{Duration, Instant};

use super::connection::Connection;
use crate::protocol::encode;

/// Maximum time for which deliveries are held back. Then they start without an answer, for clients that never answer op
/// 1.
const HOLD_TIMEOUT: Duration = Duration::from_millis(250);

/// Delay of the deliveries after the answer, within [`HOLD_TIMEOUT`].
///
/// The client library answers at once. An application may register its handler a moment later, in a timer or after
/// reading a file. With the original server it received the messages, because that server queries its Redis first.
const HANDLER_DELAY: Duration = Duration::from_millis(10);

impl Connection {
    /// Sends op 1 and holds back deliveries until 10 ms after its answer, 250 ms at most.
    pub(super) fn hold(&mut self, now: Instant) {
        self.push(&encode::heartbeat(None));
        self.heartbeat.expect_authentication_ack(now);
        self.held_until = Some(now + HOLD_TIMEOUT);
    }

    /// Schedules the deliveries after the client's answer.
    pub(super) fn release_soon(&mut self, now: Instant) {
        self.held_until = self.held_until.map(|until| until.min(now + HANDLER_DELAY));
    }

    /// Starts the deliveries, and the interval before the first paced entry.
    fn release(&mut self, now: Instant) {
        if self.held_until.take().is_some()
            && let Some(session) = &mut self.session
        {
            session.start_pacing(now);
        }
    }

    /// Starts the deliveries once they are due.
    pub(super) fn release_if_due(&mut self, now: Instant) {
        if self.held_until.is_some_and(|until| until <= now) {
            self.release(now);
        }
    }
}
