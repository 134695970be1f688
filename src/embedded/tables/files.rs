//! Names of the files in a store directory, and the segment size of sled.

/// Directory of sled: the tables.
pub(in crate::embedded) const LOG: &str = "log";
/// sled's data file in that directory, and its settings.
pub(in crate::embedded) const DB: &str = "db";
pub(in crate::embedded) const CONF: &str = "conf";
/// The sync watermark.
pub(in crate::embedded) const WATERMARK: &str = "mark";
/// Directory of the write-ahead log.
pub(in crate::embedded) const WAL: &str = "journal";
/// Directory of the value log.
pub(in crate::embedded) const VALUE_LOG: &str = "inbox";
/// Lock file against other processes.
pub(in crate::embedded) const LOCK: &str = "lock";
/// Directory of sled while it is created.
pub(super) const MAKING: &str = "making";
/// Complete tables that are about to replace the current ones.
pub(in crate::embedded) const REBUILT: &str = "rebuilt";
/// Marker of a store that a restore, a salvage or an import has not finished.
pub(in crate::embedded) const UNFINISHED: &str = "unfinished";
/// File that is removed to open the store on a full disk.
pub(super) const BALLAST: &str = "ballast";
/// Directory of files that were set aside and not deleted.
pub(super) const SET_ASIDE: &str = "set-aside";
/// The portal ids of a server, which writes this file itself.
pub(super) const PORTALS: &str = "portals.json";
/// Segment size of sled. It cannot change once a store exists.
pub(in crate::embedded) const SEGMENT_BYTES: usize = 8 << 20;
