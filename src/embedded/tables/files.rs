//! Names of the files in a store directory, and the segment size of sled.

/// What sled has: the tables.
pub(in crate::embedded) const LOG: &str = "log";
/// sled's file, in there, and its settings.
pub(in crate::embedded) const DB: &str = "db";
pub(in crate::embedded) const CONF: &str = "conf";
/// How far all was synced.
pub(in crate::embedded) const WATERMARK: &str = "mark";
/// The journal's files.
pub(in crate::embedded) const WAL: &str = "journal";
/// The files of inboxes.
pub(in crate::embedded) const VALUE_LOG: &str = "inbox";
/// The lock against other processes.
pub(in crate::embedded) const LOCK: &str = "lock";
/// The tables while they are made.
pub(super) const MAKING: &str = "making";
/// Tables that are whole and are to take the place of those there are.
pub(in crate::embedded) const REBUILT: &str = "rebuilt";
/// The marker of a store that is made or changed as a whole.
pub(in crate::embedded) const UNFINISHED: &str = "unfinished";
/// A file that is removed where the disk is full.
pub(super) const BALLAST: &str = "ballast";
/// What was in the way and is not deleted.
pub(super) const SET_ASIDE: &str = "set-aside";
/// The portals of a server, which writes that file itself.
pub(super) const PORTALS: &str = "portals.json";
/// sled's own segments. They cannot be changed once a store exists.
pub(in crate::embedded) const SEGMENT_BYTES: usize = 8 << 20;
