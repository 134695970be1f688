//! Shares portals among the servers on one Redis.
//!
//! - `portal_pool`: the shared pool, and events for it
//! - `portal_event_codec`: JSON of portal events

pub(super) mod portal_event_codec;
pub(super) mod portal_pool;
