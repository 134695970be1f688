//! Tests `mesa status`, printed once and as a screen.

use std::process::Stdio;

use serde_json::{Value, json};

use crate::{
    WAIT_TIMEOUT, output_text, run_mesa,
    support::{
        command::mesa_command,
        http_receiver::{Receiver, Response},
        server::{Home, KEY},
        terminal::Terminal,
    },
};

/// Shows the screen of the terminal again, as at the end of the command.
const RESTORED: &str = "\x1b[?7h\x1b[?25h\x1b[?1049l";

fn state(dispatches: u64, uptime: u64) -> Value {
    json!({
        "version": "0.1.0", "startedAt": "2026-11-30T10:00:00.000Z", "uptimeSeconds": uptime, "ready": true,
        "notReadyReason": null,
        "connections": { "open": 12, "authenticated": 11, "accepted": 400, "rejected": 3 }, "users": { "online": 10 },
        "messages": { "dispatches": dispatches, "appended": 7, "delivered": 6, "redelivered": 1, "acknowledged": 5,
                      "rejected": 2, "dropped": 0 },
        "pending": { "messages": 4, "bytes": 4096 },
        "store": { "kind": "embedded", "walBytes": 1 << 20, "memoryBytes": 1 << 21, "diskBytes": 1 << 22,
                   "diskFreeBytes": 1_u64 << 40, "flushLagSeconds": 0.5, "commits": 9,
                   "commitLatencyMicros": { "p50": 420, "p99": 1_900, "max": 12_000 } },
        "process": { "cpuSeconds": 1.5, "residentBytes": 1 << 25, "openFiles": 34 },
        "webhooks": { "outboxEvents": 5, "outboxBytes": 600 },
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn status_is_printed_once_without_a_terminal() {
    let receiver = Receiver::start();
    receiver.respond_with(Response::json(state(1234, 90_061)));
    let url = format!("http://{}", receiver.address);
    for args in [&["status"][..], &["status", "--once"]] {
        let output = run_mesa(&[args, &["--url", &format!("{url}/v1")]].concat());
        assert!(output.status.success(), "{}", output_text(&output));
        let text = output_text(&output);
        assert!(text.starts_with(&format!("mesa 0.1.0 at {url}, up 1 d 1 h\nready\n")), "{text}");
        for expected in [
            "connections   12 open, 11 authenticated, 400 accepted, 3 rejected",
            "users         10 online",
            "pending       4 messages, 4.0 KiB",
            "  dispatches             1,234\n",
            "store         embedded, disk 4.0 MiB, free 1.0 TiB, memory 2.0 MiB",
            "WAL           1.0 MiB, flush lag 0.5 s",
            "commits       p50 0.4 ms, p99 1.9 ms, max 12.0 ms",
            "process       32.0 MiB of memory, 34 files open",
            "webhooks      5 events in the outbox, 600 bytes",
        ] {
            assert!(text.contains(expected), "{expected}:\n{text}");
        }
        assert!(!text.contains('\x1b') && !text.contains("per second"), "{text}");
    }
    let output = run_mesa(&["status", "--json", "--url", &url]);
    let printed: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    assert_eq!((&printed["messages"], &printed["webhooks"]), (&state(1234, 0)["messages"], &state(0, 0)["webhooks"]));
    let asked = &receiver.requests()[0];
    assert_eq!(asked.line, "GET /v1/status HTTP/1.1");
    assert_eq!(asked.header("authorization"), Some(&*format!("Bearer {KEY}")));
}

#[tokio::test(flavor = "multi_thread")]
async fn status_screen_has_rates_survives_an_outage_and_restores_the_terminal() {
    let mut receiver = Receiver::start();
    receiver.script([Response::json(state(100, 1))]);
    receiver.respond_with(Response::json(state(600, 2)));
    let mut command = mesa_command();
    command.args(["status", "--url", &format!("http://{}", receiver.address), "--key", KEY]).stdin(Stdio::null());
    let terminal = Terminal::spawn(&mut command);
    terminal.wait_for("the first state has no rates", |text| {
        text.starts_with("\x1b[?1049h") && text.contains("  dispatches               100\x1b[K")
    });
    const SECOND: &str = "  dispatches               600";
    let rest = |text: &str| text.split(SECOND).nth(1).and_then(|rest| Some(rest.split_once("\x1b[K")?.0.to_owned()));
    let refreshed = terminal.wait_for("the second state", |text| rest(text).is_some());
    assert!(refreshed.contains("per second\x1b[K"), "{refreshed:?}");
    let rate: f64 = rest(&refreshed).unwrap().trim().parse().expect("a rate");
    assert!(rate > 0.0 && rate <= 500.0, "500 in a second or more: {rate}");

    receiver.down();
    let lost = terminal.wait_for("the outage", |text| text.contains("The last known state:"));
    assert!(lost.contains("cannot connect to http://") && lost.contains("Is the server running"), "{lost:?}");
    receiver.respond_with(Response::json(state(777, 3)));
    receiver.up();
    terminal.wait_for("the state after the outage", |text| text.contains("dispatches               777"));

    let pid = i32::try_from(terminal.process.id()).unwrap();
    let pid = rustix::process::Pid::from_raw(pid).expect("a process id");
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("a running command");
    let shown = terminal.wait_for("the restored terminal", |text| text.ends_with(RESTORED));
    assert_eq!(shown.matches("\x1b[?1049h").count(), 1);
    assert_eq!(terminal.process.wait(WAIT_TIMEOUT).code(), Some(0));
}

#[test]
fn status_of_a_real_server_is_shown_or_explained() {
    let home = Home::new();
    let server = home.start();
    let output = run_mesa(&["status", "--json", "--url", &format!("http://{}", server.address)]);
    let status: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", output_text(&output)));
    assert_eq!((&status["ready"], &status["store"]["kind"]), (&json!(true), &json!("embedded")), "{status}");
}
