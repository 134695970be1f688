//! `mesa serve`: what it says at its start.

use std::fs;

use crate::support::server::Home;

#[test]
fn each_warning_is_logged_once() {
    let home = Home::with("store: { maxBytes: 1000000 },");
    let server = home.start();
    let log = fs::read_to_string(home.path("log")).expect("a log");
    for warning in ["every token is believed", "one user who stays away can fill the store"] {
        assert_eq!(log.matches(warning).count(), 1, "{warning}:\n{log}");
    }
    drop(server);
}
