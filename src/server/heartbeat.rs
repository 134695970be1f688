//! One question and one answer for two purposes: op 1 asks "are you there", and, because a client answers in order,
//! its op 11 proves that everything written before the question has arrived.
//!
//! WebSocket pings come second, for clients that never answer op 1: some gateways answer pings themselves, so a pong
//! counts only after such a client has been silent for as long as the heartbeat is patient.
//!
//! No socket and no clock here: time is handed in, and what is to be sent is handed out.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use crate::hub::SentPosition;

/// Least time between two receipts asked of one client. The first message after a pause is confirmed at once; a busy
/// client answers twenty times a second, whatever it receives.
const RECEIPT_PAUSE: Duration = Duration::from_millis(50);

/// Questions a client may leave unanswered although it answers others. A stock client leaves none; one that
/// leaves more is given up like one that is silent.
const QUESTIONS_MAX: usize = 64;

/// What is to be sent now.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Ask {
    /// Op 1; on a retry with the number of tries and their bound.
    pub heartbeat: Option<Option<(u32, u32)>>,
    /// A WebSocket ping with this payload.
    pub ping: Option<[u8; 16]>,
    /// The client has been silent for too long: close.
    pub give_up: bool,
}

/// What the answer to an op 1 proves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Proof {
    /// The client is connected, and nothing else.
    Alive,
    /// The client has received everything up to this mark.
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
    /// Ask even when there is nothing to confirm, and give up on who does not answer.
    enabled: bool,
    interval: Duration,
    max_attempts: u32,
    /// What each unanswered op 1 would prove, oldest first, for answers come in order: none may be forgotten, or an
    /// answer would be taken for that of a later one. At most [`QUESTIONS_MAX`].
    questions: VecDeque<Proof>,
    /// When the last question was asked.
    asked: Instant,
    tries: u32,
    /// Some op 1 was answered since the last was sent.
    heard: bool,
    /// Not before this is the next receipt asked for.
    pause_until: Instant,
    next_beat: Instant,
    /// Some op 1 was answered: then pongs prove nothing that its next answer would not.
    answers: bool,
    pings: Pings,
}

#[derive(Debug)]
struct Pings {
    /// Tells this connection's pings from any other's.
    nonce: u64,
    count: u64,
    /// The number of the last ping that was answered; 0 for none.
    answered: u64,
    /// What the answer to the last ping would prove.
    unanswered: Option<Option<SentPosition>>,
    /// A pong came since the client's silence began.
    heard: bool,
    /// The client is confirmed by pongs.
    trusted: bool,
}

impl Heartbeat {
    pub(super) fn new(enabled: bool, interval: Duration, max_attempts: u32, nonce: u64, now: Instant) -> Self {
        Self {
            enabled,
            interval,
            max_attempts,
            questions: VecDeque::new(),
            asked: now,
            tries: 0,
            heard: false,
            pause_until: now,
            next_beat: now + interval,
            answers: false,
            pings: Pings { nonce, count: 0, answered: 0, unanswered: None, heard: false, trusted: false },
        }
    }

    /// What is to be sent now; `unacknowledged` is what a receipt would prove.
    pub(super) fn ask(&mut self, now: Instant, unacknowledged: Option<SentPosition>) -> Ask {
        let mut ask = Ask::default();
        if !self.waits_for_answer() {
            let receipt = unacknowledged.is_some() && now >= self.pause_until;
            if receipt || (self.enabled && now >= self.next_beat) {
                (self.tries, self.asked) = (0, now);
                self.pause_until = now + RECEIPT_PAUSE;
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
            // It answered something since, so this is no retry; what it has not answered yet stays in its place.
            self.questions.push_back(Proof::of(unacknowledged));
            ask.heartbeat = Some(None);
            return ask;
        }
        self.tries += 1;
        if self.tries > self.max_attempts {
            if self.pings.heard && !self.answers && !self.pings.trusted {
                self.pings.trusted = true;
                self.questions.clear();
                self.tries = 0;
            } else if self.enabled {
                ask.give_up = true;
                return ask;
            } else {
                // Without heartbeats nobody is sent away for silence; his messages stay in the log.
                self.tries = self.max_attempts;
            }
        }
        if self.enabled && !self.pings.trusted {
            if self.questions.len() >= QUESTIONS_MAX {
                ask.give_up = true;
                return ask;
            }
            self.questions.push_back(Proof::of(unacknowledged));
            ask.heartbeat = Some(Some((self.tries, self.max_attempts)));
        }
        // Either way of answering will do from one who has not answered op 1 yet.
        if !self.answers {
            ask.ping = Some(self.pings.next(unacknowledged));
        }
        ask
    }

    /// Records the op 1 that follows op 22; [`Heartbeat::answered`] returns [`Proof::Authenticated`] for its answer.
    ///
    /// It does not delay the first receipt question: a client may disconnect right after its backlog.
    pub(super) fn ask_authenticated(&mut self, now: Instant) {
        if !self.waits_for_answer() {
            (self.tries, self.asked) = (0, now);
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
        (self.tries, self.asked) = (0, now);
        if proof == Proof::Authenticated && self.questions.is_empty() {
            // Every client is asked this once; most then stay idle and need no queue.
            self.questions = VecDeque::new();
        }
        Some(proof)
    }

    /// Whether an op 1 is unanswered, so that an op 11 would be its answer.
    pub(super) fn expects_answer(&self) -> bool {
        !self.questions.is_empty()
    }

    /// Whether a pong with this payload would be the answer to a ping, even a late one.
    pub(super) fn expects_pong(&self, payload: &[u8]) -> bool {
        self.pings.number_of(payload).is_some_and(|number| number > self.pings.answered)
    }

    /// A pong came: what it proves. One with a payload that is not our last ping's proves nothing.
    pub(super) fn pong(&mut self, payload: &[u8]) -> Option<SentPosition> {
        let number = self.pings.number_of(payload)?;
        self.pings.answered = self.pings.answered.max(number);
        if number != self.pings.count {
            return None;
        }
        let mark = self.pings.unanswered.take()?;
        self.pings.heard = true;
        if self.pings.trusted { mark } else { None }
    }

    /// When [`Heartbeat::ask`] has to be called next, if nothing else happens.
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
    fn next(&mut self, mark: Option<SentPosition>) -> [u8; 16] {
        self.count += 1;
        self.unanswered = Some(mark);
        self.payload()
    }

    /// Which ping a pong answers; `None` if it is not one of this connection's.
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
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    const MARK: Option<SentPosition> = Some(SentPosition::NONE);

    const RECEIVED: Option<Proof> = Some(Proof::Received(SentPosition::NONE));

    fn heartbeat(enabled: bool) -> (Heartbeat, Instant) {
        let now = Instant::now();
        (Heartbeat::new(enabled, SECOND, 2, 7, now), now)
    }

    #[test]
    fn a_message_is_confirmed_at_once_and_the_next_after_a_pause() {
        let (mut beat, now) = heartbeat(false);
        assert_eq!(beat.ask(now, MARK).heartbeat, Some(None));
        assert_eq!(beat.ask(now, MARK), Ask::default(), "at most one question is unanswered");
        assert_eq!(beat.answered(now), RECEIVED);
        assert_eq!(beat.ask(now, MARK), Ask::default());
        assert_eq!(beat.deadline(MARK), Some(now + RECEIPT_PAUSE));
        assert_eq!(beat.ask(now + RECEIPT_PAUSE, MARK).heartbeat, Some(None));
    }

    #[test]
    fn an_answer_nobody_asked_for_proves_nothing() {
        let (mut beat, now) = heartbeat(true);
        assert_eq!(beat.answered(now), None);
        assert_eq!(beat.pong(&[0; 16]), None);
        assert_eq!(beat.pong(b""), None);
        beat.ask(now, MARK);
        assert_eq!(beat.answered(now), RECEIVED);
        assert_eq!(beat.answered(now), None);
    }

    #[test]
    fn an_idle_client_is_asked_every_interval_and_not_sooner() {
        let (mut beat, now) = heartbeat(true);
        assert_eq!(beat.ask(now, None), Ask::default());
        assert_eq!(beat.deadline(None), Some(now + SECOND));
        assert_eq!(beat.ask(now + SECOND, None).heartbeat, Some(None));
        beat.answered(now + SECOND);
        assert_eq!(beat.deadline(None), Some(now + 2 * SECOND));
        let (idle, _) = heartbeat(false);
        assert_eq!(idle.deadline(None), None, "without heartbeats an idle connection needs no timer");
    }

    #[test]
    fn a_silent_client_is_asked_again_and_then_given_up() {
        let (mut beat, now) = heartbeat(true);
        beat.ask(now + SECOND, None);
        assert_eq!(beat.ask(now + 2 * SECOND, None).heartbeat, Some(Some((1, 2))));
        assert_eq!(beat.ask(now + 3 * SECOND, None).heartbeat, Some(Some((2, 2))));
        assert!(beat.ask(now + 4 * SECOND, None).give_up);
    }

    #[test]
    fn a_late_answer_starts_the_patience_anew() {
        let (mut beat, now) = heartbeat(true);
        beat.ask(now + SECOND, None);
        beat.ask(now + 2 * SECOND, None);
        beat.answered(now + 3 * SECOND);
        assert!(!beat.ask(now + 4 * SECOND, None).give_up);
        beat.answered(now + 4 * SECOND);
        beat.answered(now + 4 * SECOND);
        assert!(beat.questions.is_empty());
    }

    #[test]
    fn an_answer_is_never_taken_for_that_of_a_later_question() {
        let (mut beat, now) = heartbeat(true);
        let later = Some(SentPosition::for_test(9));
        beat.ask(now, MARK);
        assert_eq!(beat.ask(now + SECOND, MARK).heartbeat, Some(Some((1, 2))));
        assert_eq!(beat.answered(now + SECOND), RECEIVED);
        // One of two is answered: the client is there, and asked anew, not once more.
        assert_eq!(beat.ask(now + 2 * SECOND, later).heartbeat, Some(None));
        assert_eq!(beat.answered(now + 2 * SECOND), RECEIVED, "the answer to the retry");
        assert_eq!(beat.answered(now + 2 * SECOND), later.map(Proof::Received));
    }

    #[test]
    fn a_client_that_leaves_questions_unanswered_does_not_fill_memory() {
        let (mut beat, mut now) = heartbeat(true);
        for _ in 0..1000 {
            now += SECOND;
            if beat.ask(now, None).give_up {
                return;
            }
            if beat.tries > 0 {
                beat.answered(now);
            }
            assert!(beat.questions.len() <= QUESTIONS_MAX);
        }
        panic!("it is asked for ever");
    }

    #[test]
    fn pongs_confirm_a_client_that_never_answers_op_1_but_only_after_the_patience() {
        for enabled in [true, false] {
            let (mut beat, now) = heartbeat(enabled);
            beat.ask(now, MARK);
            let mut at = now;
            for _ in 0..2 {
                at += SECOND;
                let ping = beat.ask(at, MARK).ping.expect("a ping goes beside the question");
                assert_eq!(beat.pong(&ping), None, "not yet trusted");
            }
            at += SECOND;
            let ping = beat.ask(at, MARK).ping.expect("from here on it is asked by ping");
            assert_eq!(beat.pong(&ping), MARK);
            assert_eq!(beat.pong(&ping), None);
        }
    }

    #[test]
    fn late_pong_is_an_answer_once_and_proves_nothing() {
        let (mut beat, now) = heartbeat(true);
        beat.ask(now, MARK);
        let [first, second] = [1, 2].map(|n| beat.ask(now + n * SECOND, MARK).ping.unwrap());
        let mut future = second;
        future[15] += 1;
        assert!(!beat.expects_pong(&future) && !beat.expects_pong(b"another") && !beat.expects_pong(&[0; 16]));
        assert!(beat.expects_pong(&first));
        assert_eq!(beat.pong(&first), None);
        assert!(!beat.pings.heard && !beat.expects_pong(&first));
        assert!(beat.expects_pong(&second));
        assert_eq!(beat.pong(&second), None, "not yet trusted");
        assert!(beat.pings.heard && !beat.expects_pong(&second));
    }

    #[test]
    fn pongs_never_confirm_a_client_that_answers_op_1() {
        let (mut beat, now) = heartbeat(true);
        beat.ask(now, MARK);
        beat.answered(now);
        beat.ask(now + SECOND, MARK);
        let mut at = now + SECOND;
        for _ in 0..2 {
            at += SECOND;
            assert_eq!(beat.ask(at, MARK).ping, None);
        }
        assert!(beat.ask(at + SECOND, MARK).give_up);
    }

    #[test]
    fn op_1_after_authentication_answered_proves_it_in_order_and_delays_no_receipt() {
        for enabled in [true, false] {
            let (mut beat, now) = heartbeat(enabled);
            // A heartbeat may be unanswered when the client authenticates.
            if enabled {
                assert_eq!(beat.ask(now + SECOND, None).heartbeat, Some(None));
            }
            let now = now + SECOND;
            beat.ask_authenticated(now);
            assert_eq!(beat.ask(now, MARK), Ask::default(), "at most one question is unanswered");
            if enabled {
                assert_eq!(beat.answered(now), Some(Proof::Alive));
                assert_eq!(beat.ask(now, MARK), Ask::default(), "the other one still is");
            }
            assert_eq!(beat.answered(now), Some(Proof::Authenticated));
            assert_eq!(beat.questions.capacity(), 0);
            // Only the heartbeat before it does.
            let due = if enabled { now + RECEIPT_PAUSE } else { now };
            assert_eq!(beat.ask(due, MARK).heartbeat, Some(None));
            assert_eq!(beat.answered(due), RECEIVED);
        }
    }
}
