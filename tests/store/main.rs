//! The store, by its promises. Everything in `battery`, `limits`, `dropping` and `model` runs over all engines, Redis and a Redis Cluster
//! among them where it is built in; what only a disk can do is in `disk`, `missing` and `reading`, and what only a table in memory lets a
//! test do, damage one value, in `damage`.

mod battery;
#[cfg(feature = "redis")]
mod by_hand;
mod damage;
mod disk;
mod dropping;
#[cfg(feature = "redis")]
mod epoch;
mod lapses;
#[cfg(feature = "redis")]
mod left;
mod limits;
mod long;
mod missing;
mod model;
#[cfg(feature = "redis")]
#[path = "../support/random.rs"]
#[allow(dead_code, reason = "each test uses its part")]
mod random;
mod reading;
#[cfg(feature = "redis")]
mod redis;
#[cfg(feature = "redis")]
#[path = "../support/redis_modes.rs"]
mod redis_modes;
#[cfg(feature = "redis")]
#[path = "../support/redis.rs"]
mod redis_server;
mod support;
#[cfg(feature = "redis")]
mod tallies;
