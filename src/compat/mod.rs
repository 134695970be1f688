//! Key names, channel names and JSON of the original Mesa (`@cryb/mesa`) on Redis.
//!
//! - [`keyspace`]: keys and channels
//! - [`dispatch`]: messages that Dispatchers and servers publish and store
//! - [`portal`]: announcements of Portals, and events for them

pub mod dispatch;
pub mod keyspace;
pub mod portal;
