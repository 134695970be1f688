//! `mesa backup`: saves the store of a running server in a file.

use std::{
    fs::{self, File},
    io::{BufReader, BufWriter, Seek, Write},
    path::{Path, PathBuf},
};

use mesa::embedded::backup::format::{Contents, verify};

use crate::{
    args::BackupArgs,
    endpoint,
    error::Failure,
    output::{self, count},
};

/// Downloads a backup, verifies it, and renames it to its final name.
pub async fn run(args: &BackupArgs) -> Result<(), Failure> {
    let dispatcher = endpoint::dispatcher(&args.api)?;
    if args.file.exists() {
        return Err(Failure::because(format!("{} exists already. Name another file", args.file.display())));
    }
    let mut partial = args.file.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let failed = |error: std::io::Error| Failure::because(format!("cannot write {}: {error}", partial.display()));
    let mut out = BufWriter::new(create(&partial).map_err(failed)?);
    let fetched = dispatcher.backup(|piece| out.write_all(piece)).await;
    let finished = match fetched {
        Ok(()) => finish(out, &partial, &args.file),
        Err(error) => Err(Failure::because(error)),
    };
    let Contents { users, entries, bytes } = finished.inspect_err(|_| _ = fs::remove_file(&partial))?;
    let (users, entries) = (count(users, "user"), count(entries, "message"));
    output::line(&format!("{users}, {entries} ({bytes} bytes) in {}", args.file.display()))?;
    Ok(())
}

/// Creates a file that only its owner can read: it has the messages of all users.
fn create(path: &Path) -> std::io::Result<File> {
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

/// Verifies the file, syncs it, and renames it.
fn finish(out: BufWriter<File>, partial: &Path, file: &Path) -> Result<Contents, Failure> {
    let failed = |error: std::io::Error| Failure::because(format!("cannot write {}: {error}", file.display()));
    let mut written = out.into_inner().map_err(|error| failed(error.into_error()))?;
    written.rewind().map_err(failed)?;
    let contents = verify(BufReader::new(&written))
        .map_err(|error| Failure::because(format!("the download is not a valid backup: {error}")))?;
    written.sync_all().map_err(failed)?;
    fs::rename(partial, file).map_err(failed)?;
    let directory = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed)?;
    Ok(contents)
}
