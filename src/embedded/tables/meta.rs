//! Keys and values of the table `meta`.

use crate::{logging::excerpt, store::StoreError};

/// The format of the store: [`FORMAT`].
pub(in crate::embedded) const FORMAT_KEY: &[u8] = b"format";
/// The namespace of the store.
pub(in crate::embedded) const NAMESPACE_KEY: &[u8] = b"namespace";
/// Number of all lossy restarts.
pub(in crate::embedded) const LOSSY_RESTARTS_KEY: &[u8] = b"lapses";
/// Number of lossy restarts when the store was restored: a log skips once for each.
pub(in crate::embedded) const FULL_LOSSY_RESTARTS_KEY: &[u8] = b"full-lapses";
/// Last WAL record before the last lossy restart.
pub(in crate::embedded) const LOSSY_RESTART_RECORD_KEY: &[u8] = b"lapse-record";
/// Whether the store is open, and with which durability: `CLOSED`, `OPEN_ALWAYS` or `OPEN_LOSSY`.
pub(in crate::embedded) const OPEN_KEY: &[u8] = b"open";
pub(in crate::embedded) const CLOSED: &[u8] = b"closed";
pub(in crate::embedded) const OPEN_ALWAYS: &[u8] = b"always";
/// Open with a durability other than `always`.
pub(in crate::embedded) const OPEN_LOSSY: &[u8] = b"lossy";
/// The highest flushed record. The WAL may no longer contain it.
pub(in crate::embedded) const FLUSHED_KEY: &[u8] = b"settled";
/// The latest known time of the store's clock, in milliseconds of the Unix epoch.
pub(in crate::embedded) const CLOCK_KEY: &[u8] = b"clock";
/// The sequence at which a new log starts: at least the head of every erased log.
pub(in crate::embedded) const FLOOR_KEY: &[u8] = b"floor";
/// Highest number of a file of the value log to which a row refers or has referred.
pub(in crate::embedded) const VALUE_LOG_FILE_KEY: &[u8] = b"value-log-file";
/// Live bytes of the value log at the last flush or close: an estimate of those at the next opening.
pub(in crate::embedded) const LIVE_BYTES_KEY: &[u8] = b"live-bytes";
/// Numbers of the files of the value log that have blocks of erased users, each a u64 with the highest byte first.
///
/// A file that is gone may still be in this list until another file is added.
pub(in crate::embedded) const ERASED_FILES_KEY: &[u8] = b"erased-files";
/// Name of the store's format. A change of any encoding needs another name.
pub(in crate::embedded) const FORMAT: &[u8] = b"mesa-6";

/// Rejects a store of another format. A new store has no format yet.
pub(in crate::embedded) fn check_format(found: Option<&[u8]>) -> Result<(), StoreError> {
    let Some(found) = found.filter(|found| *found != FORMAT) else { return Ok(()) };
    let [found, ours] = [found, FORMAT].map(String::from_utf8_lossy);
    let found = excerpt(&found);
    Err(StoreError::Incompatible(format!(
        "the store has format {found}, and this version of mesa reads only {ours}: use the version that wrote the store"
    )))
}

/// Rejects a store of another namespace. A new store has no namespace yet.
pub(in crate::embedded) fn check_namespace(found: Option<&[u8]>, namespace: &str) -> Result<(), StoreError> {
    let Some(found) = found.filter(|found| *found != namespace.as_bytes()) else { return Ok(()) };
    let found = String::from_utf8_lossy(found);
    Err(StoreError::Incompatible(format!(
        "the store belongs to namespace {found:?}, and the configuration has {namespace:?}. Set the store's namespace, or \
         give this namespace its own store.path"
    )))
}

#[cfg(test)]
mod tests {
    use crate::{
        embedded::{
            engine::Engine,
            offline::inspect::Inspection,
            tables::{
                DiskOptions,
                contract::{Table, Tables},
                meta::FORMAT_KEY,
                open,
                unfinished::{self, Operation},
            },
        },
        store::StoreError,
    };

    #[test]
    fn store_of_another_format_is_rejected_with_what_to_do() {
        for format in ["mesa-0", "mesa-999"] {
            let home = tempfile::tempdir().unwrap();
            let engine = open::create(home.path(), Operation::Import).unwrap();
            engine.put(Table::Meta, FORMAT_KEY, format.as_bytes()).unwrap();
            engine.checkpoint().unwrap();
            drop(engine);
            unfinished::end(home.path()).unwrap();
            let inspected = Inspection::open(home.path()).err().expect("rejected");
            let opened = open(DiskOptions::new(home.path())).expect_err("rejected");
            for error in [inspected, opened] {
                assert!(matches!(error, StoreError::Incompatible(_)), "{error:?}");
                assert_eq!(
                    error.to_string(),
                    format!(
                        "the store has format {format}, and this version of mesa reads only mesa-6: use the version that \
                         wrote the store"
                    )
                );
            }
        }
    }
}
