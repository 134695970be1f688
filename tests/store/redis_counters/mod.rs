//! Tests the counters in the state of a log on Redis: they match the stream after every step, entry by entry.
//!
//! A *history* is 80 random steps of two servers on the logs of three users, with random limits. After every step
//! `check_counters.lua` compares each state with its stream, in Redis. An append evicts what it evicts from a plain
//! list (`reference_model`). `MESA_HISTORIES` sets the number of histories, and `MESA_SEED` the seed of the first:
//! `MESA_HISTORIES=1000 cargo test --features redis --test store redis_counters -- --nocapture` is a long run.

mod history;
mod params;
mod reference_model;

use std::time::Instant;

use self::history::History;
use crate::{redis::RedisNamespace, redis_server::Redis, redis_topologies::RedisCluster, seeded_rng::seed_from_env};

/// Histories on a single Redis without `MESA_HISTORIES`.
const HISTORIES: u64 = 9;
/// Histories on a Redis Cluster without `MESA_HISTORIES`.
const CLUSTER_HISTORIES: u64 = 2;

/// Counts of what a run has covered.
#[derive(Debug, Default)]
pub struct Coverage {
    /// Logs that were checked.
    pub checks: u64,
    /// Entries in these.
    pub entries: u64,
    /// Checked logs with more than one block.
    pub several_blocks: u64,
    pub appends: u64,
    /// Appended entries whose result the reference model predicted.
    pub predicted: u64,
    /// Entries evicted for these.
    pub dropped: u64,
    /// Rejections among these.
    pub rejected: u64,
    pub failovers: u64,
    /// Deletions of keys of one log.
    pub deletions: u64,
    pub restarts: u64,
}

async fn run(name: &str, namespace: fn() -> RedisNamespace, histories: u64) {
    let variable = std::env::var("MESA_HISTORIES");
    let histories = variable.map_or(histories, |number| number.parse().expect("MESA_HISTORIES is a number"));
    let (seed, mut all) = (seed_from_env(name), Coverage::default());
    let began = Instant::now();
    for n in 0..histories {
        History::new(&namespace(), seed.wrapping_add(n), &mut all).run().await;
    }
    println!("{name}: {histories} histories in {:.1} s: {all:?}", began.elapsed().as_secs_f64());
    // A shorter run need not cover everything.
    if histories >= HISTORIES {
        assert!(
            all.several_blocks > 0 && all.predicted > 0 && all.dropped > 0,
            "expected several blocks, predictions and evictions: {all:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counters_on_redis_match_the_entries_after_each_step() {
    // Without this reference each history would start a Redis of its own.
    let _redis = Redis::shared();
    run("redis_counters", RedisNamespace::default, HISTORIES).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counters_on_a_redis_cluster_match_the_entries_after_each_step() {
    let _cluster = RedisCluster::shared();
    run("redis_counters on a cluster", RedisNamespace::in_cluster, CLUSTER_HISTORIES).await;
}
