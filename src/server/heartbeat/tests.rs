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
    assert_eq!(beat.ask(now, POSITION).heartbeat, Some(None));
    assert_eq!(beat.ask(now, POSITION), Ask::default(), "at most one question is unanswered");
    assert_eq!(beat.answered(now), RECEIVED);
    assert_eq!(beat.ask(now, POSITION), Ask::default());
    assert_eq!(beat.deadline(POSITION), Some(now + ACK_REQUEST_INTERVAL));
    assert_eq!(beat.ask(now + ACK_REQUEST_INTERVAL, POSITION).heartbeat, Some(None));
}

#[test]
fn answer_without_a_question_is_ignored() {
    let (mut beat, now) = heartbeat(true);
    assert_eq!(beat.answered(now), None);
    assert_eq!(beat.pong(&[0; 16]), None);
    assert_eq!(beat.pong(b""), None);
    beat.ask(now, POSITION);
    assert_eq!(beat.answered(now), RECEIVED);
    assert_eq!(beat.answered(now), None);
}

#[test]
fn idle_client_is_asked_once_per_interval() {
    let (mut beat, now) = heartbeat(true);
    assert_eq!(beat.ask(now, None), Ask::default());
    assert_eq!(beat.deadline(None), Some(now + SECOND));
    assert_eq!(beat.ask(now + SECOND, None).heartbeat, Some(None));
    beat.answered(now + SECOND);
    assert_eq!(beat.deadline(None), Some(now + 2 * SECOND));
    let (idle, _) = heartbeat(false);
    assert_eq!(idle.deadline(None), None, "an idle connection without heartbeats needs no timer");
}

#[test]
fn silent_client_is_asked_again_and_then_disconnected() {
    let (mut beat, now) = heartbeat(true);
    beat.ask(now + SECOND, None);
    assert_eq!(beat.ask(now + 2 * SECOND, None).heartbeat, Some(Some((1, 2))));
    assert_eq!(beat.ask(now + 3 * SECOND, None).heartbeat, Some(Some((2, 2))));
    assert!(beat.ask(now + 4 * SECOND, None).timed_out);
}

#[test]
fn late_answer_resets_the_attempts() {
    let (mut beat, now) = heartbeat(true);
    beat.ask(now + SECOND, None);
    beat.ask(now + 2 * SECOND, None);
    beat.answered(now + 3 * SECOND);
    assert!(!beat.ask(now + 4 * SECOND, None).timed_out);
    beat.answered(now + 4 * SECOND);
    beat.answered(now + 4 * SECOND);
    assert!(beat.questions.is_empty());
}

#[test]
fn answer_is_matched_with_its_question_in_order() {
    let (mut beat, now) = heartbeat(true);
    let later = Some(SentPosition::for_test(9));
    beat.ask(now, POSITION);
    assert_eq!(beat.ask(now + SECOND, POSITION).heartbeat, Some(Some((1, 2))));
    assert_eq!(beat.answered(now + SECOND), RECEIVED);
    // One of two is answered, so the client is alive: the next op 1 is a new question, not a retry.
    assert_eq!(beat.ask(now + 2 * SECOND, later).heartbeat, Some(None));
    assert_eq!(beat.answered(now + 2 * SECOND), RECEIVED, "the answer to the retry");
    assert_eq!(beat.answered(now + 2 * SECOND), later.map(Proof::Received));
}

#[test]
fn client_with_unanswered_questions_is_disconnected_at_the_limit() {
    let (mut beat, mut now) = heartbeat(true);
    for _ in 0..1000 {
        now += SECOND;
        if beat.ask(now, None).timed_out {
            return;
        }
        if beat.attempts > 0 {
            beat.answered(now);
        }
        assert!(beat.questions.len() <= QUESTIONS_MAX);
    }
    panic!("the client was not disconnected after 1000 intervals");
}

#[test]
fn pongs_of_a_client_that_never_answers_op_1_count_after_the_heartbeat_timeout() {
    for enabled in [true, false] {
        let (mut beat, now) = heartbeat(enabled);
        beat.ask(now, POSITION);
        let mut at = now;
        for _ in 0..2 {
            at += SECOND;
            let ping = beat.ask(at, POSITION).ping.expect("a ping accompanies the question");
            assert_eq!(beat.pong(&ping), None, "pongs do not count yet");
        }
        at += SECOND;
        let ping = beat.ask(at, POSITION).ping.expect("a ping replaces the question");
        assert_eq!(beat.pong(&ping), POSITION);
        assert_eq!(beat.pong(&ping), None);
    }
}

#[test]
fn late_pong_is_expected_once_and_acknowledges_nothing() {
    let (mut beat, now) = heartbeat(true);
    beat.ask(now, POSITION);
    let [first, second] = [1, 2].map(|n| beat.ask(now + n * SECOND, POSITION).ping.unwrap());
    let mut future = second;
    future[15] += 1;
    assert!(!beat.expects_pong(&future) && !beat.expects_pong(b"another") && !beat.expects_pong(&[0; 16]));
    assert!(beat.expects_pong(&first));
    assert_eq!(beat.pong(&first), None);
    assert!(!beat.pings.heard && !beat.expects_pong(&first));
    assert!(beat.expects_pong(&second));
    assert_eq!(beat.pong(&second), None, "pongs do not count yet");
    assert!(beat.pings.heard && !beat.expects_pong(&second));
}

#[test]
fn pongs_of_a_client_that_answers_op_1_never_count() {
    let (mut beat, now) = heartbeat(true);
    beat.ask(now, POSITION);
    beat.answered(now);
    beat.ask(now + SECOND, POSITION);
    let mut at = now + SECOND;
    for _ in 0..2 {
        at += SECOND;
        assert_eq!(beat.ask(at, POSITION).ping, None);
    }
    assert!(beat.ask(at + SECOND, POSITION).timed_out);
}

#[test]
fn answer_to_op_1_after_authentication_is_matched_in_order_and_delays_no_ack_request() {
    for enabled in [true, false] {
        let (mut beat, now) = heartbeat(enabled);
        // A heartbeat may be unanswered when the client authenticates.
        if enabled {
            assert_eq!(beat.ask(now + SECOND, None).heartbeat, Some(None));
        }
        let now = now + SECOND;
        beat.ask_authenticated(now);
        assert_eq!(beat.ask(now, POSITION), Ask::default(), "at most one question is unanswered");
        if enabled {
            assert_eq!(beat.answered(now), Some(Proof::Alive));
            assert_eq!(beat.ask(now, POSITION), Ask::default(), "the second question is still unanswered");
        }
        assert_eq!(beat.answered(now), Some(Proof::Authenticated));
        assert_eq!(beat.questions.capacity(), 0);
        // Only the heartbeat before it delays the next request.
        let due = if enabled { now + ACK_REQUEST_INTERVAL } else { now };
        assert_eq!(beat.ask(due, POSITION).heartbeat, Some(None));
        assert_eq!(beat.answered(due), RECEIVED);
    }
}
