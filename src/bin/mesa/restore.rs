//! `mesa restore`: creates a store from a backup.

use mesa::embedded::backup::{format::BackupError, restore::restore};

use crate::{args::RestoreArgs, backup::describe, error::Failure, output};

/// Verifies the backup, and creates the store.
pub fn run(args: &RestoreArgs) -> Result<(), Failure> {
    let contents = restore(&args.file, &args.store_path);
    let contents = contents.map_err(|error| match error {
        // The directory is the cause, not the backup.
        BackupError::Target { .. } => Failure::because(error),
        error => Failure::because(format!("{}: {error}", args.file.display())),
    })?;
    output::line(&format!("{} in {}", describe(&contents), args.store_path.display()))?;
    Ok(())
}
