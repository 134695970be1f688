//! Names of the files in a store directory, the size of a lock file, and the segment size of sled.

/// Directory of sled, which holds the tables.
pub(in crate::embedded) const SLED_DIR: &str = "log";
/// sled's data file in its directory.
pub(in crate::embedded) const SLED_FILE: &str = "db";
/// sled's settings in its directory.
pub(in crate::embedded) const SLED_CONF: &str = "conf";
/// File of the sync watermark.
pub(in crate::embedded) const WATERMARK: &str = "mark";
/// Directory of the write-ahead log.
pub(in crate::embedded) const WAL: &str = "wal";
/// Directory of the value log.
pub(in crate::embedded) const VALUE_LOG: &str = "value-log";
/// Lock file, which holds the process id of the server.
pub(in crate::embedded) const LOCK: &str = "lock";
/// Size limit of a mesa lock file, in bytes. A process id has at most ten digits.
pub(super) const LOCK_BYTES_MAX: u64 = 32;
/// Directory in which sled's files are created.
pub(super) const STAGING: &str = "making";
/// Directory of rebuilt tables that are about to replace the current ones.
pub(in crate::embedded) const REBUILT: &str = "rebuilt";
/// Marker file of a store whose restore, salvage or import is not finished.
pub(in crate::embedded) const UNFINISHED: &str = "unfinished";
/// File that is removed to open the store on a full disk. It only occupies space.
pub(super) const BALLAST: &str = "ballast";
/// Directory of files that were moved away instead of deleted.
pub(super) const SET_ASIDE: &str = "set-aside";
/// Portal ids. The server writes this file, not the store.
pub(super) const PORTALS: &str = "portals.json";
/// API key of `--dev`. The server writes this file, not the store.
pub(super) const DEV_KEY: &str = "dev-api-key";
/// Segment size of sled, in bytes. It cannot change once a store exists.
///
/// sled keeps a few segments in memory, so a small one makes a small server. The largest page bounds it from below: sled
/// writes a page of more than a quarter of a segment, less 52 bytes, into a file of its own, which it never syncs. Here
/// that limit is 131,020 bytes.
///
/// - A *leaf* splits when a traversal finds more than 16 values in it. So it has at most 17, or 20 after it took the 3
///   values of a merged neighbour. The traversal that merges them visits it at once, and splits it. A key has at most 265
///   bytes (user id and sequence), a value [`VALUE_BYTES_MAX`](super::schema::VALUE_BYTES_MAX), and each pair less than
///   32 bytes of overhead: 87,860 bytes for 20 pairs. That leaves space for the merges of three more threads.
/// - An *index* splits above 256 children, and takes at most 63 of a merged neighbour: 320 keys of less than 300 bytes
///   with their overhead, 96,000 bytes.
/// - A change to a page is written as one pair.
pub(in crate::embedded) const SEGMENT_BYTES: usize = 512 << 10;
