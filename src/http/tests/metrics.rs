//! Tests of `GET /metrics`.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use super::*;

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const CLASSIC: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Returns `promtool`, from the path or where `tests/tools` puts it. Without it, prints that; with `CI` set, panics.
fn promtool() -> Option<PathBuf> {
    let local = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/prometheus/usr/bin/promtool");
    let installed = ["/usr/bin/promtool", "/usr/local/bin/promtool"].map(PathBuf::from);
    let found = installed.into_iter().chain([local]).find(|path| path.exists());
    if found.is_none() {
        let skipped = "promtool is not installed: metrics and alerts were NOT checked by it";
        assert!(std::env::var_os("CI").is_none(), "{skipped}");
        eprintln!("{skipped}");
    }
    found
}

/// Runs `promtool`, and fails with its output if it does.
fn check(arguments: &[&str], input: &str) {
    let Some(promtool) = promtool() else { return };
    let mut command = Command::new(promtool);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut running = command.spawn().unwrap();
    running.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = running.wait_with_output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && !text.contains("error"), "promtool {arguments:?}: {text}");
}

#[tokio::test]
async fn scrape_is_in_the_format_that_the_client_accepts() {
    let api = TestApi::new();
    api.dispatch(&["alice"]).await;
    for (accept, expected) in [
        ("", CLASSIC),
        ("*/*", CLASSIC),
        ("text/plain;version=0.0.4", CLASSIC),
        ("application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.3,*/*;q=0.2", OPEN_METRICS),
    ] {
        let answer = api.call("GET", "/metrics", &[("accept", accept), ("authorization", "")], Body::empty()).await;
        assert_eq!((answer.status, answer.content_type()), (StatusCode::OK, expected), "{accept}");
        let text = answer.text();
        assert_eq!(text.ends_with("# EOF\n"), expected == OPEN_METRICS, "{accept}");
        for line in [
            "mesa_dispatches_total 1",
            "mesa_ready 1",
            "mesa_pending_messages 1",
            "mesa_commit_duration_seconds_count 1",
        ] {
            assert!(text.lines().any(|each| each == line), "{accept}: expected {line:?} in\n{text}");
        }
    }
}

/// The names in both files are checked by the tests of `metrics`.
#[test]
fn promtool_finds_no_mistake_in_the_alert_rules() {
    check(&["check", "rules", concat!(env!("CARGO_MANIFEST_DIR"), "/data/deploy/prometheus-alerts.yml")], "");
}

#[test]
fn dashboard_is_complete_and_its_panels_do_not_overlap() {
    let text = include_str!("../../../data/deploy/grafana-dashboard.json");
    let dashboard: Value = serde_json::from_str(text).expect("JSON");
    let (mut cells, mut rules) = (std::collections::HashSet::new(), Vec::new());
    for panel in dashboard["panels"].as_array().expect("panels") {
        let [x, y, w, h] = ["x", "y", "w", "h"].map(|key| panel["gridPos"][key].as_u64().expect("a number"));
        assert!(x + w <= 24, "{panel}");
        let all = (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y)));
        all.for_each(|cell| assert!(cells.insert(cell), "{}", panel["title"]));
        for target in panel["targets"].as_array().expect("queries") {
            let query = target["expr"].as_str().expect("a query").replace("$__rate_interval", "1m");
            rules.push(serde_json::json!({"record": format!("query:{}", rules.len()), "expr": query}));
        }
    }
    // As rules, promtool parses the queries.
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("queries.yml");
    std::fs::write(&path, serde_json::json!({"groups": [{"name": "queries", "rules": rules}]}).to_string()).unwrap();
    check(&["check", "rules", path.to_str().expect("UTF-8")], "");
}

#[tokio::test]
async fn promtool_finds_no_mistake_in_the_metrics() {
    let api = TestApi::new();
    let text = api.get("/metrics").await;
    check(&["check", "metrics"], text.text());
}
