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

#[tokio::test]
async fn promtool_finds_no_mistake_in_the_metrics() {
    let api = TestApi::new();
    let text = api.get("/metrics").await;
    check(&["check", "metrics"], text.text());
}
