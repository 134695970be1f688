//! Says why a store is not opened, and what a person can do about it.

use std::io;

use super::sled_error;
use crate::{
    embedded::tables::contract::{Cause, is_file_limit},
    logging::system_error,
};

/// More than opening a store takes: two segments of the tables' file, a snapshot, and a block for each small file.
const OPENING_MIB: u64 = 24;

/// What could not be made, read or written, and the system's reason.
pub fn why(what: &str, error: &io::Error) -> String {
    let said = system_error(error);
    match Cause::of(error) {
        Cause::NoSpace if is_file_limit(error) => format!(
            "files may not be as large as the store needs them: {what}: {said}. Raise the limit (`ulimit -f`), then start again"
        ),
        Cause::NoSpace => format!(
            "the disk is full, and to open the store takes some space: {what}: {said}. Free {OPENING_MIB} MiB, then start again"
        ),
        Cause::Exhausted => format!(
            "the system has no file descriptors or no memory left: {what}: {said}. Stop something else or raise the limit \
             (`ulimit -n`), then start again"
        ),
        Cause::Failed => format!("{what}: {said}. Check the disk, then start again"),
    }
}

/// The same of sled.
pub fn why_of_sled(error: &sled::Error) -> String {
    match sled_error::of_the_system(error) {
        Some(error) if error.kind() == io::ErrorKind::WouldBlock => {
            "another process has its file `log/db`. Stop that process, then start again".into()
        }
        Some(error) => why("its file `log/db`", &error),
        None => format!("{}. See what is left with `mesa inspect`", sled_error::sentence(error)),
    }
}

/// Tells how much space has to be freed for `what`.
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
    fn refusal_ends_with_what_to_do() {
        let errors = [28, 27, 24, 5].map(io::Error::from_raw_os_error);
        for error in &errors {
            for told in [why("its file `mark`", error), why_of_sled(&sled::Error::Io(io::Error::from_raw_os_error(28)))]
            {
                assert!(told.ends_with(", then start again") && !told.contains("os error"), "{told}");
            }
        }
        let lock = format!("could not acquire lock on \"db\": {:?}", io::Error::from_raw_os_error(11));
        let told = why_of_sled(&sled::Error::Io(io::Error::other(lock)));
        assert!(told.starts_with("another process has its file `log/db`"), "{told}");
        let told = no_space("its file `log/db`", (16 << 20) + 1, 3 << 20);
        assert!(told.contains("17 MiB") && told.contains("3 are free") && told.contains("Free 14 MiB more"), "{told}");
    }
}
