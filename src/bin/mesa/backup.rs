//! `mesa backup`: the store of a running server, as a file.

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

/// Fetches it, verifies it, and gives it its name.
pub async fn run(args: &BackupArgs) -> Result<(), Failure> {
    let dispatcher = endpoint::dispatcher(&args.api)?;
    if args.file.exists() {
        return Err(Failure::because(format!("{} is there already. Name another file", args.file.display())));
    }
    let mut partial = args.file.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let told = |error: std::io::Error| Failure::because(format!("cannot write {}: {error}", partial.display()));
    let mut out = BufWriter::new(create(&partial).map_err(told)?);
    let fetched = dispatcher.backup(|piece| out.write_all(piece)).await;
    let kept = match fetched {
        Ok(()) => keep(out, &partial, &args.file),
        Err(error) => Err(Failure::because(error)),
    };
    let Contents { users, entries, bytes } = kept.inspect_err(|_| _ = fs::remove_file(&partial))?;
    let (users, entries) = (count(users, "user"), count(entries, "message"));
    output::line(&format!("{users}, {entries} ({bytes} bytes) in {}", args.file.display()))?;
    Ok(())
}

/// For its owner alone: it has everybody's messages in it.
fn create(path: &Path) -> std::io::Result<File> {
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

fn keep(out: BufWriter<File>, partial: &Path, file: &Path) -> Result<Contents, Failure> {
    let told = |error: std::io::Error| Failure::because(format!("cannot write {}: {error}", file.display()));
    let mut written = out.into_inner().map_err(|error| told(error.into_error()))?;
    written.rewind().map_err(told)?;
    let contents = verify(BufReader::new(&written)).map_err(|error| Failure::because(format!("no backup: {error}")))?;
    written.sync_all().map_err(told)?;
    fs::rename(partial, file).map_err(told)?;
    let directory = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(told)?;
    Ok(contents)
}
