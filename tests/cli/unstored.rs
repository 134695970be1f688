//! What a dispatch says of messages that are not stored, over HTTP, NDJSON and the command line.

use std::time::Duration;

use serde_json::{Value, json};

use crate::{
    guessed::Redis,
    mesa, said,
    support::{
        http::Http,
        server::{Home, Server},
    },
};

fn ask(http: &mut Http, body: &Value) -> (u16, Value) {
    let (status, answer) = http.call("POST", "/v1/dispatch", &body.to_string()).expect("an answer");
    (status, serde_json::from_slice(&answer).expect("JSON"))
}

fn dropped(server: &Server) -> u64 {
    let (_, text) = Http::connect(server.address).unwrap().call("GET", "/metrics", "").expect("metrics");
    let text = String::from_utf8(text).expect("text");
    let line = text.lines().find(|line| line.starts_with("mesa_messages_dropped_sync_off_total "));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or_else(|| panic!("not counted:\n{text}"))
}

#[test]
fn dispatch_with_sync_off_says_that_nothing_was_stored() {
    let mut home = Home::new();
    home.set_variable("SYNC_ENABLED", "false");
    let server = home.start();
    let mut http = Http::connect(server.address).unwrap();
    let unstored = json!({"recipients": 2, "online": 0, "offline": 2, "stored": 0, "rejected": [], "duplicate": false});
    let (status, answer) = ask(&mut http, &json!({"message": {}, "recipients": ["alice", "bob"]}));
    assert_eq!((status, &answer), (200, &unstored));
    assert_eq!(dropped(&server), 2);

    let once = json!({"message": {}, "recipients": ["alice", "bob"], "id": "x"});
    assert_eq!(ask(&mut http, &once), (200, unstored.clone()));
    let mut repeat = unstored.clone();
    repeat["duplicate"] = true.into();
    assert_eq!(ask(&mut http, &once), (200, repeat));
    assert_eq!(dropped(&server), 4, "a repeat drops nothing more");
    ask(&mut http, &json!({"message": {"o": {"sync": false}}, "recipients": ["alice"]}));
    assert_eq!(dropped(&server), 4, "an unsynced message does not ask to be kept");

    for option in [json!({"ttl": 20}), json!({"collapse": "score"})] {
        for recipients in [json!(["alice"]), json!([])] {
            let (status, answer) = ask(&mut http, &json!({"message": {"o": option}, "recipients": recipients}));
            assert_eq!((status, &answer["error"]["code"]), (422, &json!("sync_off")), "{option}: {answer}");
        }
    }

    let url = format!("http://{}", server.address);
    let told = said(&mesa(&["dispatch", "--url", &url, "--to", "alice"]));
    assert!(told.starts_with("1 recipient: 0 online, 1 offline (not stored: sync is off on this server"), "{told}");
    let told = mesa(&["dispatch", "--url", &url, "--to", "alice", "--json"]);
    assert_eq!(serde_json::from_slice::<Value>(&told.stdout).unwrap()["stored"], 0, "{}", said(&told));
    let refused = mesa(&["dispatch", "--url", &url, "--to", "alice", "--ttl", "20"]);
    assert!(!refused.status.success() && said(&refused).contains("(sync_off)"), "{}", said(&refused));

    let lines = home.path("lines");
    std::fs::write(
        &lines,
        "{\"message\":{},\"recipients\":[\"alice\"]}\n{\"message\":{\"o\":{\"ttl\":1}},\"recipients\":[]}\n",
    )
    .unwrap();
    let streamed = mesa(&["dispatch", "--url", &url, "--json", "--ndjson", lines.to_str().unwrap()]);
    let results: Vec<Value> =
        String::from_utf8_lossy(&streamed.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((&results[0]["stored"], &results[1]["error"]["code"]), (&json!(0), &json!("sync_off")), "{results:?}");
    assert!(said(&streamed).contains("1 not stored for offline users"), "{}", said(&streamed));
}

#[test]
fn message_of_a_dispatcher_that_is_dropped_is_logged_once_in_a_while() {
    let mut home = Home::with("redisProtocol: { port: 0 },");
    home.set_variable("SYNC_ENABLED", "false");
    let server = home.start();
    let mut redis = Redis::of(&home);
    let publish = |redis: &mut Redis, recipients: &str| {
        redis.ask(&["PUBLISH", "ws", &format!(r#"{{"message":{{"op":0,"d":1}},"recipients":[{recipients}]}}"#)])
    };
    for _ in 0..100 {
        assert_eq!(publish(&mut redis, r#""alice""#), ":0");
    }
    assert_eq!(dropped(&server), 100);
    let line = "a message of a Dispatcher was dropped for offline users: sync.enabled is off";
    home.log_once(|log| log.contains(line));
    server.terminate();
    assert!(server.process.wait(Duration::from_secs(30)).success());
    assert_eq!(home.log_once(|log| log.contains("stopped")).matches(line).count(), 1);
}

#[test]
fn repeated_dispatch_says_what_the_first_stored_also_after_a_kill() {
    let home = Home::new();
    let server = home.start();
    let mut http = Http::connect(server.address).unwrap();
    let synced = json!({"message": {}, "recipients": ["alice", "bob", ""], "id": "synced"});
    let unsynced = json!({"message": {"o": {"sync": false}}, "recipients": ["alice", "bob"], "id": "unsynced"});
    let everyone = json!({"message": {}, "recipients": ["*"], "id": "everyone"});
    let firsts: Vec<Value> = [&synced, &unsynced, &everyone].iter().map(|body| ask(&mut http, body).1).collect();
    assert_eq!(firsts.iter().map(|first| &first["stored"]).collect::<Vec<_>>(), [2, 0, 0], "{firsts:?}");
    server.process.kill();
    let server = home.start();
    let mut http = Http::connect(server.address).unwrap();
    for (body, mut first) in [&synced, &unsynced, &everyone].into_iter().zip(firsts) {
        first["duplicate"] = true.into();
        assert_eq!(ask(&mut http, body), (200, first));
    }
}
