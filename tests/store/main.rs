//! Tests the contract of the store.
//!
//! - All engines, with the feature `redis` also Redis and a Redis Cluster: `contract`, `limits`, `idempotency`, `eviction`, `large_logs`,
//!   `model`. The embedded engines, on disk and in memory: `capacity`
//! - Engine on disk: `disk`, `incomplete_copies`, `lossy_restarts`, `record_cache`
//! - Engine in memory, where a test can damage a single value: `damage`
//! - Redis: `redis`, `redis_counters`, `epoch`, `failover`, `manual_changes`, `original_undelivered`

mod capacity;
mod contract;
mod damage;
mod disk;
#[cfg(feature = "redis")]
mod epoch;
mod eviction;
#[cfg(feature = "redis")]
mod failover;
mod idempotency;
mod incomplete_copies;
mod large_logs;
mod limits;
mod lossy_restarts;
#[cfg(feature = "redis")]
mod manual_changes;
mod model;
#[cfg(feature = "redis")]
mod original_undelivered;
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
#[allow(dead_code, reason = "each suite uses a part of it")]
mod seeded_rng;
mod support;
#[path = "../support/wait.rs"]
#[allow(dead_code, reason = "each suite uses a part of it")]
mod wait;
