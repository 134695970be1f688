//! `mesa backup`: saves the store of a running server in a file, once or periodically.

mod schedule;

use std::{
    fs::{self, File},
    io::{BufReader, BufWriter, Seek, Write},
    path::{Path, PathBuf},
};

use mesa::{
    dispatcher::Dispatcher,
    embedded::backup::format::{Contents, verify},
};

use crate::{
    args::BackupArgs,
    endpoint,
    error::Failure,
    output::{self, count},
    progress::{Progress, Unit},
};

/// Suffix of a file that is not complete yet.
const PARTIAL_SUFFIX: &str = ".partial";

/// Runs the command.
pub async fn run(args: &BackupArgs) -> Result<(), Failure> {
    let dispatcher = endpoint::dispatcher(&args.api)?;
    if let Some(every) = &args.every {
        return schedule::run(&dispatcher, &args.path, every, args.keep).await;
    }
    let contents = save(&dispatcher, &args.path).await?;
    output::line(&format!("{} in {}", describe(&contents), args.path.display()))?;
    Ok(())
}

/// Describes the contents of a backup.
pub fn describe(contents: &Contents) -> String {
    let Contents { users, entries, bytes, events } = *contents;
    let [users, entries] = [count(users, "user"), count(entries, "message")];
    format!("{users}, {entries} ({bytes} bytes), {}", count(events, "webhook event"))
}

/// Downloads a backup, verifies it, and renames it to its final name. Without success, no file is left.
async fn save(dispatcher: &Dispatcher, file: &Path) -> Result<Contents, Failure> {
    if file.exists() {
        return Err(Failure::because(format!("{} exists already. Name another file", file.display())));
    }
    let mut partial = file.as_os_str().to_owned();
    partial.push(PARTIAL_SUFFIX);
    let partial = Partial(PathBuf::from(partial));
    let failed = |error: std::io::Error| Failure::because(format!("cannot write {}: {error}", partial.0.display()));
    let mut out = BufWriter::new(create(&partial.0).map_err(failed)?);
    let progress = Progress::start("receiving", Unit::Bytes, None);
    dispatcher
        .backup(|piece| {
            progress.add(piece.len() as u64);
            out.write_all(piece)
        })
        .await?;
    progress.describe("verifying");
    finish(out, &partial.0, file)
}

/// Removes an incomplete file when it is dropped, also if the download is cancelled.
struct Partial(PathBuf);

impl Drop for Partial {
    fn drop(&mut self) {
        // A complete file has another name by now.
        _ = fs::remove_file(&self.0);
    }
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
