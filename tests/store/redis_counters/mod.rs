//! The tallies in the state of a log over Redis: whatever was done, they agree with the stream, entry by entry; and what an append
//! takes away is what goes from a plain list.
//!
//! A *history* is some hundred random steps of two servers on the logs of three users, under limits of its own. After every step
//! `tallies.lua` holds each state against its stream, in Redis. `MESA_TALLIES` sets how many histories there are, and `MESA_SEED`
//! which is the first: `MESA_TALLIES=1000 cargo test --features redis --test store tallies -- --nocapture` is the long form.

mod history;
mod params;
mod reference_model;

use std::time::Instant;

use self::history::History;
use crate::{redis::Somewhere, redis_server::Redis, redis_topologies::Cluster, seeded_rng::announced_seed};

/// Histories where `MESA_TALLIES` says nothing: on one Redis, and in a Cluster.
const HISTORIES: u64 = 9;
const HISTORIES_SPREAD: u64 = 2;

/// How much of what it is for a run has come by.
#[derive(Debug, Default)]
pub struct Tally {
    /// Logs that were looked at, the entries in all of them, and how many had more than one block.
    pub checks: u64,
    pub entries: u64,
    pub several_blocks: u64,
    pub appends: u64,
    /// Copies of which it was known beforehand what becomes of them; what went for those, and how many were not taken.
    pub foretold: u64,
    pub dropped: u64,
    pub refused: u64,
    pub failovers: u64,
    /// Keys of one log that were deleted.
    pub deletions: u64,
    pub restarts: u64,
}

async fn run(name: &str, place: fn() -> Somewhere, histories: u64) {
    let wanted = std::env::var("MESA_TALLIES");
    let histories = wanted.map_or(histories, |number| number.parse().expect("MESA_TALLIES is a number"));
    let (seed, mut all) = (announced_seed(name), Tally::default());
    let began = Instant::now();
    for n in 0..histories {
        History::new(&place(), seed.wrapping_add(n), &mut all).run().await;
    }
    println!("{name}: {histories} histories in {:.1} s: {all:?}", began.elapsed().as_secs_f64());
    // A shorter run need not have come by everything.
    if histories >= HISTORIES {
        assert!(all.several_blocks > 0 && all.foretold > 0 && all.dropped > 0, "not all was looked at: {all:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tallies_over_redis_agree_with_the_entries_after_any_history() {
    // Or each history would start one of its own.
    let _redis = Redis::shared();
    run("tallies", Somewhere::default, HISTORIES).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tallies_in_a_redis_cluster_agree_with_the_entries_after_any_history() {
    let _cluster = Cluster::shared();
    run("tallies in a cluster", Somewhere::spread, HISTORIES_SPREAD).await;
}
