//! `mesa restore`: creates a store from a backup.

use std::fs::Metadata;

use mesa::embedded::backup::{format::BackupError, restore::restore_with};

use crate::{
    args::RestoreArgs,
    backup::describe,
    error::Failure,
    output,
    progress::{Progress, Unit},
};

/// Verifies the backup, and creates the store.
pub fn run(args: &RestoreArgs) -> Result<(), Failure> {
    // The file is read twice: verified, then copied.
    let total = std::fs::metadata(&args.file).ok().filter(Metadata::is_file).map(|file| 2 * file.len());
    let progress = Progress::start("verifying and restoring", Unit::Bytes, total);
    let contents = restore_with(&args.file, &args.store_path, |bytes| progress.add(bytes));
    drop(progress);
    let contents = contents.map_err(|error| match error {
        // The directory is the cause, not the backup.
        BackupError::Target { .. } => Failure::because(error),
        error => Failure::because(format!("{}: {error}", args.file.display())),
    })?;
    output::line(&format!("{} in {}", describe(&contents), args.store_path.display()))?;
    Ok(())
}
