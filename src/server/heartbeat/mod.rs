//! Heartbeats: op 1 probes the client's liveness, and requests an acknowledgement.
//!
//! A client answers each op 1 by an op 11, in order. So an op 11 also proves that everything written before its op 1
//! has arrived.
//!
//! WebSocket pings are the fallback for clients that never answer op 1. Some gateways answer pings themselves, so pongs
//! count only after the client has answered no op 1 for the whole heartbeat timeout.
//!
//! This module uses no socket and no clock: the time is an argument, and the frames to send are a return value.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use crate::hub::SentPosition;

/// Minimum interval between acknowledgements requested from one client, 50 ms.
///
/// The first message after a pause is acknowledged at once. A busy client answers at most 20 times per second.
const ACK_REQUEST_INTERVAL: Duration = Duration::from_millis(50);

/// Maximum of unanswered op 1 of a client that answers others. Beyond it the client is disconnected like a silent one.
///
/// A client of the original answers all.
const UNANSWERED_MAX: usize = 64;

/// Frames to send now.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct DueProbes {
    /// Op 1; on a retry with the number of attempts and their limit.
    pub heartbeat: Option<Option<(u32, u32)>>,
    /// A WebSocket ping with this payload.
    pub ping: Option<[u8; 16]>,
    /// Whether the heartbeat timeout has passed, so that the connection must be closed.
    pub timed_out: bool,
}

/// Fact that the answer to an op 1 proves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Proof {
    /// The client is connected.
    Alive,
    /// The client has received everything up to this position.
    Received(SentPosition),
    /// The client has received op 22, so its application can register its message handler.
    Authenticated,
}

impl Proof {
    fn of(unacknowledged: Option<SentPosition>) -> Self {
        unacknowledged.map_or(Self::Alive, Self::Received)
    }
}

/// The heartbeat of one connection.
#[derive(Debug)]
pub(super) struct Heartbeat {
    /// Whether to send op 1 without anything to acknowledge, and to disconnect clients that do not answer.
    enabled: bool,
    interval: Duration,
    attempts_max: u32,
    /// Proofs of the unanswered op 1, oldest first, at most [`UNANSWERED_MAX`].
    ///
    /// Answers arrive in order. If a proof were dropped, an answer would be matched with a later op 1.
    unanswered: VecDeque<Proof>,
    /// When the last op 1 or ping was sent, or the last op 11 arrived.
    waiting_since: Instant,
    attempts: u32,
    /// Whether an op 1 was answered since the last one was sent.
    answered_since_sent: bool,
    /// Earliest time of the next request for an acknowledgement.
    next_ack_request: Instant,
    next_due: Instant,
    /// Whether an op 1 was ever answered. Then pongs cannot become trusted.
    has_answered: bool,
    pings: Pings,
}

/// State of the fallback to WebSocket pings.
#[derive(Debug)]
struct Pings {
    /// Distinguishes this connection's pings from those of others.
    nonce: u64,
    count: u64,
    /// Number of the last ping that was answered; 0 for none.
    answered: u64,
    /// Position that an answer to the last ping proves as received; `None` once it is answered.
    last_position: Option<Option<SentPosition>>,
    /// Whether a pong has arrived since the last new op 1.
    pong_received: bool,
    /// Whether pongs count as answers.
    trusted: bool,
}

impl Heartbeat {
    pub(super) fn new(enabled: bool, interval: Duration, attempts_max: u32, nonce: u64, now: Instant) -> Self {
        Self {
            enabled,
            interval,
            attempts_max,
            unanswered: VecDeque::new(),
            waiting_since: now,
            attempts: 0,
            answered_since_sent: false,
            next_ack_request: now,
            next_due: now + interval,
            has_answered: false,
            pings: Pings { nonce, count: 0, answered: 0, last_position: None, pong_received: false, trusted: false },
        }
    }

    /// Returns the frames to send now. `unacknowledged`: the position that an answer acknowledges.
    pub(super) fn due_probes(&mut self, now: Instant, unacknowledged: Option<SentPosition>) -> DueProbes {
        let mut probes = DueProbes::default();
        if !self.awaits_answer() {
            let ack_request = unacknowledged.is_some() && now >= self.next_ack_request;
            if ack_request || (self.enabled && now >= self.next_due) {
                (self.attempts, self.waiting_since) = (0, now);
                self.next_ack_request = now + ACK_REQUEST_INTERVAL;
                self.next_due = now + self.interval;
                if self.pings.trusted {
                    probes.ping = Some(self.pings.next(unacknowledged));
                } else {
                    (self.answered_since_sent, self.pings.pong_received) = (false, false);
                    self.unanswered.push_back(Proof::of(unacknowledged));
                    probes.heartbeat = Some(None);
                }
            }
            return probes;
        }
        if now < self.waiting_since + self.interval {
            return probes;
        }
        self.waiting_since = now;
        if self.enabled && std::mem::take(&mut self.answered_since_sent) && self.unanswered.len() < UNANSWERED_MAX {
            // The client has answered an op 1 since, so this is no retry. The proofs of unanswered ones stay queued.
            self.unanswered.push_back(Proof::of(unacknowledged));
            probes.heartbeat = Some(None);
            return probes;
        }
        self.attempts += 1;
        if self.attempts > self.attempts_max {
            if self.pings.pong_received && !self.has_answered && !self.pings.trusted {
                self.pings.trusted = true;
                self.unanswered.clear();
                self.attempts = 0;
            } else if self.enabled {
                probes.timed_out = true;
                return probes;
            } else {
                // Without heartbeats a silent client is not disconnected; its messages stay in the log.
                self.attempts = self.attempts_max;
            }
        }
        if self.enabled && !self.pings.trusted {
            if self.unanswered.len() >= UNANSWERED_MAX {
                probes.timed_out = true;
                return probes;
            }
            self.unanswered.push_back(Proof::of(unacknowledged));
            probes.heartbeat = Some(Some((self.attempts, self.attempts_max)));
        }
        // A client that has not answered op 1 yet may answer either way.
        if !self.has_answered {
            probes.ping = Some(self.pings.next(unacknowledged));
        }
        probes
    }

    /// Records the op 1 that follows op 22; [`Heartbeat::on_ack`] returns [`Proof::Authenticated`] for its answer.
    ///
    /// It does not delay the first request for an acknowledgement: a client may disconnect right after its backlog.
    pub(super) fn expect_authentication_ack(&mut self, now: Instant) {
        if !self.awaits_answer() {
            (self.attempts, self.waiting_since) = (0, now);
            (self.answered_since_sent, self.pings.pong_received) = (false, false);
        }
        self.next_due = now + self.interval;
        self.unanswered.push_back(Proof::Authenticated);
    }

    /// Records an op 11 and returns its proof; `None` if no op 1 is unanswered.
    pub(super) fn on_ack(&mut self, now: Instant) -> Option<Proof> {
        let proof = self.unanswered.pop_front()?;
        self.has_answered = true;
        self.answered_since_sent = true;
        (self.attempts, self.waiting_since) = (0, now);
        if proof == Proof::Authenticated && self.unanswered.is_empty() {
            // Every client answers this once. Most clients then stay idle and need no queue.
            self.unanswered = VecDeque::new();
        }
        Some(proof)
    }

    /// Reports whether an op 1 is unanswered, so that an op 11 would be its answer.
    pub(super) fn expects_answer(&self) -> bool {
        !self.unanswered.is_empty()
    }

    /// Reports whether a pong with this payload would answer a ping, even late.
    pub(super) fn expects_pong(&self, payload: &[u8]) -> bool {
        self.pings.number_of(payload).is_some_and(|number| number > self.pings.answered)
    }

    /// Records a pong and returns the position that it proves as received. Only an answer to the last ping proves one.
    pub(super) fn on_pong(&mut self, payload: &[u8]) -> Option<SentPosition> {
        let number = self.pings.number_of(payload)?;
        self.pings.answered = self.pings.answered.max(number);
        if number != self.pings.count {
            return None;
        }
        let position = self.pings.last_position.take()?;
        self.pings.pong_received = true;
        if self.pings.trusted { position } else { None }
    }

    /// Returns when [`Heartbeat::due_probes`] has to be called next without another event.
    pub(super) fn deadline(&self, unacknowledged: Option<SentPosition>) -> Option<Instant> {
        if self.awaits_answer() {
            return (self.enabled || !self.has_answered).then(|| self.waiting_since + self.interval);
        }
        let ack_request = unacknowledged.map(|_| self.next_ack_request);
        let heartbeat = self.enabled.then_some(self.next_due);
        match (ack_request, heartbeat) {
            (Some(ack_request), Some(heartbeat)) => Some(ack_request.min(heartbeat)),
            (ack_request, heartbeat) => ack_request.or(heartbeat),
        }
    }

    fn awaits_answer(&self) -> bool {
        if self.pings.trusted { self.pings.last_position.is_some() } else { !self.unanswered.is_empty() }
    }
}

impl Pings {
    fn next(&mut self, position: Option<SentPosition>) -> [u8; 16] {
        self.count += 1;
        self.last_position = Some(position);
        self.payload()
    }

    /// Returns the ping that a pong answers; `None` if it is not one of this connection's.
    fn number_of(&self, payload: &[u8]) -> Option<u64> {
        let (nonce, number) = payload.split_at_checked(8)?;
        let number = u64::from_be_bytes(number.try_into().ok()?);
        (nonce == self.nonce.to_be_bytes() && (1..=self.count).contains(&number)).then_some(number)
    }

    fn payload(&self) -> [u8; 16] {
        let mut payload = [0; 16];
        payload[..8].copy_from_slice(&self.nonce.to_be_bytes());
        payload[8..].copy_from_slice(&self.count.to_be_bytes());
        payload
    }
}

#[cfg(test)]
mod tests;
