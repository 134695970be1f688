//! Tests how a dispatch reports messages that are not stored: over HTTP, NDJSON and the command line.

use std::time::Duration;

use serde_json::{Value, json};

use crate::{
    output_text, run_mesa,
    support::{
        http::Http,
        resp::RespClient,
        server::{Home, Server},
    },
};

/// Posts a dispatch. Returns status and body.
fn post_dispatch(http: &mut Http, body: &Value) -> (u16, Value) {
    let (status, response) = http.call("POST", "/v1/dispatch", &body.to_string()).expect("a response");
    (status, serde_json::from_slice(&response).expect("JSON"))
}

/// Reads the counter of messages that were dropped because sync is off.
fn dropped_count(server: &Server) -> u64 {
    Http::connect(server.address).unwrap().metric("mesa_messages_dropped_sync_off_total")
}

// covers: G4
#[test]
fn dispatch_with_sync_off_reports_that_nothing_was_stored() {
    let mut home = Home::new();
    home.set_variable("SYNC_ENABLED", "false");
    let server = home.start();
    let mut http = Http::connect(server.address).unwrap();
    let unstored = json!({"recipients": 2, "online": 0, "offline": 2, "stored": 0, "rejected": [], "duplicate": false});
    let (status, response) = post_dispatch(&mut http, &json!({"message": {}, "recipients": ["alice", "bob"]}));
    assert_eq!((status, &response), (200, &unstored));
    assert_eq!(dropped_count(&server), 2);

    let once = json!({"message": {}, "recipients": ["alice", "bob"], "id": "x"});
    assert_eq!(post_dispatch(&mut http, &once), (200, unstored.clone()));
    let mut repeat = unstored.clone();
    repeat["duplicate"] = true.into();
    assert_eq!(post_dispatch(&mut http, &once), (200, repeat));
    assert_eq!(dropped_count(&server), 4, "expected a duplicate to drop nothing more");
    post_dispatch(&mut http, &json!({"message": {"o": {"sync": false}}, "recipients": ["alice"]}));
    assert_eq!(dropped_count(&server), 4, "expected an unsynced message not to be counted: it is never stored");

    for option in [json!({"ttl": 20}), json!({"collapse": "score"})] {
        for recipients in [json!(["alice"]), json!([])] {
            let (status, response) =
                post_dispatch(&mut http, &json!({"message": {"o": option}, "recipients": recipients}));
            assert_eq!((status, &response["error"]["code"]), (422, &json!("sync_off")), "{option}: {response}");
        }
    }

    let url = format!("http://{}", server.address);
    let text = output_text(&run_mesa(&["dispatch", "--url", &url, "--to", "alice"]));
    assert!(text.starts_with("1 recipient: 0 online, 1 offline (not stored: sync is off on this server"), "{text}");
    let output = run_mesa(&["dispatch", "--url", &url, "--to", "alice", "--json"]);
    assert_eq!(serde_json::from_slice::<Value>(&output.stdout).unwrap()["stored"], 0, "{}", output_text(&output));
    let failed = run_mesa(&["dispatch", "--url", &url, "--to", "alice", "--ttl", "20"]);
    assert!(!failed.status.success() && output_text(&failed).contains("(sync_off)"), "{}", output_text(&failed));

    let lines = home.path("lines");
    std::fs::write(
        &lines,
        "{\"message\":{},\"recipients\":[\"alice\"]}\n{\"message\":{\"o\":{\"ttl\":1}},\"recipients\":[]}\n",
    )
    .unwrap();
    let streamed = run_mesa(&["dispatch", "--url", &url, "--json", "--ndjson", lines.to_str().unwrap()]);
    let results: Vec<Value> =
        String::from_utf8_lossy(&streamed.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((&results[0]["stored"], &results[1]["error"]["code"]), (&json!(0), &json!("sync_off")), "{results:?}");
    assert!(output_text(&streamed).contains("1 not stored for offline users"), "{}", output_text(&streamed));
}

#[test]
fn dropped_messages_of_an_original_dispatcher_are_logged_at_a_limited_rate() {
    let mut home = Home::with_settings("redisProtocol: { port: 0 },");
    home.set_variable("SYNC_ENABLED", "false");
    let server = home.start();
    let mut redis = RespClient::connect(home.redis_protocol_address());
    let publish = |redis: &mut RespClient, recipients: &str| {
        redis.call(&["PUBLISH", "ws", &format!(r#"{{"message":{{"op":0,"d":1}},"recipients":[{recipients}]}}"#)])
    };
    for _ in 0..100 {
        assert_eq!(publish(&mut redis, r#""alice""#), ":0");
    }
    assert_eq!(dropped_count(&server), 100);
    let line = "a message of a Dispatcher was dropped for offline users: sync.enabled is off";
    home.wait_for_log(|log| log.contains(line));
    server.stop(Duration::from_secs(30));
    assert_eq!(home.wait_for_log(|log| log.contains("stopped")).matches(line).count(), 1);
}

// covers: G1
#[test]
fn retry_after_a_kill_returns_the_stored_count_of_the_first_dispatch() {
    let home = Home::new();
    let server = home.start();
    let mut http = Http::connect(server.address).unwrap();
    let synced = json!({"message": {}, "recipients": ["alice", "bob", ""], "id": "synced"});
    let unsynced = json!({"message": {"o": {"sync": false}}, "recipients": ["alice", "bob"], "id": "unsynced"});
    let broadcast = json!({"message": {}, "recipients": ["*"], "id": "broadcast"});
    let firsts: Vec<Value> =
        [&synced, &unsynced, &broadcast].iter().map(|body| post_dispatch(&mut http, body).1).collect();
    assert_eq!(firsts.iter().map(|first| &first["stored"]).collect::<Vec<_>>(), [2, 0, 0], "{firsts:?}");
    server.process.kill();
    let server = home.start();
    let mut http = Http::connect(server.address).unwrap();
    for (body, mut first) in [&synced, &unsynced, &broadcast].into_iter().zip(firsts) {
        first["duplicate"] = true.into();
        assert_eq!(post_dispatch(&mut http, body), (200, first));
    }
}
