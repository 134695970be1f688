//! Detects a server that has died without closing the connection, for example behind a proxy.
//!
//! After an interval without a frame the client sends op 1, which a server answers by op 11. The original does not
//! answer op 1, and passes it to its application. So the first op 1 of a connection is sent with a WebSocket ping. If
//! only pongs arrive, later probes are pings.
//!
//! Some proxies answer pings themselves. So pongs do not count once the server has answered an op 1.

use std::time::Duration;

use tokio::time::Instant;

use super::codec::Incoming;

/// Time without a frame before a probe, unless the server announces heartbeats.
const PROBE_INTERVAL: Duration = Duration::from_secs(25);

/// Time limit for the answer to a probe. Then the connection ends.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Describes what to send as a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Probe {
    pub heartbeat: bool,
    pub ping: bool,
}

/// Silence timer of one client.
#[derive(Debug)]
pub(super) struct Silence {
    interval: Duration,
    /// Time of the next probe, or of the end of the connection if a probe is unanswered.
    due: Instant,
    is_probed: bool,
    /// Whether op 1 was sent on this connection.
    is_asked: bool,
    /// Whether the server has answered an op 1 on any connection.
    has_answered: bool,
}

impl Silence {
    pub fn new(now: Instant) -> Self {
        Self {
            interval: PROBE_INTERVAL,
            due: now + PROBE_INTERVAL,
            is_probed: false,
            is_asked: false,
            has_answered: false,
        }
    }

    /// Starts the timer of a connection.
    pub fn start(&mut self, heartbeat_interval: Option<Duration>, now: Instant) {
        self.is_asked = false;
        self.set_interval(heartbeat_interval);
        self.reset(now);
    }

    /// Sets the interval that the server has announced.
    pub fn set_interval(&mut self, heartbeat_interval: Option<Duration>) {
        self.interval = heartbeat_interval.filter(|interval| !interval.is_zero()).unwrap_or(PROBE_INTERVAL);
    }

    /// Restarts the timer after a frame.
    pub fn on_frame(&mut self, frame: &Incoming, now: Instant) {
        match frame {
            Incoming::Pong if self.has_answered => return,
            // The original does not send op 13 either.
            Incoming::HeartbeatAck | Incoming::Resumed { .. } => self.has_answered = true,
            _ => {}
        }
        self.reset(now);
    }

    fn reset(&mut self, now: Instant) {
        (self.is_probed, self.due) = (false, now + self.interval);
    }

    /// Returns when [`Silence::probe`] is due.
    pub fn due(&self) -> Instant {
        self.due
    }

    /// Returns the probe to send now; `None`: the last one was not answered in time.
    pub fn probe(&mut self, now: Instant) -> Option<Probe> {
        if std::mem::replace(&mut self.is_probed, true) {
            return None;
        }
        self.due = now + ANSWER_TIMEOUT;
        let heartbeat = !std::mem::replace(&mut self.is_asked, true) || self.has_answered;
        Some(Probe { heartbeat, ping: !self.has_answered })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const FIRST: Probe = Probe { heartbeat: true, ping: true };
    const HEARTBEAT: Probe = Probe { heartbeat: true, ping: false };
    const PING: Probe = Probe { heartbeat: false, ping: true };

    /// Starts a connection, and lets each probe be answered by one of `answers`. Returns the probes.
    fn probes(silence: &mut Silence, answers: &[Incoming]) -> Vec<Probe> {
        let start = silence.due();
        silence.start(None, start);
        answers
            .iter()
            .map(|answer| {
                let now = silence.due();
                let probe = silence.probe(now).expect("a probe");
                assert_eq!(silence.due(), now + 10 * SECOND);
                silence.on_frame(answer, now + SECOND);
                assert_eq!(silence.due(), now + 26 * SECOND, "the answer restarts the timer");
                probe
            })
            .collect()
    }

    #[test]
    fn server_that_answers_op_1_must_answer_it_always() {
        let mut silence = Silence::new(Instant::now());
        assert_eq!(probes(&mut silence, &[Incoming::HeartbeatAck, Incoming::Heartbeat]), [FIRST, HEARTBEAT]);
        // Also on later connections. Only a proxy answers now.
        silence.start(None, silence.due());
        let probed = silence.due();
        assert_eq!(silence.probe(probed), Some(HEARTBEAT));
        silence.on_frame(&Incoming::Pong, probed + SECOND);
        assert_eq!(silence.due(), probed + 10 * SECOND);
        assert_eq!(silence.probe(silence.due()), None);
    }

    #[test]
    fn server_that_answers_only_pings_receives_one_op_1_per_connection() {
        let mut silence = Silence::new(Instant::now());
        for _ in 0..2 {
            assert_eq!(
                probes(&mut silence, &[Incoming::Pong, Incoming::Heartbeat, Incoming::Pong]),
                [FIRST, PING, PING]
            );
        }
        assert_eq!(silence.probe(silence.due()), Some(PING));
        assert_eq!(silence.probe(silence.due()), None, "a dead one ends the connection too");
    }

    #[test]
    fn interval_is_the_one_of_the_server_unless_it_is_zero() {
        let now = Instant::now();
        let mut silence = Silence::new(now);
        for (announced, expected) in [(Some(3 * SECOND), 3), (Some(Duration::ZERO), 25), (None, 25)] {
            silence.start(announced, now);
            assert_eq!(silence.due(), now + expected * SECOND);
        }
    }
}
