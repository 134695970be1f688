//! Commits: the only thread that writes the store, and what it does.
//!
//! - `state`: what the commit thread owns
//! - `queue`, `commit`, `answer`: the thread, the operations that wait for it, and its answers
//! - `append`, `dedup`: entries, and deduplication by idempotency id
//! - `flush`: from the write-ahead log to the logs of users
//! - `quota`, `expiry`: quotas and capacity, removal by TTL and age
//! - `cost`, `suspend`: disk space that appends need, and work that waits for space

pub(super) mod append;
pub(super) mod commit;
pub(super) mod cost;
pub(super) mod dedup;
pub(super) mod expiry;
pub(super) mod flush;
pub(super) mod queue;
pub(super) mod quota;
pub(super) mod reply;
pub(super) mod state;
pub(super) mod suspend;
