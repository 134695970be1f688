//! Tests of `GET /v1/status`.

use serde_json::{Value, json};

use super::*;

/// Replaces every value that is not an object by its kind.
fn shape(value: &Value) -> Value {
    match value {
        Value::Object(fields) => fields.iter().map(|(name, value)| (name.clone(), shape(value))).collect(),
        Value::Number(_) => "number".into(),
        Value::String(_) => "string".into(),
        Value::Bool(_) => "bool".into(),
        other => other.clone(),
    }
}

#[tokio::test]
async fn status_has_every_figure_and_counts_messages() {
    let api = TestApi::new();
    api.dispatch(&["alice", "bob"]).await;
    let answer = api.get("/v1/status").await;
    assert_eq!((answer.status, answer.content_type()), (StatusCode::OK, "application/json"));
    let status = answer.json();
    let number = "number";
    let process = if cfg!(target_os = "linux") {
        json!({"cpuSeconds": number, "residentBytes": number, "openFiles": number})
    } else {
        Value::Null
    };
    let expected = json!({
        "version": "string", "startedAt": "string", "uptimeSeconds": number, "ready": "bool", "notReadyReason": null,
        "connections": {"open": number, "authenticated": number, "accepted": number, "rejected": number},
        "users": {"online": number},
        "messages": {
            "dispatches": number, "appended": number, "delivered": number, "redelivered": number,
            "acknowledged": number, "rejected": number, "dropped": number,
        },
        "pending": {"messages": number, "bytes": number},
        "store": {
            // In memory there is no disk.
            "kind": "string", "walBytes": number, "memoryBytes": number, "diskBytes": null, "diskFreeBytes": null,
            "flushLagSeconds": number, "commits": number,
            "commitLatencyMicros": {"p50": number, "p99": number, "max": number},
        },
        "process": process,
        "webhooks": null,
    });
    assert_eq!(shape(&status), expected);
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!((&status["ready"], &status["store"]["kind"]), (&json!(true), &json!("embedded")));
    let messages = &status["messages"];
    assert_eq!(
        (&messages["dispatches"], &messages["appended"], &messages["rejected"]),
        (&json!(1), &json!(2), &json!(0))
    );
    assert_eq!(status["pending"], json!({"messages": 2, "bytes": 2 * r#"{"op":0,"d":1}"#.len()}));
    assert_eq!(status["store"]["commits"], 1);
    assert!(status["store"]["commitLatencyMicros"]["max"].as_u64() > Some(0), "{status}");
}

/// Every figure has a value of its own, so that no two of them can be exchanged.
#[tokio::test]
async fn status_reports_each_counter_under_its_own_name() {
    let api = TestApi::new();
    let metrics = &api.metrics;
    metrics.connections.set(21);
    metrics.sessions.set(22);
    let counters = [
        (&metrics.connections_accepted, 23),
        (&metrics.rejected_connections, 24),
        (&metrics.dispatches, 25),
        (&metrics.messages_appended, 26),
        (&metrics.deliveries, 27),
        (&metrics.redeliveries, 28),
        (&metrics.acknowledgements, 29),
        (&metrics.messages_rejected, 30),
        (&metrics.messages_dropped, 31),
    ];
    counters.into_iter().for_each(|(counter, value)| _ = counter.inc_by(value));
    let status = api.get("/v1/status").await.json();
    assert_eq!(status["connections"], json!({"open": 21, "authenticated": 22, "accepted": 23, "rejected": 24}));
    let messages = json!({
        "dispatches": 25, "appended": 26, "delivered": 27, "redelivered": 28, "acknowledged": 29, "rejected": 30,
        "dropped": 31,
    });
    assert_eq!(status["messages"], messages);
}

#[tokio::test]
async fn status_names_the_parts_that_are_not_ready() {
    let api = TestApi::new();
    api.hub.health().not_ready("accept", "no file descriptors");
    api.hub.health().not_ready("webhook", "it does not answer");
    let status = api.get("/v1/status").await.json();
    assert_eq!(status["ready"], false);
    let expected = "accept: no file descriptors (for 0 s); webhook: it does not answer (for 0 s)";
    assert_eq!(status["notReadyReason"], expected);
}

#[tokio::test]
async fn status_requires_the_api_key() {
    let answer = TestApi::new().call("GET", "/v1/status", &[("authorization", "")], Body::empty()).await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
}
