//! Converts errors of sled to sentences and system errors.
//!
//! sled returns copies of the first error that it met. A copy holds the system's error only as debug text
//! (`Os { code: 28, kind: StorageFull, .. }`). After a failed write sled accepts no write until it is opened again,
//! whatever the reason. So a full disk stops the store here, instead of suspending it. That is why space is preallocated.

use std::io;

use crate::{embedded::tables::contract::Cause, logging::system_error};

/// Text before the system's error number in a copy, at its beginning or after words of sled.
const COPIED: &str = "Os { code: ";

/// Returns the system's error, if there is one.
pub fn system_error_of(error: &sled::Error) -> Option<io::Error> {
    let sled::Error::Io(error) = error else { return None };
    number(error).map(io::Error::from_raw_os_error)
}

/// Restores the system's error of an I/O error that sled returned.
pub fn restore_system_error(error: io::Error) -> io::Error {
    match number(&error) {
        Some(number) if error.raw_os_error().is_none() => io::Error::from_raw_os_error(number),
        _ => error,
    }
}

fn number(error: &io::Error) -> Option<i32> {
    let copied = || error.to_string().split_once(COPIED)?.1.split(',').next()?.parse().ok();
    error.raw_os_error().or_else(copied)
}

/// Converts an error of sled to an I/O error that is never retried.
pub fn to_io_error(error: sled::Error) -> io::Error {
    io::Error::other(describe(&error))
}

/// Describes an error in a sentence without full stop; callers append what to do.
pub fn describe(error: &sled::Error) -> String {
    if let Some(error) = system_error_of(error) {
        return match Cause::of(&error) {
            Cause::NoSpace => format!(
                "the disk had no space for its file `log/db` ({}), and after that the tables cannot be written to until \
                 they are opened again",
                system_error(&error)
            ),
            _ => format!("its file `log/db` cannot be read or written: {}", system_error(&error)),
        };
    }
    match error {
        sled::Error::Io(error) => format!("its file `log/db` cannot be read or written: {}", system_error(error)),
        sled::Error::Corruption { .. } => "its file `log/db` is damaged".into(),
        sled::Error::ReportableBug(what) => format!("the tables in `log/db` are not as they should be: {what}"),
        error => format!("the tables in `log/db` cannot be used: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copied_system_error_is_described_like_the_original() {
        for (number, part) in
            [(28, "the disk had no space"), (122, "the disk had no space"), (5, "cannot be read or written")]
        {
            let met = sled::Error::Io(io::Error::from_raw_os_error(number));
            let lock = format!("could not acquire lock on \"db\": {:?}", io::Error::from_raw_os_error(number));
            for error in [met.clone(), met, sled::Error::Io(io::Error::other(lock))] {
                let message = describe(&error);
                assert!(
                    message.contains(part)
                        && !message.contains("Os {")
                        && !message.contains("os error")
                        && !message.contains("IO error"),
                    "{message}"
                );
                assert_eq!(system_error_of(&error).and_then(|error| error.raw_os_error()), Some(number));
            }
        }
    }

    #[test]
    fn sled_error_names_the_file() {
        for error in [
            sled::Error::Io(io::Error::other("a reason")),
            sled::Error::ReportableBug("a reason".into()),
            sled::Error::Unsupported("a reason".into()),
        ] {
            let message = describe(&error);
            assert!(message.contains("`log/db`") && !message.contains("PLEASE"), "{message}");
        }
    }
}
