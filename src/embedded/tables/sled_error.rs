//! Converts errors of sled to sentences and system errors.
//!
//! sled returns copies of its first error. A copy holds the system's error only as debug text (`Os { code: 28, kind:
//! StorageFull, .. }`). After any failed write, sled accepts no write until it is opened again. So a full disk would
//! stop the store instead of suspending it, and space is preallocated.

use std::io;

use crate::{
    embedded::tables::contract::{Cause, EngineError},
    logging::system_error,
};

/// Text before the system's error number in a copied error, at its beginning or after text of sled.
const CODE_PREFIX: &str = "Os { code: ";

/// Returns the system's error behind an error of sled, if there is one.
pub fn system_error_of(error: &sled::Error) -> Option<io::Error> {
    let sled::Error::Io(error) = error else { return None };
    error_number(error).map(io::Error::from_raw_os_error)
}

/// Converts the error of a read. A read may be retried after a lack of descriptors or memory.
pub fn read_error(error: sled::Error) -> EngineError {
    match system_error_of(&error).map(EngineError::from) {
        Some(error) if error.is_transient() => error,
        _ => EngineError::new(describe(&error)),
    }
}

/// Restores the system's error of an I/O error that sled returned.
pub fn restore_system_error(error: io::Error) -> io::Error {
    match error_number(&error) {
        Some(number) if error.raw_os_error().is_none() => io::Error::from_raw_os_error(number),
        _ => error,
    }
}

fn error_number(error: &io::Error) -> Option<i32> {
    let copied = || error.to_string().split_once(CODE_PREFIX)?.1.split(',').next()?.parse().ok();
    error.raw_os_error().or_else(copied)
}

/// Converts an error of sled to an I/O error that is never retried.
pub fn to_io_error(error: sled::Error) -> io::Error {
    io::Error::other(describe(&error))
}

/// Describes an error in a clause without full stop. Callers append the remedy.
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
        sled::Error::ReportableBug(what) => format!("the tables in `log/db` are not consistent: {what}"),
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
