//! Tests that no sequence is assigned twice after a Redis failover that lost data.

use crate::{
    redis::{RedisNamespace, run_command},
    redis_server::Redis,
    support::{acknowledge, append, read},
};

// covers: G5
#[tokio::test]
async fn log_lost_in_a_failover_reuses_no_sequence() {
    let namespace = RedisNamespace::on(Redis::start());
    let store = namespace.open_default();
    for n in 1..=5 {
        append(&*store, n, &["a"]).await.unwrap();
    }
    for key in ["state", "log"] {
        run_command(&namespace, &["DEL", &namespace.key(key, "a")]).await;
    }
    namespace.change_epoch();
    let seqs = append(&*store, 6, &["a"]).await.unwrap();
    assert!(seqs[0] > 5, "{seqs:?}");
    acknowledge(&*store, "a", 1, 5);
    assert_eq!(read(&*store, "a", 5), [(seqs[0], 6)], "acknowledgements of lost entries do not cover new ones");
}

// covers: G5
#[tokio::test]
async fn log_lost_in_a_failover_that_a_server_has_not_detected_reuses_no_sequence() {
    let namespace = RedisNamespace::on(Redis::start());
    let [one, other] = [namespace.open_default(), namespace.open_default()];
    for n in 1..=5 {
        append(&*one, n, &["a"]).await.unwrap();
    }
    for key in ["state", "log"] {
        run_command(&namespace, &["DEL", &namespace.key(key, "a")]).await;
    }
    namespace.change_epoch();
    // This server detects the failover and stores the new epoch. The other one checks every 2 s.
    append(&*one, 6, &["b"]).await.unwrap();
    let seqs = append(&*other, 7, &["a"]).await.unwrap();
    assert!(seqs[0] > 5, "{seqs:?}");
}

// covers: G5
#[tokio::test]
async fn log_reverted_by_a_second_failover_reuses_no_sequence() {
    let namespace = RedisNamespace::on(Redis::start());
    let store = namespace.open_default();
    append(&*store, 1, &["a"]).await.unwrap();
    let (state, log) = (namespace.key("state", "a"), namespace.key("log", "a"));
    let copies = [&state, &log].map(|key| format!("{key} copy"));
    run_command(&namespace, &["COPY", &state, &copies[0]]).await;
    run_command(&namespace, &["COPY", &log, &copies[1]]).await;
    namespace.change_epoch();
    let assigned = append(&*store, 2, &["a"]).await.unwrap();
    // The Redis that takes over now lacks every entry since the first failover.
    run_command(&namespace, &["RENAME", &copies[0], &state]).await;
    run_command(&namespace, &["RENAME", &copies[1], &log]).await;
    namespace.change_epoch();
    let seqs = append(&*store, 3, &["a"]).await.unwrap();
    assert!(seqs[0] > assigned[0], "{seqs:?} after {assigned:?}");
}
