//! Interoperation with servers of the original Mesa (`@cryb/mesa`) on the same Redis.
//!
//! - [`channel`]: the channel on which its servers and Dispatchers publish
//! - [`ingest`]: stores messages that were published there
//! - [`undelivered`], [`taken`], [`json_list`]: import of `undelivered_messages`

pub(super) mod channel;
pub(super) mod ingest;
pub(super) mod json_list;
pub(super) mod taken;
pub(super) mod undelivered;
