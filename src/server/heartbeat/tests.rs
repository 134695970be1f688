use super::*;

const SECOND: Duration = Duration::from_secs(1);

const POSITION: Option<SentPosition> = Some(SentPosition::NONE);

const RECEIVED: Option<Proof> = Some(Proof::Received(SentPosition::NONE));

fn heartbeat(enabled: bool) -> (Heartbeat, Instant) {
    let now = Instant::now();
    (Heartbeat::new(enabled, SECOND, 2, 7, now), now)
}

#[test]
fn first_acknowledgement_is_requested_at_once_and_the_next_after_an_interval() {
    let (mut beat, now) = heartbeat(false);
    assert_eq!(beat.due_probes(now, POSITION).heartbeat, Some(None));
    assert_eq!(beat.due_probes(now, POSITION), DueProbes::default(), "at most one op 1 is unanswered");
    assert_eq!(beat.on_ack(now), RECEIVED);
    assert_eq!(beat.due_probes(now, POSITION), DueProbes::default());
    assert_eq!(beat.deadline(POSITION), Some(now + ACK_REQUEST_INTERVAL));
    assert_eq!(beat.due_probes(now + ACK_REQUEST_INTERVAL, POSITION).heartbeat, Some(None));
}

#[test]
fn answer_without_a_heartbeat_is_ignored() {
    let (mut beat, now) = heartbeat(true);
    assert_eq!(beat.on_ack(now), None);
    assert_eq!(beat.on_pong(&[0; 16]), None);
    assert_eq!(beat.on_pong(b""), None);
    beat.due_probes(now, POSITION);
    assert_eq!(beat.on_ack(now), RECEIVED);
    assert_eq!(beat.on_ack(now), None);
}

#[test]
fn idle_client_gets_one_heartbeat_per_interval() {
    let (mut beat, now) = heartbeat(true);
    assert_eq!(beat.due_probes(now, None), DueProbes::default());
    assert_eq!(beat.deadline(None), Some(now + SECOND));
    assert_eq!(beat.due_probes(now + SECOND, None).heartbeat, Some(None));
    beat.on_ack(now + SECOND);
    assert_eq!(beat.deadline(None), Some(now + 2 * SECOND));
    let (idle, _) = heartbeat(false);
    assert_eq!(idle.deadline(None), None, "an idle connection without heartbeats needs no timer");
}

#[test]
fn silent_client_gets_retries_and_is_then_disconnected() {
    let (mut beat, now) = heartbeat(true);
    beat.due_probes(now + SECOND, None);
    assert_eq!(beat.due_probes(now + 2 * SECOND, None).heartbeat, Some(Some((1, 2))));
    assert_eq!(beat.due_probes(now + 3 * SECOND, None).heartbeat, Some(Some((2, 2))));
    assert!(beat.due_probes(now + 4 * SECOND, None).timed_out);
}

#[test]
fn late_answer_resets_the_attempts() {
    let (mut beat, now) = heartbeat(true);
    beat.due_probes(now + SECOND, None);
    beat.due_probes(now + 2 * SECOND, None);
    beat.on_ack(now + 3 * SECOND);
    assert!(!beat.due_probes(now + 4 * SECOND, None).timed_out);
    beat.on_ack(now + 4 * SECOND);
    beat.on_ack(now + 4 * SECOND);
    assert!(beat.unanswered.is_empty());
}

#[test]
fn answers_are_matched_with_heartbeats_in_order() {
    let (mut beat, now) = heartbeat(true);
    let later = Some(SentPosition::for_test(9));
    beat.due_probes(now, POSITION);
    assert_eq!(beat.due_probes(now + SECOND, POSITION).heartbeat, Some(Some((1, 2))));
    assert_eq!(beat.on_ack(now + SECOND), RECEIVED);
    // One of two is answered, so the client is alive: the next op 1 is no retry.
    assert_eq!(beat.due_probes(now + 2 * SECOND, later).heartbeat, Some(None));
    assert_eq!(beat.on_ack(now + 2 * SECOND), RECEIVED, "the answer to the retry");
    assert_eq!(beat.on_ack(now + 2 * SECOND), later.map(Proof::Received));
}

#[test]
fn client_with_unanswered_heartbeats_is_disconnected_at_the_limit() {
    let (mut beat, mut now) = heartbeat(true);
    for _ in 0..1000 {
        now += SECOND;
        if beat.due_probes(now, None).timed_out {
            return;
        }
        if beat.attempts > 0 {
            beat.on_ack(now);
        }
        assert!(beat.unanswered.len() <= UNANSWERED_MAX);
    }
    panic!("the client was not disconnected after 1000 intervals");
}

#[test]
fn pongs_of_a_client_that_never_answers_op_1_count_after_the_heartbeat_timeout() {
    for enabled in [true, false] {
        let (mut beat, now) = heartbeat(enabled);
        beat.due_probes(now, POSITION);
        let mut at = now;
        for _ in 0..2 {
            at += SECOND;
            let ping = beat.due_probes(at, POSITION).ping.expect("a ping with the op 1");
            assert_eq!(beat.on_pong(&ping), None, "pongs do not count yet");
        }
        at += SECOND;
        let ping = beat.due_probes(at, POSITION).ping.expect("a ping instead of op 1");
        assert_eq!(beat.on_pong(&ping), POSITION);
        assert_eq!(beat.on_pong(&ping), None);
    }
}

#[test]
fn late_pong_is_expected_once_and_acknowledges_nothing() {
    let (mut beat, now) = heartbeat(true);
    beat.due_probes(now, POSITION);
    let [first, second] = [1, 2].map(|n| beat.due_probes(now + n * SECOND, POSITION).ping.unwrap());
    let mut future = second;
    future[15] += 1;
    assert!(!beat.expects_pong(&future) && !beat.expects_pong(b"another") && !beat.expects_pong(&[0; 16]));
    assert!(beat.expects_pong(&first));
    assert_eq!(beat.on_pong(&first), None);
    assert!(!beat.pings.pong_received && !beat.expects_pong(&first));
    assert!(beat.expects_pong(&second));
    assert_eq!(beat.on_pong(&second), None, "pongs do not count yet");
    assert!(beat.pings.pong_received && !beat.expects_pong(&second));
}

#[test]
fn pongs_of_a_client_that_answers_op_1_never_count() {
    let (mut beat, now) = heartbeat(true);
    beat.due_probes(now, POSITION);
    beat.on_ack(now);
    beat.due_probes(now + SECOND, POSITION);
    let mut at = now + SECOND;
    for _ in 0..2 {
        at += SECOND;
        assert_eq!(beat.due_probes(at, POSITION).ping, None);
    }
    assert!(beat.due_probes(at + SECOND, POSITION).timed_out);
}

#[test]
fn answer_to_op_1_after_authentication_is_matched_in_order_and_delays_no_ack_request() {
    for enabled in [true, false] {
        let (mut beat, now) = heartbeat(enabled);
        // A heartbeat may be unanswered when the client authenticates.
        if enabled {
            assert_eq!(beat.due_probes(now + SECOND, None).heartbeat, Some(None));
        }
        let now = now + SECOND;
        beat.expect_authentication_ack(now);
        assert_eq!(beat.due_probes(now, POSITION), DueProbes::default(), "at most one op 1 is unanswered");
        if enabled {
            assert_eq!(beat.on_ack(now), Some(Proof::Alive));
            assert_eq!(beat.due_probes(now, POSITION), DueProbes::default(), "the second op 1 is still unanswered");
        }
        assert_eq!(beat.on_ack(now), Some(Proof::Authenticated));
        assert_eq!(beat.unanswered.capacity(), 0);
        // Only the heartbeat before it delays the next request.
        let due = if enabled { now + ACK_REQUEST_INTERVAL } else { now };
        assert_eq!(beat.due_probes(due, POSITION).heartbeat, Some(None));
        assert_eq!(beat.on_ack(due), RECEIVED);
    }
}
