//! Checks the order of system calls: the entries are synced before the dispatch is answered.
//!
//! A test that kills the process cannot show this, because the kernel still holds the unsynced bytes. The trace shows
//! that the sync has returned before the server writes the response.

#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "each suite uses a part of it")]
mod support;
mod trace;

use std::{fs, process::Command, time::Duration};

use serde_json::json;
use support::{http::Http, server::Home};

/// Number of dispatches, each sent after the response to the one before.
const DISPATCHES: usize = 20;

// covers: G1
#[test]
fn dispatch_when_answered_is_synced_to_disk() {
    if !strace_available() {
        return;
    }
    let home = Home::new();
    let trace = home.path("trace");
    let wrapper = [
        "strace",
        "-f",
        "-tt",
        "-y",
        // Long enough for whole records: the marker may be anywhere in one.
        "-s",
        "1048576",
        "-e",
        "trace=pwrite64,pwritev,write,writev,sendto,sendmsg,fdatasync,fsync,sync_file_range",
        "-o",
        trace.to_str().expect("a UTF-8 path"),
    ];
    let server = home.wait_until_ready(home.spawn(&wrapper));
    let mut http = Http::connect(server.address).expect("a connection");
    let markers: Vec<String> = (0..DISPATCHES).map(|n| format!("marker-{n:04}-of-the-trace")).collect();
    for marker in &markers {
        http.dispatch(&json!({ "marker": marker }), &["alice".to_owned()]).expect("a response");
    }
    server.stop(Duration::from_secs(30));

    let trace = fs::read_to_string(&trace).expect("a trace");
    let store = fs::canonicalize(home.store()).expect("a store");
    let calls = trace::parse(&trace);
    assert!(calls.iter().any(trace::Call::is_sync), "expected at least one sync in {} calls", calls.len());
    trace::check_synced_before_response(&calls, store.to_str().expect("a UTF-8 path"), &markers)
        .unwrap_or_else(|violation| panic!("{violation}"));
}

/// Reports whether `strace` is installed. If not, prints that the check is skipped; with `CI` set, panics.
fn strace_available() -> bool {
    let available = Command::new("strace").arg("-V").output().is_ok_and(|output| output.status.success());
    if !available {
        let skipped = "strace is not installed: the order of write, sync and response was NOT checked";
        assert!(std::env::var_os("CI").is_none(), "{skipped}");
        use std::io::Write as _;
        _ = writeln!(std::io::stderr(), "{skipped}");
    }
    available
}
