//! `mesa backup --every`: takes backups until it is stopped, and removes old ones.

use std::{
    fs::{self, File},
    io,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    time::{Instant, SystemTime},
};

use mesa::{dispatcher::Dispatcher, util::rfc3339::rfc3339};
use tokio::time::{MissedTickBehavior, interval};

use super::{PARTIAL_SUFFIX, describe, save};
use crate::{
    duration::duration,
    error::Failure,
    os::Signals,
    output::{self, count, failure_line},
};

/// Prefix and suffix of the names of these backups. The time of the backup is between them.
const PREFIX: &str = "mesa-";
const SUFFIX: &str = ".backup";

/// Pattern of the time in a name: `0` stands for a digit.
const TIME_PATTERN: &[u8] = b"00000000T000000.000Z";

/// Backups that are kept without `--keep`.
const KEEP_DEFAULT: usize = 24;

/// Takes a backup at each interval until a signal arrives. A failed backup is reported, and does not end the command.
pub async fn run(
    dispatcher: &Dispatcher,
    directory: &Path,
    every: &str,
    keep: Option<NonZeroUsize>,
) -> Result<(), Failure> {
    let every = duration("--every", every)?;
    if !directory.is_dir() {
        let directory = directory.display();
        return Err(Failure::because(format!("{directory} is not a directory. Create it, or name another")));
    }
    let mut signals = Signals::new().map_err(|error| Failure::because(format!("cannot handle signals: {error}")))?;
    remove_partial(directory);
    let keep = keep.map_or(KEEP_DEFAULT, NonZeroUsize::get);
    let mut times = interval(every);
    // A backup that takes longer than the interval delays the next one to the following time.
    times.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        let next = async {
            times.tick().await;
            take(dispatcher, directory, keep).await
        };
        tokio::select! {
            // A backup in progress is dropped, which removes its file.
            _ = signals.next() => return Ok(()),
            taken = next => match taken {
                Ok(line) => output::line(&line)?,
                Err(Failure::Failed(reason) | Failure::Usage(reason)) => {
                    let at = rfc3339(SystemTime::now());
                    output::remark(&failure_line(&format!("{at}: {reason}; the next backup follows at its time")));
                }
                Err(other) => return Err(other),
            },
        }
    }
}

/// Takes one backup, then removes the oldest ones. Returns the line that reports it.
async fn take(dispatcher: &Dispatcher, directory: &Path, keep: usize) -> Result<String, Failure> {
    let began = Instant::now();
    let file = directory.join(file_name(SystemTime::now()));
    let contents = save(dispatcher, &file).await?;
    let size = fs::metadata(&file).map_or(0, |file| file.len());
    let seconds = began.elapsed().as_secs_f64();
    // The new backup is verified and durable by now.
    let removed = remove_oldest(directory, keep).map_err(|error| {
        Failure::because(format!("{} is complete, but old backups cannot be removed: {error}", file.display()))
    })?;
    let removed = if removed == 0 { String::new() } else { format!("; removed {}", count(removed, "old backup")) };
    Ok(format!("{}: {size} bytes, {}, {seconds:.1} s{removed}", file.display(), describe(&contents)))
}

/// Returns the name of a backup. Names sort by time.
fn file_name(time: SystemTime) -> String {
    let time: String = rfc3339(time).chars().filter(|character| !"-:".contains(*character)).collect();
    format!("{PREFIX}{time}{SUFFIX}")
}

/// Returns whether this command has named the file.
fn is_own_name(name: &str) -> bool {
    let time = name.strip_prefix(PREFIX).and_then(|name| name.strip_suffix(SUFFIX)).unwrap_or_default().as_bytes();
    let matches = |(pattern, byte): (&u8, &u8)| if *pattern == b'0' { byte.is_ascii_digit() } else { pattern == byte };
    time.len() == TIME_PATTERN.len() && TIME_PATTERN.iter().zip(time).all(matches)
}

/// Lists the files with names that `is_own` accepts, in the order of their names.
fn list(directory: &Path, is_own: impl Fn(&str) -> bool) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for file in fs::read_dir(directory)? {
        let file = file?;
        if file.file_name().to_str().is_some_and(&is_own) {
            files.push(file.path());
        }
    }
    files.sort_unstable();
    Ok(files)
}

/// Removes the oldest backups above `keep`. Returns their number.
fn remove_oldest(directory: &Path, keep: usize) -> io::Result<u64> {
    let files = list(directory, is_own_name)?;
    let old = &files[..files.len().saturating_sub(keep)];
    old.iter().try_for_each(fs::remove_file)?;
    if !old.is_empty() {
        File::open(directory)?.sync_all()?;
    }
    Ok(old.len() as u64)
}

/// Removes incomplete backups that a killed process has left.
fn remove_partial(directory: &Path) {
    let is_partial = |name: &str| name.strip_suffix(PARTIAL_SUFFIX).is_some_and(is_own_name);
    for file in list(directory, is_partial).unwrap_or_default() {
        _ = fs::remove_file(file);
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn only_names_of_scheduled_backups_are_own_names() {
        let name = file_name(UNIX_EPOCH + Duration::from_millis(1_795_000_000_007));
        assert_eq!(name, "mesa-20261118T110640.007Z.backup");
        assert!(is_own_name(&name));
        let others =
            ["mesa-monday.backup", "mesa-.backup", "mesa-20261118T110640.007Z", "a.backup", "mesa-.backup.partial"];
        assert!(others.iter().all(|name| !is_own_name(name)));
        assert!(
            !is_own_name("mesa-20261118T110640.007Z.backup.partial")
                && !is_own_name("mesa-2026-118T110640.007Z.backup")
        );
    }
}
