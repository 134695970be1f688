//! Error messages for a store that does not open. Each ends with the remedy.

use std::io;

use super::sled_error;
use crate::{
    embedded::tables::contract::{Cause, is_file_limit},
    logging::system_error,
};

/// Upper bound of the disk space that opening a store takes, in MiB.
///
/// It covers two segments of sled's file, a snapshot, and a disk block for each small file.
const OPENING_MIB: u64 = 24;

/// Describes a failed file operation with the system's reason. `what` names the file or the operation.
pub fn io_reason(what: &str, error: &io::Error) -> String {
    let reason = system_error(error);
    match Cause::of(error) {
        Cause::NoSpace if is_file_limit(error) => format!(
            "files may not be as large as the store needs them: {what}: {reason}. Raise the limit (`ulimit -f`), then start again"
        ),
        Cause::NoSpace => format!(
            "the disk is full, and to open the store takes some space: {what}: {reason}. Free {OPENING_MIB} MiB, then start again"
        ),
        Cause::Exhausted => format!(
            "the system has no file descriptors or no memory left: {what}: {reason}. Stop something else or raise the limit \
             (`ulimit -n`), then start again"
        ),
        Cause::Failed => format!("{what}: {reason}. Check the disk, then start again"),
    }
}

/// Describes an error that sled returned while it was opened.
pub fn sled_reason(error: &sled::Error) -> String {
    match sled_error::system_error_of(error) {
        Some(error) if error.kind() == io::ErrorKind::WouldBlock => {
            "another process has its file `log/db`. Stop that process, then start again".into()
        }
        Some(error) => io_reason("its file `log/db`", &error),
        None => format!("{}. See what is left with `mesa inspect`", sled_error::describe(error)),
    }
}

/// Describes a disk that is too full to open `what`. `wanted` and `free` are bytes.
pub fn no_space(what: &str, wanted: u64, free: u64) -> String {
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    format!(
        "the disk is full: {what} takes {} MiB to be opened, and {} are free. Free {} MiB more, then start again",
        mib(wanted),
        free >> 20,
        mib(wanted.saturating_sub(free))
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_message_ends_with_what_to_do() {
        let errors = [28, 27, 24, 5].map(io::Error::from_raw_os_error);
        for error in &errors {
            for message in
                [io_reason("its file `mark`", error), sled_reason(&sled::Error::Io(io::Error::from_raw_os_error(28)))]
            {
                assert!(message.ends_with(", then start again") && !message.contains("os error"), "{message}");
            }
        }
        let lock = format!("could not acquire lock on \"db\": {:?}", io::Error::from_raw_os_error(11));
        let message = sled_reason(&sled::Error::Io(io::Error::other(lock)));
        assert!(message.starts_with("another process has its file `log/db`"), "{message}");
        let message = no_space("its file `log/db`", (16 << 20) + 1, 3 << 20);
        assert!(
            message.contains("17 MiB") && message.contains("3 are free") && message.contains("Free 14 MiB more"),
            "{message}"
        );
    }
}
