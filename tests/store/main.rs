//! The store, by its promises. Everything in `contract`, `limits`, `capacity`, `eviction` and `model` runs over all engines, Redis and a Redis Cluster
//! among them where it is built in; what only a disk can do is in `disk`, `missing` and `record_cache`, and what only a table in memory lets a
//! test do, damage one value, in `damage`.

#[cfg(feature = "redis")]
mod by_hand;
mod capacity;
mod contract;
mod damage;
mod disk;
#[cfg(feature = "redis")]
mod epoch;
mod eviction;
#[cfg(feature = "redis")]
mod failover;
mod lapses;
mod large_logs;
#[cfg(feature = "redis")]
mod left;
mod limits;
mod missing;
mod model;
mod record_cache;
#[cfg(feature = "redis")]
mod redis;
#[cfg(feature = "redis")]
mod redis_counters;
#[cfg(feature = "redis")]
#[path = "../support/redis.rs"]
mod redis_server;
#[cfg(feature = "redis")]
#[path = "../support/redis_topologies.rs"]
mod redis_topologies;
#[cfg(feature = "redis")]
#[path = "../support/seeded_rng.rs"]
#[allow(dead_code, reason = "each test uses its part")]
mod seeded_rng;
mod support;
