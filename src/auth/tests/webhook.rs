//! A backend that says who a client is, or something else.

use std::time::Duration;

use serde_json::json;

use super::*;
use crate::http_client::{
    receiver::{Answer, Receiver},
    signing,
};

fn asking(receiver: &Receiver, change: impl FnOnce(&mut config::AuthWebhook)) -> Webhook {
    let mut webhook =
        config::AuthWebhook { url: receiver.url(), allow_private: true, ..config::AuthWebhook::default() };
    change(&mut webhook);
    Webhook::new(&webhook).unwrap()
}

#[tokio::test]
async fn what_the_client_passed_is_posted_and_the_answer_is_who_it_is() {
    let receiver = Receiver::start();
    let webhook = asking(&receiver, |webhook| webhook.secret = Some(SECRET.into()));
    receiver.script([
        Answer::json(json!({ "id": "alice", "user": { "name": "Alice", "id": "x" }, "expires": 4_000_000_000.5 })),
        Answer::json(json!({ "id": 7, "user": null, "expires": null, "more": 1 })),
    ]);
    let alice = webhook.authenticate(&data("a token")).await.unwrap();
    assert_eq!(alice.id.as_str(), "alice");
    assert_eq!(Value::Object(alice.user), json!({ "id": "alice", "name": "Alice" }));
    assert_eq!(alice.expires, Some(UNIX_EPOCH + Duration::from_millis(4_000_000_000_500)));
    let seven = webhook.authenticate(&data("a token")).await.unwrap();
    assert_eq!((seven.id.as_str(), seven.expires), ("7", None));

    let request = &receiver.requests()[0];
    assert_eq!(request.line, "POST /hooks HTTP/1.1");
    assert_eq!(request.json(), json!({ "token": "a token", "shouldSync": true }));
    assert_eq!(request.header("content-type"), Some("application/json"));
    let timestamp = request.header(signing::TIMESTAMP_HEADER).unwrap();
    let expected = signing::sign(SECRET, timestamp, &request.body);
    assert_eq!(request.header(signing::SIGNATURE_HEADER), Some(&*expected));
}

#[tokio::test]
async fn half_of_a_pair_is_passed_on_both_ways_and_never_part_of_an_id() {
    let receiver = Receiver::start();
    let webhook = asking(&receiver, |_| ());
    let answers = [r#"{"id":"alice","user":{"name":"A\ud83d","id":"x"}}"#, r#"{"id":"al\ud83d"}"#];
    receiver.script(answers.map(Answer::json));
    let text = r#"{"name":"\ud83d","token":"t"}"#;
    let alice = webhook.authenticate_text(&data("t"), text).await.unwrap();
    assert_eq!(receiver.requests()[0].body, text.as_bytes());
    assert_eq!(alice.user["name"], "A\u{fffd}");
    assert_eq!(alice.user_text.unwrap(), r#"{"id":"alice","name":"A\ud83d"}"#);
    let error = webhook.authenticate(&data("t")).await.unwrap_err().to_string();
    assert!(error.contains("half of a surrogate pair"), "{error}");
}

#[tokio::test]
async fn who_is_refused_is_told_from_who_could_not_be_checked() {
    let receiver = Receiver::start();
    let webhook = asking(&receiver, |webhook| webhook.timeout = Duration::from_secs(60));
    // For answers that do not come: a busy machine is late with others as well.
    let impatient = asking(&receiver, |webhook| webhook.timeout = Duration::from_millis(300));
    let elsewhere = Receiver::start();
    let location = format!("location: {}\r\n", elsewhere.url());
    for status in [401, 403] {
        receiver.script([Answer::status(status)]);
        let refused = webhook.authenticate(&data("a")).await;
        assert!(matches!(refused, Err(AuthError::Refused(_))), "{status}: {refused:?}");
    }
    receiver.script([Answer::json(json!({ "id": "alice", "expires": 1 }))]);
    assert!(matches!(webhook.authenticate(&data("a")).await, Err(AuthError::Refused(_))), "it has expired");
    for (answer, expected) in [
        (Answer::status(500), "answers 500"),
        (Answer::status(404), "answers 404"),
        (Answer::With(302, location.clone(), String::new()), "answers 302, and redirections are not followed"),
        (Answer::With(307, location, String::new()), "answers 307"),
        (Answer::status(200), "no {id, user?, expires?}"),
        (Answer::json("{}"), "no {id, user?, expires?}"),
        (Answer::json("[\"alice\"]"), "no {id, user?, expires?}"),
        (Answer::json(r#"{"id":"alice","id":"bob"}"#), "no {id, user?, expires?}"),
        (Answer::json(r#"{"id":"alice","user":"Alice"}"#), "no {id, user?, expires?}"),
        (Answer::json(r#"{"id":"alice","expires":"tomorrow"}"#), "no {id, user?, expires?}"),
        (Answer::json(r#"{"id":"alice","expires":-1}"#), "an end that is no time"),
        (Answer::json(r#"{"id":"alice","expires":1e300}"#), "an end that is no time"),
        (Answer::json(r#"{"id":""}"#), "a user whose id cannot be"),
        (Answer::json(r#"{"id":"*"}"#), "a user whose id cannot be"),
        (Answer::json(r#"{"id":1.5}"#), "neither a string nor a whole number"),
        (Answer::json(r#"{"id":null}"#), "neither a string nor a whole number"),
        (Answer::Silence, "did not answer within 300 ms"),
        (Answer::Late(Duration::from_secs(2), 200), "did not answer within 300 ms"),
        (Answer::HalfWay(200), "broke off"),
        (Answer::Endless(200), "more than 65536 bytes"),
        (Answer::Close, ""),
    ] {
        receiver.script([answer.clone()]);
        let asked = if matches!(answer, Answer::Silence | Answer::Late(..)) { &impatient } else { &webhook };
        let result = asked.authenticate(&data("a")).await;
        let Err(AuthError::Unavailable(reason)) = &result else { panic!("{answer:?} gave {result:?}") };
        assert!(reason.contains(expected), "{answer:?}: {reason}\n  lacks {expected}");
    }
    assert_eq!(elsewhere.connections(), 0, "no redirection is followed");
    let port = receiver.address.port();
    drop(receiver);
    let error = webhook.authenticate(&data("a")).await.unwrap_err().to_string();
    // Refused, or reset where the listener is only just going.
    assert!(error.contains("cannot be reached") || error.contains("broke off"), "{error}");
    let private = config::AuthWebhook { url: format!("https://127.0.0.1:{port}/"), ..config::AuthWebhook::default() };
    assert!(Webhook::new(&private).unwrap_err().to_string().contains("private address"));
}

#[tokio::test]
async fn no_more_are_asked_at_once_than_is_allowed_and_nobody_waits_longer_than_for_an_answer() {
    let receiver = Receiver::start();
    receiver.otherwise(Answer::Silence);
    let webhook = asking(&receiver, |webhook| {
        (webhook.concurrency, webhook.timeout) = (3, Duration::from_millis(500));
    });
    let clients = data("a");
    let began = std::time::Instant::now();
    let all = futures_util::future::join_all((0..20).map(|_| webhook.authenticate(&clients))).await;
    assert!(all.iter().all(|one| matches!(one, Err(AuthError::Unavailable(_)))), "{all:?}");
    // Half a second each, one behind the other, would be far more than this.
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    assert_eq!(receiver.requests().len(), 3);
}
