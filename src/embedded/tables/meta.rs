//! Keys and values of the table `meta`.

pub(in crate::embedded) const FORMAT_KEY: &[u8] = b"format";
pub(in crate::embedded) const NAMESPACE_KEY: &[u8] = b"namespace";
pub(in crate::embedded) const LOSSY_RESTARTS_KEY: &[u8] = b"lapses";
/// How many of the lapses count one by one.
pub(in crate::embedded) const FULL_LOSSY_RESTARTS_KEY: &[u8] = b"full-lapses";
/// The last record before the last lapse.
pub(in crate::embedded) const LOSSY_RESTART_RECORD_KEY: &[u8] = b"lapse-record";
/// Whether the store is open, and how durable its answers are.
pub(in crate::embedded) const OPEN_KEY: &[u8] = b"open";
pub(in crate::embedded) const CLOSED: &[u8] = b"closed";
/// The highest record that was settled and may be gone from the journal.
pub(in crate::embedded) const FLUSHED_KEY: &[u8] = b"settled";
pub(in crate::embedded) const OPEN_ALWAYS: &[u8] = b"always";
pub(in crate::embedded) const OPEN_LOSSY: &[u8] = b"lossy";
/// The latest time the store's clock is known to have shown, in milliseconds of the Unix epoch.
pub(in crate::embedded) const CLOCK_KEY: &[u8] = b"clock";
/// The version of everything in the tables.
pub(in crate::embedded) const FORMAT: &[u8] = b"mesa-3";
