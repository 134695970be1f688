//! `mesa token`.

use crate::{mesa, said};

#[test]
fn a_secret_that_no_server_takes_signs_nothing() {
    let short = mesa(&["token", "--id", "alice", "--secret", "fifteen-bytes-x"]);
    assert!(!short.status.success() && short.stdout.is_empty(), "{}", said(&short));
    assert!(said(&short).contains("15 bytes") && said(&short).contains("16"), "{}", said(&short));
    assert!(said(&short).contains("`openssl rand -hex 32` makes one"), "{}", said(&short));
    let enough = mesa(&["token", "--id", "alice", "--secret", "sixteen-bytes-xx"]);
    assert!(enough.status.success() && said(&enough).split('.').count() == 3, "{}", said(&enough));
}
