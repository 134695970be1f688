//! One question for liveness and acknowledgements: op 1 asks whether the client is alive. Because a client answers in
//! order, its op 11 also proves that everything written before the question has arrived.
//!
//! WebSocket pings are the fallback for clients that never answer op 1. Some gateways answer pings themselves, so a pong
//! counts only after such a client has been silent for the whole heartbeat timeout.
//!
//! No socket and no clock here: the time is an argument, and what to send is a return value.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use crate::hub::SentPosition;

/// Minimum interval between acknowledgements requested from one client, 50 ms.
///
/// The first message after a pause is acknowledged at once. A busy client answers 20 times per second, however much it
/// receives.
const ACK_REQUEST_INTERVAL: Duration = Duration::from_millis(50);

/// Questions that a client may leave unanswered although it answers others. A client of the original leaves none. One
/// that leaves more is disconnected like a silent one.
const QUESTIONS_MAX: usize = 64;

/// What to send now.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Ask {
    /// Op 1; on a retry with the number of attempts and their limit.
    pub heartbeat: Option<Option<(u32, u32)>>,
    /// A WebSocket ping with this payload.
    pub ping: Option<[u8; 16]>,
    /// The client has been silent for too long: close the connection.
    pub timed_out: bool,
}

/// What the answer to an op 1 proves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Proof {
    /// The client is connected, and nothing else.
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
    /// Whether to ask without anything to acknowledge, and to disconnect clients that do not answer.
    enabled: bool,
    interval: Duration,
    attempts_max: u32,
    /// What each unanswered op 1 would prove, oldest first: answers come in order. At most [`QUESTIONS_MAX`].
    ///
    /// None may be dropped, or an answer would be matched with a later question.
    questions: VecDeque<Proof>,
    /// When the last question was sent.
    asked: Instant,
    attempts: u32,
    /// Whether some op 1 was answered since the last one was sent.
    heard: bool,
    /// Earliest time of the next question for an acknowledgement.
    pause_until: Instant,
    next_beat: Instant,
    /// Whether some op 1 was ever answered. Then pongs prove nothing beyond its next answer.
    answers: bool,
    pings: Pings,
}

#[derive(Debug)]
struct Pings {
    /// Distinguishes this connection's pings from those of others.
    nonce: u64,
    count: u64,
    /// Number of the last ping that was answered; 0 for none.
    answered: u64,
    /// What the answer to the last ping would prove.
    unanswered: Option<Option<SentPosition>>,
    /// Whether a pong came since the client's silence began.
    heard: bool,
    /// Whether the client proves its liveness by pongs.
    trusted: bool,
}

impl Heartbeat {
    pub(super) fn new(enabled: bool, interval: Duration, attempts_max: u32, nonce: u64, now: Instant) -> Self {
        Self {
            enabled,
            interval,
            attempts_max,
            questions: VecDeque::new(),
            asked: now,
            attempts: 0,
            heard: false,
            pause_until: now,
            next_beat: now + interval,
            answers: false,
            pings: Pings { nonce, count: 0, answered: 0, unanswered: None, heard: false, trusted: false },
        }
    }

    /// Returns what to send now; `unacknowledged` is the position that an answer would acknowledge.
    pub(super) fn ask(&mut self, now: Instant, unacknowledged: Option<SentPosition>) -> Ask {
        let mut ask = Ask::default();
        if !self.waits_for_answer() {
            let receipt = unacknowledged.is_some() && now >= self.pause_until;
            if receipt || (self.enabled && now >= self.next_beat) {
                (self.attempts, self.asked) = (0, now);
                self.pause_until = now + ACK_REQUEST_INTERVAL;
                self.next_beat = now + self.interval;
                if self.pings.trusted {
                    ask.ping = Some(self.pings.next(unacknowledged));
                } else {
                    (self.heard, self.pings.heard) = (false, false);
                    self.questions.push_back(Proof::of(unacknowledged));
                    ask.heartbeat = Some(None);
                }
            }
            return ask;
        }
        if now < self.asked + self.interval {
            return ask;
        }
        self.asked = now;
        if self.enabled && std::mem::take(&mut self.heard) && self.questions.len() < QUESTIONS_MAX {
            // The client answered something since, so this is no retry. Its unanswered questions stay queued.
            self.questions.push_back(Proof::of(unacknowledged));
            ask.heartbeat = Some(None);
            return ask;
        }
        self.attempts += 1;
        if self.attempts > self.attempts_max {
            if self.pings.heard && !self.answers && !self.pings.trusted {
                self.pings.trusted = true;
                self.questions.clear();
                self.attempts = 0;
            } else if self.enabled {
                ask.timed_out = true;
                return ask;
            } else {
                // Without heartbeats a silent client is not disconnected; its messages stay in the log.
                self.attempts = self.attempts_max;
            }
        }
        if self.enabled && !self.pings.trusted {
            if self.questions.len() >= QUESTIONS_MAX {
                ask.timed_out = true;
                return ask;
            }
            self.questions.push_back(Proof::of(unacknowledged));
            ask.heartbeat = Some(Some((self.attempts, self.attempts_max)));
        }
        // A client that has not answered op 1 yet may answer either way.
        if !self.answers {
            ask.ping = Some(self.pings.next(unacknowledged));
        }
        ask
    }

    /// Records the op 1 that follows op 22; [`Heartbeat::answered`] returns [`Proof::Authenticated`] for its answer.
    ///
    /// It does not delay the first question for an acknowledgement: a client may disconnect right after its backlog.
    pub(super) fn ask_authenticated(&mut self, now: Instant) {
        if !self.waits_for_answer() {
            (self.attempts, self.asked) = (0, now);
            (self.heard, self.pings.heard) = (false, false);
        }
        self.next_beat = now + self.interval;
        self.questions.push_back(Proof::Authenticated);
    }

    /// Takes an op 11 and returns what it proves; `None` if no op 1 is unanswered.
    pub(super) fn answered(&mut self, now: Instant) -> Option<Proof> {
        let proof = self.questions.pop_front()?;
        self.answers = true;
        self.heard = true;
        (self.attempts, self.asked) = (0, now);
        if proof == Proof::Authenticated && self.questions.is_empty() {
            // Every client is asked this once. Most then stay idle and need no queue.
            self.questions = VecDeque::new();
        }
        Some(proof)
    }

    /// Reports whether an op 1 is unanswered, so that an op 11 would be its answer.
    pub(super) fn expects_answer(&self) -> bool {
        !self.questions.is_empty()
    }

    /// Reports whether a pong with this payload would answer a ping, even late.
    pub(super) fn expects_pong(&self, payload: &[u8]) -> bool {
        self.pings.number_of(payload).is_some_and(|number| number > self.pings.answered)
    }

    /// Takes a pong and returns what it proves. Only the payload of our last ping proves anything.
    pub(super) fn pong(&mut self, payload: &[u8]) -> Option<SentPosition> {
        let number = self.pings.number_of(payload)?;
        self.pings.answered = self.pings.answered.max(number);
        if number != self.pings.count {
            return None;
        }
        let position = self.pings.unanswered.take()?;
        self.pings.heard = true;
        if self.pings.trusted { position } else { None }
    }

    /// Returns when [`Heartbeat::ask`] has to be called next without another event.
    pub(super) fn deadline(&self, unacknowledged: Option<SentPosition>) -> Option<Instant> {
        if self.waits_for_answer() {
            return (self.enabled || !self.answers).then(|| self.asked + self.interval);
        }
        let receipt = unacknowledged.map(|_| self.pause_until);
        let beat = self.enabled.then_some(self.next_beat);
        match (receipt, beat) {
            (Some(receipt), Some(beat)) => Some(receipt.min(beat)),
            (one, other) => one.or(other),
        }
    }

    fn waits_for_answer(&self) -> bool {
        if self.pings.trusted { self.pings.unanswered.is_some() } else { !self.questions.is_empty() }
    }
}

impl Pings {
    fn next(&mut self, position: Option<SentPosition>) -> [u8; 16] {
        self.count += 1;
        self.unanswered = Some(position);
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
