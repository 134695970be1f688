//! Keys and values of the table `meta`.

pub(in crate::embedded) const FORMAT_KEY: &[u8] = b"format";
pub(in crate::embedded) const NAMESPACE_KEY: &[u8] = b"namespace";
pub(in crate::embedded) const LOSSY_RESTARTS_KEY: &[u8] = b"lapses";
/// Number of lossy restarts that are counted one by one.
pub(in crate::embedded) const FULL_LOSSY_RESTARTS_KEY: &[u8] = b"full-lapses";
/// Last WAL record before the last lossy restart.
pub(in crate::embedded) const LOSSY_RESTART_RECORD_KEY: &[u8] = b"lapse-record";
/// Whether the store is open, and with which durability.
pub(in crate::embedded) const OPEN_KEY: &[u8] = b"open";
pub(in crate::embedded) const CLOSED: &[u8] = b"closed";
/// The highest flushed record. The WAL may no longer contain it.
pub(in crate::embedded) const FLUSHED_KEY: &[u8] = b"settled";
pub(in crate::embedded) const OPEN_ALWAYS: &[u8] = b"always";
pub(in crate::embedded) const OPEN_LOSSY: &[u8] = b"lossy";
/// The latest known time of the store's clock, in milliseconds of the Unix epoch.
pub(in crate::embedded) const CLOCK_KEY: &[u8] = b"clock";
/// The version of the format of all tables.
pub(in crate::embedded) const FORMAT: &[u8] = b"mesa-3";
