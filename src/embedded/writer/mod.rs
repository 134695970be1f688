//! Implements the commit thread: the only thread that writes the store.
//!
//! - `state`: what the commit thread owns
//! - `queue`, `commit`, `reply`: queued operations, the thread, and its replies · `records`: the records of a commit
//! - `append`, `dedup`: entries, and deduplication by idempotency id
//! - `row`: the rows of users
//! - `flush`: moves entries from the write-ahead log to the value log · `merge`: merges small blocks there
//! - `trim`, `purge`: remove entries from there, in steps · `jobs`: what is left of them · `count`: counts those that
//!   stay
//! - `bodies`: moves shared bodies there, and removes those that no block references
//! - `erase`: removes everything about a user
//! - `events`: webhook events
//! - `quota`, `expiry`: quotas and capacity, removal by TTL and age
//! - `connected`: the table of users with connections
//! - `cost`, `suspend`: disk space that appends need, and work that is suspended without space

pub(super) mod append;
mod backpressure;
mod bodies;
pub(super) mod commit;
pub(super) mod connected;
pub(super) mod cost;
pub(super) mod count;
pub(super) mod dedup;
pub(super) mod erase;
pub(super) mod events;
pub(super) mod expiry;
pub(super) mod flush;
pub(super) mod jobs;
mod merge;
pub(super) mod purge;
pub(super) mod queue;
pub(super) mod quota;
pub(super) mod records;
pub(super) mod reply;
mod row;
pub(super) mod state;
pub(super) mod suspend;
pub(super) mod trim;
