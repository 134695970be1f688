//! Bugs that can be turned on, to show that the fault battery in `tests/faults` finds them. Only with the feature
//! `failpoints`, which no release has: without it none is ever on, and nothing of this is in the binary.

/// What the environment variable `MESA_FAILPOINT` may name, as it is written here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    /// The disk is not told to sync.
    NoSync,
    /// An append is answered before it is written.
    EarlyAnswer,
    /// One record in many is not written.
    LostRecord,
    /// Now and then somebody gets another's message, and the check before the socket is off.
    Foreign,
    /// Now and then two messages are sent in the wrong order.
    Reorder,
    /// A receipt confirms one entry more than was written.
    ReceiptTooFar,
    /// Now and then a receipt is forgotten, so that what was confirmed is sent again.
    Repeat,
    /// After opening, sequences go back.
    SequenceReuse,
    /// Ids are not read back when the store is opened.
    ForgetIds,
    /// A receipt of one device moves the cursors of all.
    DeviceShares,
    /// A client that resumes is told of nothing that is gone.
    HoleUntold,
    /// Now and then two lines of a stream get each other's answers.
    AnswersSwapped,
    /// No bug: what is in the journal is settled soon, so that faults meet settling too.
    SettleSoon,
}

/// Panics if `PLANTED_PANIC` names this place.
#[cfg(not(feature = "failpoints"))]
pub(crate) const fn panic_at(_: &str) {}

/// Runs a task, which panics after a moment if `PLANTED_PANIC` names it.
#[cfg(not(feature = "failpoints"))]
pub(crate) fn until_panic<F: Future>(_: &str, task: F) -> F {
    task
}

/// Whether this one is on.
#[cfg(not(feature = "failpoints"))]
pub(crate) const fn is(_: Bug) -> bool {
    false
}

/// True one time in so many, if this one is on.
#[cfg(not(feature = "failpoints"))]
pub(crate) const fn once_in(_: Bug, _: u64) -> bool {
    false
}

/// Whether this one is on. The variable is read once; it is no setting.
#[cfg(feature = "failpoints")]
pub(crate) fn is(bug: Bug) -> bool {
    static NAMED: std::sync::LazyLock<Option<String>> =
        std::sync::LazyLock::new(|| std::env::var("MESA_FAILPOINT").ok());
    NAMED.as_ref().is_some_and(|name| *name == format!("{bug:?}"))
}

/// True one time in so many, if this one is on.
#[cfg(feature = "failpoints")]
pub(crate) fn once_in(bug: Bug, times: u64) -> bool {
    use std::sync::atomic::{AtomicU64, Ordering};
    static ASKED: AtomicU64 = AtomicU64::new(0);
    is(bug) && ASKED.fetch_add(1, Ordering::Relaxed) % times == times - 1
}

/// Panics if `PLANTED_PANIC` names this place: `NAME,NAME`. Where `PLANTED_PANIC_WHILE` names a file, only while that exists.
#[cfg(feature = "failpoints")]
pub(crate) fn panic_at(place: &str) {
    use std::{ffi::OsString, path::Path, sync::LazyLock};
    static PLACES: LazyLock<String> = LazyLock::new(|| std::env::var("PLANTED_PANIC").unwrap_or_default());
    static FILE: LazyLock<Option<OsString>> = LazyLock::new(|| std::env::var_os("PLANTED_PANIC_WHILE"));
    let named = PLACES.split(',').any(|named| named == place);
    assert!(!named || FILE.as_ref().is_some_and(|file| !Path::new(file).exists()), "planted in {place}");
}

/// Runs a task, which panics after a moment if `PLANTED_PANIC` names it.
#[cfg(feature = "failpoints")]
pub(crate) async fn until_panic<F: Future + Unpin>(place: &str, mut task: F) -> F::Output {
    loop {
        match tokio::time::timeout(std::time::Duration::from_millis(100), &mut task).await {
            Ok(output) => return output,
            Err(_) => panic_at(place),
        }
    }
}
