//! Failpoints: seeded bugs that the fault tests (`tests/faults`) must find.
//!
//! They exist only with the cargo feature `failpoints`, which no release has. Without the feature, calls compile to
//! nothing.

macro_rules! failpoints {
    ($($(#[doc = $help:literal])+ $name:ident,)+) => {
        /// Names a failpoint. The variable `MESA_FAILPOINT` enables the failpoint whose variant it names.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Failpoint {
            $($(#[doc = $help])+ $name,)+
        }

        /// All failpoints.
        #[cfg(feature = "failpoints")]
        const ALL: &[Failpoint] = &[$(Failpoint::$name,)+];
    };
}

/// Names of the panic points: the supervised tasks, and places in other tasks.
#[cfg(feature = "failpoints")]
const PANIC_POINTS: &[&str] = &[
    "accept_loop",
    "authentication",
    "cluster_broadcast",
    "cluster_lease",
    "cluster_original_marks",
    "cluster_original_messages",
    "cluster_portal_events",
    "cluster_portal_reader",
    "cluster_portal_subscriber",
    "cluster_portal_writer",
    "cluster_presence_reader",
    "cluster_presence_writer",
    "cluster_subscriber",
    "commit_listener",
    "commit_thread",
    "handlers",
    "maintenance",
    "redis_acknowledgements",
    "redis_appends",
    "redis_expiry",
    "redis_protocol",
    "redis_protocol_portals",
    "redis_undelivered",
    "webhook_delivery",
    "webhook_metrics",
    "webhook_undelivered",
];

failpoints! {
    /// A sync is skipped.
    NoSync,
    /// An append is answered before its record is written.
    EarlyResponse,
    /// One record in 50 is not written.
    LostRecord,
    /// Sometimes a user receives another user's message. The owner check before the socket is disabled.
    ForeignEntry,
    /// Sometimes two messages are sent in the wrong order.
    Reorder,
    /// An acknowledgement covers one more entry than was written to the socket.
    AckTooFar,
    /// Sometimes an acknowledgement is lost, so that its messages are sent again.
    LostAck,
    /// After a start, sequences are reused.
    SequenceReuse,
    /// Idempotency ids are not read when the store is opened.
    LostIds,
    /// An acknowledgement of one device moves the cursors of all.
    SharedCursor,
    /// A client that resumes receives no gap.
    UnreportedGap,
    /// Sometimes the results of two lines of an NDJSON stream are swapped.
    SwappedResults,
    /// Not a bug: the write-ahead log is flushed early, so that faults also hit the flush.
    EarlyFlush,
}

/// Panics if `MESA_FAILPOINT_PANIC` names this panic point.
#[cfg(not(feature = "failpoints"))]
pub(crate) const fn panic_at(_: &str) {}

/// Runs a task that calls [`panic_at`] every 100 ms.
#[cfg(not(feature = "failpoints"))]
pub(crate) fn with_panic_point<F: Future>(_: &str, task: F) -> F {
    task
}

/// Reports whether a failpoint is enabled.
#[cfg(not(feature = "failpoints"))]
pub(crate) const fn enabled(_: Failpoint) -> bool {
    false
}

/// Returns true once in `times` calls, if the failpoint is enabled. The count of calls is that of the process.
#[cfg(not(feature = "failpoints"))]
pub(crate) const fn one_in(_: Failpoint, _: u64) -> bool {
    false
}

/// Checks the names in `MESA_FAILPOINT` and `MESA_FAILPOINT_PANIC`. Without the cargo feature they have no effect.
#[cfg(not(feature = "failpoints"))]
#[allow(clippy::unnecessary_wraps, reason = "the signature is the same with the feature")]
pub(crate) const fn check() -> Result<(), String> {
    Ok(())
}

/// The enabled failpoint, or the error of an unknown name. The variable is read once.
#[cfg(feature = "failpoints")]
static ENABLED: std::sync::LazyLock<Result<Option<Failpoint>, String>> =
    std::sync::LazyLock::new(|| parse(&std::env::var("MESA_FAILPOINT").unwrap_or_default()));

/// Parses the value of `MESA_FAILPOINT`. An empty value counts as not set.
#[cfg(feature = "failpoints")]
fn parse(name: &str) -> Result<Option<Failpoint>, String> {
    let found = ALL.iter().find(|failpoint| format!("{failpoint:?}") == name);
    if found.is_some() || name.is_empty() {
        return Ok(found.copied());
    }
    Err(format!("MESA_FAILPOINT: unknown failpoint {name:?}; the failpoints are {ALL:?}"))
}

/// The names in `MESA_FAILPOINT_PANIC`, separated by commas. The variable is read once.
#[cfg(feature = "failpoints")]
static PANICS: std::sync::LazyLock<String> =
    std::sync::LazyLock::new(|| std::env::var("MESA_FAILPOINT_PANIC").unwrap_or_default());

/// Returns the first name of a list of panic points that none of them has.
#[cfg(feature = "failpoints")]
fn unknown_panic_point(names: &str) -> Option<&str> {
    names.split(',').filter(|_| !names.is_empty()).find(|name| !PANIC_POINTS.contains(name))
}

/// Checks the names in `MESA_FAILPOINT` and `MESA_FAILPOINT_PANIC`.
///
/// # Errors
/// If a name is unknown. Otherwise a test whose failpoint was renamed would pass without testing anything.
#[cfg(feature = "failpoints")]
pub(crate) fn check() -> Result<(), String> {
    if let Some(name) = unknown_panic_point(&PANICS) {
        return Err(format!(
            "MESA_FAILPOINT_PANIC: unknown panic point {name:?}; the panic points are {PANIC_POINTS:?}"
        ));
    }
    ENABLED.as_ref().map(|_| ()).map_err(String::clone)
}

/// Reports whether a failpoint is enabled.
#[cfg(feature = "failpoints")]
pub(crate) fn enabled(failpoint: Failpoint) -> bool {
    matches!(*ENABLED, Ok(Some(enabled)) if enabled == failpoint)
}

/// Returns true once in `times` calls, if the failpoint is enabled. The count of calls is that of the process.
#[cfg(feature = "failpoints")]
pub(crate) fn one_in(failpoint: Failpoint, times: u64) -> bool {
    use std::sync::atomic::{AtomicU64, Ordering};
    static CALLS: AtomicU64 = AtomicU64::new(0);
    enabled(failpoint) && CALLS.fetch_add(1, Ordering::Relaxed) % times == times - 1
}

/// Panics if the list `MESA_FAILPOINT_PANIC` (`NAME,NAME`) contains this panic point.
///
/// If `MESA_FAILPOINT_PANIC_WHILE` names a file, it panics only while that file exists.
#[cfg(feature = "failpoints")]
pub(crate) fn panic_at(name: &str) {
    use std::{ffi::OsString, path::Path, sync::LazyLock};
    static FILE: LazyLock<Option<OsString>> = LazyLock::new(|| std::env::var_os("MESA_FAILPOINT_PANIC_WHILE"));
    // Unit tests supervise tasks of other names.
    assert!(cfg!(test) || PANIC_POINTS.contains(&name), "{name} is missing in PANIC_POINTS");
    let is_named = PANICS.split(',').any(|each| each == name);
    assert!(!is_named || FILE.as_ref().is_some_and(|file| !Path::new(file).exists()), "failpoint in {name}");
}

/// Runs a task that calls [`panic_at`] every 100 ms.
#[cfg(feature = "failpoints")]
pub(crate) async fn with_panic_point<F: Future + Unpin>(name: &str, mut task: F) -> F::Output {
    loop {
        match tokio::time::timeout(std::time::Duration::from_millis(100), &mut task).await {
            Ok(output) => return output,
            Err(_) => panic_at(name),
        }
    }
}

#[cfg(feature = "failpoints")]
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_panic_point_is_found_in_a_list() {
        for known in ["", "handlers", "commit_thread,commit_listener"] {
            assert_eq!(unknown_panic_point(known), None, "{known}");
        }
        for (names, unknown) in
            [("handler", "handler"), ("handlers,", ""), ("a,handlers", "a"), (" handlers", " handlers")]
        {
            assert_eq!(unknown_panic_point(names), Some(unknown), "{names}");
        }
    }

    #[test]
    fn panic_point_is_named_in_the_source_of_a_module() {
        fn read(path: &std::path::Path, text: &mut String) {
            if path.is_dir() {
                let files = std::fs::read_dir(path).expect("a directory");
                files.for_each(|file| read(&file.expect("a file").path(), text));
            } else if !path.ends_with("failpoints.rs") {
                text.push_str(&std::fs::read_to_string(path).unwrap_or_default());
            }
        }
        let mut source = String::new();
        read(&std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut source);
        for name in PANIC_POINTS {
            assert!(source.contains(&format!("\"{name}\"")), "{name} is no panic point any more");
        }
    }

    #[test]
    fn unknown_failpoint_name_is_an_error_that_lists_all() {
        assert_eq!(parse(""), Ok(None));
        assert_eq!(parse("NoSync"), Ok(Some(Failpoint::NoSync)));
        assert_eq!(parse("EarlyFlush"), Ok(Some(Failpoint::EarlyFlush)));
        for name in ["Nosync", "NoSync ", "NoSync,LostAck"] {
            let error = parse(name).unwrap_err();
            assert!(error.contains(&format!("{name:?}")), "{error}");
            for failpoint in ALL {
                assert!(error.contains(&format!("{failpoint:?}")), "{error}");
            }
        }
    }
}
