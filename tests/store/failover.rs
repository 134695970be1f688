//! Sequences after a failover of a Redis that has lost data: none is assigned twice.

use crate::{
    redis::{Somewhere, ask},
    redis_server::Redis,
    support::{append, read, receive},
};

#[tokio::test]
async fn a_log_that_a_failover_has_forgotten_whole_gives_out_no_number_twice() {
    let place = Somewhere::on(Redis::start());
    let store = place.server();
    for n in 1..=5 {
        append(&*store, n, &["a"]).await.unwrap();
    }
    for key in ["state", "log"] {
        ask(&place, &["DEL", &place.key(key, "a")]).await;
    }
    ask(&place, &["EVAL", "redis.call('HSET', KEYS[1], 'history', 'another', 'kept', '0')", "1", &place.era()]).await;
    let seqs = append(&*store, 6, &["a"]).await.unwrap();
    assert!(seqs[0] > 5, "{seqs:?}");
    receive(&*store, "a", 1, 5);
    assert_eq!(read(&*store, "a", 5), [(seqs[0], 6)], "what was received of the old ones is none of the new");
}

#[tokio::test]
async fn nor_does_it_by_a_server_that_has_not_looked_yet_what_has_taken_over() {
    let place = Somewhere::on(Redis::start());
    let [one, other] = [place.server(), place.server()];
    for n in 1..=5 {
        append(&*one, n, &["a"]).await.unwrap();
    }
    for key in ["state", "log"] {
        ask(&place, &["DEL", &place.key(key, "a")]).await;
    }
    ask(&place, &["EVAL", "redis.call('HSET', KEYS[1], 'history', 'another', 'kept', '0')", "1", &place.era()]).await;
    // This one finds out, and writes it down; the other does so within two seconds.
    append(&*one, 6, &["b"]).await.unwrap();
    let seqs = append(&*other, 7, &["a"]).await.unwrap();
    assert!(seqs[0] > 5, "{seqs:?}");
}

#[tokio::test]
async fn what_a_second_failover_takes_away_of_the_first_is_given_out_no_number_twice_either() {
    let place = Somewhere::on(Redis::start());
    let store = place.server();
    append(&*store, 1, &["a"]).await.unwrap();
    let (state, log) = (place.key("state", "a"), place.key("log", "a"));
    let copies = [&state, &log].map(|key| format!("{key} kept"));
    ask(&place, &["COPY", &state, &copies[0]]).await;
    ask(&place, &["COPY", &log, &copies[1]]).await;
    let another = "redis.call('HSET', KEYS[1], 'history', 'another', 'kept', '0')";
    ask(&place, &["EVAL", another, "1", &place.era()]).await;
    let given = append(&*store, 2, &["a"]).await.unwrap();
    // What takes over now has nothing of what this log was given since the first failover.
    ask(&place, &["RENAME", &copies[0], &state]).await;
    ask(&place, &["RENAME", &copies[1], &log]).await;
    ask(&place, &["EVAL", another, "1", &place.era()]).await;
    let seqs = append(&*store, 3, &["a"]).await.unwrap();
    assert!(seqs[0] > given[0], "{seqs:?} behind {given:?}");
}
