//! Delays the syncs of a running server. The log says what took long.

use std::collections::BTreeSet;

use crate::{
    env,
    strace::{self, Fault, StartResult},
    support::{http::Http, server::Home},
};

#[test]
fn slow_sync_of_a_commit_is_logged_with_what_took_the_time() {
    if !env::strace_available("syncs that take long") {
        return;
    }
    let home = Home::new();
    // More than the second beyond which a step counts as slow.
    let fault = Fault { call: "fdatasync".into(), effect: "delay_enter=1500000", when: 1, permanent: true };
    let StartResult::Listening(server) = strace::start(&home, "fdatasync", &BTreeSet::new(), Some(&fault)) else {
        panic!("expected the server to start:\n{}", home.log());
    };
    let mut http = Http::connect(server.address).expect("a connection");
    let dispatch = r#"{"message":{"d":1},"recipients":["alice"]}"#;
    assert_eq!(http.call("POST", "/v1/dispatch", dispatch).expect("a response").0, 200);
    let text = "the commit thread was slow: syncing a commit to the disk took long";
    let log = home.wait_for_log(|log| log.contains(text));
    let line = log.lines().find(|line| line.contains(text)).expect("the line");
    let seconds = line.split_once(" seconds=").and_then(|(_, rest)| rest.split(' ').next()?.parse::<f64>().ok());
    assert!(line.contains("WARN") && seconds.is_some_and(|seconds| seconds >= 1.5), "{line}");
}
