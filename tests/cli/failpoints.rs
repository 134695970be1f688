//! Tests the variables `MESA_FAILPOINT` and `MESA_FAILPOINT_PANIC`. They need `--features failpoints`.

use crate::support::server::Home;

#[test]
fn server_with_unknown_failpoint_exits_and_names_the_known_ones() {
    let mut home = Home::new();
    home.set_variable("MESA_FAILPOINT", "NoSink");
    let error = home.ready(home.spawn(&[])).expect_err("the server does not start");
    assert!(error.contains("exit status: 1") && error.contains("unknown failpoint \"NoSink\""), "{error}");
    assert!(error.contains("NoSync") && error.contains("EarlyFlush"), "{error}");
    assert!(!home.store().exists(), "expected no store to be created");
    home.set_variable("MESA_FAILPOINT", "NoSync");
    home.start();
}

#[test]
fn server_with_unknown_panic_point_exits_and_names_the_known_ones() {
    let mut home = Home::new();
    home.set_variable("MESA_FAILPOINT_PANIC", "handlers,commit_tread");
    let error = home.ready(home.spawn(&[])).expect_err("the server does not start");
    assert!(error.contains("exit status: 1") && error.contains("unknown panic point \"commit_tread\""), "{error}");
    assert!(error.contains("commit_thread") && error.contains("webhook_delivery"), "{error}");
    assert!(!home.store().exists(), "expected no store to be created");
    home.set_variable("MESA_FAILPOINT_PANIC", "handlers,commit_thread");
    home.start();
}
