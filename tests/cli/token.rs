//! Tests `mesa token`.

use crate::{output_text, run_mesa};

#[test]
fn secret_shorter_than_16_bytes_is_rejected() {
    let short = run_mesa(&["token", "--id", "alice", "--secret", "fifteen-bytes-x"]);
    assert!(!short.status.success() && short.stdout.is_empty(), "{}", output_text(&short));
    assert!(output_text(&short).contains("15 bytes") && output_text(&short).contains("16"), "{}", output_text(&short));
    assert!(output_text(&short).contains("`openssl rand -hex 32` makes one"), "{}", output_text(&short));
    let enough = run_mesa(&["token", "--id", "alice", "--secret", "sixteen-bytes-xx"]);
    assert!(enough.status.success() && output_text(&enough).split('.').count() == 3, "{}", output_text(&enough));
}
