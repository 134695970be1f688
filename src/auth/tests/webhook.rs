//! Tests authentication by webhook.

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use std::time::Duration;

use serde_json::json;

use super::*;
use crate::http_client::{
    receiver::{Receiver, Response},
    signing,
};

fn webhook_for(receiver: &Receiver, change: impl FnOnce(&mut config::AuthWebhook)) -> Webhook {
    let mut webhook =
        config::AuthWebhook { url: receiver.url(), allow_private: true, ..config::AuthWebhook::default() };
    change(&mut webhook);
    Webhook::new(&webhook).unwrap()
}

#[tokio::test]
async fn webhook_posts_data_and_returns_identity() {
    let receiver = Receiver::start();
    let webhook = webhook_for(&receiver, |webhook| webhook.secret = Some(SECRET.into()));
    receiver.script([
        Response::json(json!({ "id": "alice", "user": { "name": "Alice", "id": "x" }, "expires": 4_000_000_000.5 })),
        Response::json(json!({ "id": 7, "user": null, "expires": null, "more": 1 })),
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
async fn lone_surrogate_is_forwarded_both_ways_and_rejected_in_id() {
    let receiver = Receiver::start();
    let webhook = webhook_for(&receiver, |_| ());
    let answers = [r#"{"id":"alice","user":{"name":"A\ud83d","id":"x"}}"#, r#"{"id":"al\ud83d"}"#];
    receiver.script(answers.map(Response::json));
    let text = r#"{"name":"\ud83d","token":"t"}"#;
    let alice = webhook.authenticate_text(&data("t"), text).await.unwrap();
    assert_eq!(receiver.requests()[0].body, text.as_bytes());
    assert_eq!(alice.user["name"], "A\u{fffd}");
    assert_eq!(alice.user_text.unwrap(), r#"{"id":"alice","name":"A\ud83d"}"#);
    let error = webhook.authenticate(&data("t")).await.unwrap_err().to_string();
    assert!(error.contains("a lone surrogate"), "{error}");
}

#[tokio::test]
async fn rejection_differs_from_unavailable_webhook() {
    let receiver = Receiver::start();
    let webhook = webhook_for(&receiver, |webhook| webhook.timeout = Duration::from_secs(60));
    // For responses that never arrive. Other responses may be slow on a busy machine.
    let short_timeout = webhook_for(&receiver, |webhook| webhook.timeout = Duration::from_millis(300));
    let other = Receiver::start();
    let location = format!("location: {}\r\n", other.url());
    for status in [400, 401, 403, 422] {
        receiver.script([Response::status(status)]);
        let rejected = webhook.authenticate(&data("a")).await;
        assert!(matches!(rejected, Err(AuthError::Rejected(_))), "{status}: {rejected:?}");
    }
    receiver.script([Response::json(json!({ "id": "alice", "expires": 1 }))]);
    assert!(matches!(webhook.authenticate(&data("a")).await, Err(AuthError::Rejected(_))), "the identity has expired");
    for (answer, expected) in [
        (Response::status(500), "answered 500"),
        (Response::status(404), "answered 404"),
        (Response::With(302, location.clone(), String::new()), "answered 302, and redirects are not followed"),
        (Response::With(307, location, String::new()), "answered 307"),
        (Response::status(200), "did not answer with {id, user?, expires?}"),
        (Response::json("{}"), "did not answer with {id, user?, expires?}"),
        (Response::json("[\"alice\"]"), "did not answer with {id, user?, expires?}"),
        (Response::json(r#"{"id":"alice","id":"bob"}"#), "did not answer with {id, user?, expires?}"),
        (Response::json(r#"{"id":"alice","user":"Alice"}"#), "did not answer with {id, user?, expires?}"),
        (Response::json(r#"{"id":"alice","expires":"tomorrow"}"#), "did not answer with {id, user?, expires?}"),
        (Response::json(r#"{"id":"alice","expires":-1}"#), "`expires` that is not a time"),
        (Response::json(r#"{"id":"alice","expires":1e300}"#), "`expires` that is not a time"),
        (Response::json(r#"{"id":""}"#), "an invalid id"),
        (Response::json(r#"{"id":"*"}"#), "an invalid id"),
        (Response::json(r#"{"id":1.5}"#), "neither a string nor a whole number"),
        (Response::json(r#"{"id":null}"#), "neither a string nor a whole number"),
        (Response::Silence, "did not answer within 300 ms"),
        (Response::Late(Duration::from_secs(2), 200), "did not answer within 300 ms"),
        (Response::HalfWay(200), "broke off"),
        (Response::Endless(200), "more than 65536 bytes"),
        (Response::Close, ""),
    ] {
        receiver.script([answer.clone()]);
        let client = if matches!(answer, Response::Silence | Response::Late(..)) { &short_timeout } else { &webhook };
        let result = client.authenticate(&data("a")).await;
        let Err(AuthError::Unavailable(reason)) = &result else {
            panic!("{answer:?}: expected Unavailable, not {result:?}")
        };
        assert!(reason.contains(expected), "{answer:?}: expected {expected:?} in {reason:?}");
    }
    assert_eq!(other.connections(), 0, "no redirect is followed");
    let port = receiver.address.port();
    drop(receiver);
    let error = webhook.authenticate(&data("a")).await.unwrap_err().to_string();
    // Connection refused, or reset while the listener is closing.
    assert!(error.contains("cannot be reached") || error.contains("broke off"), "{error}");
    let private = config::AuthWebhook { url: format!("https://127.0.0.1:{port}/"), ..config::AuthWebhook::default() };
    assert!(Webhook::new(&private).unwrap_err().to_string().contains("private address"));
}

#[tokio::test]
async fn concurrent_requests_are_bounded_and_waiting_counts_towards_timeout() {
    let receiver = Receiver::start();
    receiver.respond_with(Response::Silence);
    let webhook = webhook_for(&receiver, |webhook| {
        (webhook.concurrency, webhook.timeout) = (3, Duration::from_millis(500));
    });
    let data = data("a");
    let mut all: FuturesUnordered<_> = (0..20).map(|_| webhook.authenticate(&data)).collect();
    let mut results = vec![all.next().await.unwrap()];
    // No further request was sent before the first of them timed out.
    assert!(receiver.requests().len() <= 3, "{:?}", receiver.requests());
    results.extend(all.collect::<Vec<_>>().await);
    assert!(results.iter().all(|result| matches!(result, Err(AuthError::Unavailable(_)))), "{results:?}");
    // A waiting request may have a few milliseconds left. If waiting did not count, every request would be sent.
    assert!(receiver.requests().len() < 20, "{:?}", receiver.requests());
}
