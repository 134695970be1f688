//! `mesa restore`: creates a store from a backup.

use mesa::embedded::backup::{format::BackupError, restore::restore};

use crate::{
    args::RestoreArgs,
    error::Failure,
    output::{self, count},
};

/// Verifies the backup, and creates the store.
pub fn run(args: &RestoreArgs) -> Result<(), Failure> {
    let contents = restore(&args.file, &args.store_path);
    let contents = contents.map_err(|error| match error {
        // The directory is the cause, not the backup.
        BackupError::Target { .. } => Failure::because(error),
        error => Failure::because(format!("{}: {error}", args.file.display())),
    })?;
    let (users, entries) = (count(contents.users, "user"), count(contents.entries, "message"));
    output::line(&format!("{users}, {entries} ({} bytes) in {}", contents.bytes, args.store_path.display()))?;
    Ok(())
}
