//! An answered dispatch is on disk: shown from outside, by the order of system calls.
//!
//! This proves what a killed process cannot: that the bytes were handed to the disk, and not only to the kernel, before
//! the backend was told that they are safe.

#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "each test uses its part")]
mod support;
mod trace;

use std::{fs, process::Command, time::Duration};

use serde_json::json;
use support::{http::Http, server::Home};

/// Dispatches in a row.
const DISPATCHES: usize = 20;

#[test]
fn a_dispatch_answered_is_on_disk() {
    if !strace_is_here() {
        return;
    }
    let home = Home::new();
    let trace = home.path("trace");
    let wrapper = [
        "strace",
        "-f",
        "-tt",
        "-y",
        // Long enough for whole records: the marker may stand anywhere in one.
        "-s",
        "1048576",
        "-e",
        "trace=pwrite64,pwritev,write,writev,sendto,sendmsg,fdatasync,fsync,sync_file_range",
        "-o",
        trace.to_str().expect("a plain path"),
    ];
    let server = home.wait_until_ready(home.spawn(&wrapper));
    let mut http = Http::connect(server.address).expect("a connection");
    let markers: Vec<String> = (0..DISPATCHES).map(|n| format!("marker-{n:04}-of-the-trace")).collect();
    for marker in &markers {
        http.dispatch(&json!({ "marker": marker }), &["alice".to_owned()]).expect("an answer");
    }
    server.terminate();
    let status = server.process.wait(Duration::from_secs(30));
    assert!(status.success(), "{status}:\n{}", home.log());

    let trace = fs::read_to_string(&trace).expect("a trace");
    let store = fs::canonicalize(home.store()).expect("a store");
    let calls = trace::parse(&trace);
    assert!(calls.iter().any(trace::Call::is_sync), "not one sync in {} calls", calls.len());
    trace::synced_before_answered(&calls, store.to_str().expect("a plain path"), &markers)
        .unwrap_or_else(|early| panic!("{early}"));
}

/// Where it is not, says so; and with `CI` set that is a failure.
fn strace_is_here() -> bool {
    let here = Command::new("strace").arg("-V").output().is_ok_and(|output| output.status.success());
    if !here {
        let lack = "strace is not installed: the order of writing, syncing and answering was NOT checked";
        assert!(std::env::var_os("CI").is_none(), "{lack}");
        use std::io::Write as _;
        _ = writeln!(std::io::stderr(), "{lack}");
    }
    here
}
