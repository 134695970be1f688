//! Key names, channel names and JSON of the original Mesa (`@cryb/mesa`) on Redis.
//!
//! - [`keyspace`]: keys and channels
//! - [`dispatch`]: messages that Dispatchers and servers publish
//! - [`portal_event`]: events that servers publish to Portals

pub mod dispatch;
pub mod keyspace;
pub mod portal_event;
