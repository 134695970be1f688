//! Tests `mesa bench`.

use std::process::Output;

use serde_json::Value;

use crate::{
    output_text, run_mesa,
    support::{
        http::Http,
        server::{Home, Server},
    },
};

fn bench(server: &Server, args: &[&str]) -> Output {
    let url = format!("http://{}", server.address);
    run_mesa(&[&["bench"], args, &["--url", &url]].concat())
}

fn report(server: &Server, args: &[&str]) -> Value {
    let output = bench(server, &[args, &["--json"]].concat());
    assert!(output.status.success(), "{args:?}: {}", output_text(&output));
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.ends_with('\n'), "{text}");
    serde_json::from_str(&text).expect("a JSON object")
}

#[tokio::test(flavor = "multi_thread")]
async fn bench_of_each_work_checks_its_messages_and_erases_its_users() {
    let home = Home::new();
    let server = home.start();
    for (args, operations, received) in [
        (&["unicast", "--messages", "200"][..], 200, Some(200)),
        (&["unicast", "--messages", "200", "--via", "http", "--connections", "4"], 200, Some(200)),
        (&["latency", "--messages", "50", "--rate", "500"], 50, Some(50)),
        (&["fanout", "--messages", "20"], 200, Some(200)),
        (&["enqueue", "--messages", "100"], 100, None),
        (&["drain", "--messages", "100"], 100, Some(100)),
        (&["connect"], 10, None),
        (&["idle", "--seconds", "1"], 0, None),
    ] {
        let report = report(&server, &[args, &["--users", "10"]].concat());
        assert_eq!(report["operations"], operations, "{args:?}: {report}");
        assert_eq!(report.get("received").and_then(Value::as_u64), received, "{args:?}: {report}");
        for wrong in ["repeated", "reordered", "rejected", "closed"] {
            assert_eq!(report[wrong], 0, "{args:?}: {report}");
        }
        let has_latency = report["latencyUs"]["p50"].as_u64().is_some_and(|p50| p50 > 0);
        assert_eq!(has_latency, matches!(args[0], "unicast" | "latency" | "fanout" | "connect"), "{args:?}: {report}");
        assert!(report["serverResidentBytes"].as_u64().is_some_and(|bytes| bytes > 1 << 20), "{args:?}: {report}");
    }
    let table = bench(&server, &["drain", "--users", "2", "--messages", "10"]);
    assert!(output_text(&table).contains("10 of 10, each once and in order"), "{}", output_text(&table));
    let mut http = Http::connect(server.address).expect("a connection");
    let users: Value = http.get("/v1/users").expect("a page");
    assert_eq!(users["users"], serde_json::json!([]), "all users were erased");
}

#[tokio::test(flavor = "multi_thread")]
async fn bench_with_rejected_messages_fails_and_states_how_many() {
    let mut home = Home::new();
    home.set_variable("MESA_SYNC_MAX_MESSAGES", "3");
    let server = home.start();
    let output = bench(&server, &["enqueue", "--users", "2", "--messages", "10"]);
    assert_eq!(output.status.code(), Some(1), "{}", output_text(&output));
    assert!(output_text(&output).contains("4 rejected"), "{}", output_text(&output));
}

#[test]
fn bench_without_a_server_fails() {
    let output = run_mesa(&["bench", "connect", "--url", "http://127.0.0.1:1"]);
    assert_eq!(output.status.code(), Some(1), "{}", output_text(&output));
}
