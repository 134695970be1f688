//! `mesa backup --every`: takes backups until it is stopped, and removes old ones.

use std::{
    collections::VecDeque,
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
    let mut schedule = Schedule {
        directory: directory.to_owned(),
        keep: keep.map_or(KEEP_DEFAULT, NonZeroUsize::get),
        taken: VecDeque::new(),
    };
    let mut times = interval(every);
    // A backup that takes longer than the interval delays the next one to the following time.
    times.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        let next = async {
            times.tick().await;
            take(dispatcher, &mut schedule).await
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
async fn take(dispatcher: &Dispatcher, schedule: &mut Schedule) -> Result<String, Failure> {
    let began = Instant::now();
    let file = schedule.directory.join(file_name(SystemTime::now()));
    let contents = save(dispatcher, &file).await?;
    let size = fs::metadata(&file).map_or(0, |file| file.len());
    let seconds = began.elapsed().as_secs_f64();
    // The new backup is verified and durable by now.
    schedule.add(file.clone());
    let removed = schedule.remove_oldest(SystemTime::now()).map_err(|error| {
        Failure::because(format!("{} is complete, but old backups cannot be removed: {error}", file.display()))
    })?;
    let removed = if removed == 0 { String::new() } else { format!("; removed {}", count(removed, "old backup")) };
    Ok(format!("{}: {size} bytes, {}, {seconds:.1} s{removed}", file.display(), describe(&contents)))
}

/// Returns the name of a backup. Names sort by the system time, which may step backwards.
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

/// Lists the files with names that `is_own` accepts, in no order.
fn list(directory: &Path, is_own: impl Fn(&str) -> bool) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for file in fs::read_dir(directory)? {
        let file = file?;
        if file.file_name().to_str().is_some_and(&is_own) {
            files.push(file.path());
        }
    }
    Ok(files)
}

/// Directory of backups, and those that this run of the command has taken.
struct Schedule {
    directory: PathBuf,
    /// Backups that stay in the directory.
    keep: usize,
    /// Backups of this run, oldest first; the last `keep` at most.
    taken: VecDeque<PathBuf>,
}

impl Schedule {
    /// Adds a complete backup.
    fn add(&mut self, file: PathBuf) {
        self.taken.push_back(file);
        if self.taken.len() > self.keep {
            self.taken.pop_front();
        }
    }

    /// Removes the oldest backups above `keep`. Returns their number.
    ///
    /// The system time may step backwards, so names alone do not give the order. Backups of this run are the newest, in
    /// the order in which they were taken. A name above `now` is from before such a step, so it is the oldest.
    fn remove_oldest(&self, now: SystemTime) -> io::Result<u64> {
        let now = self.directory.join(file_name(now));
        let mut files = list(&self.directory, is_own_name)?;
        files.sort_by_cached_key(|file| {
            let taken = self.taken.iter().position(|one| one == file);
            (taken, *file <= now, file.clone())
        });
        let old = &files[..files.len().saturating_sub(self.keep)];
        old.iter().try_for_each(fs::remove_file)?;
        if !old.is_empty() {
            File::open(&self.directory)?.sync_all()?;
        }
        Ok(old.len() as u64)
    }
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

    /// Returns the numbers of the backups in the directory: their hours since 1970.
    fn hours(schedule: &Schedule) -> Vec<u64> {
        let hour = |hour: &u64| schedule.directory.join(name(*hour)).exists();
        let found: Vec<u64> = (0..2000).filter(hour).collect();
        assert_eq!(found.len(), fs::read_dir(&schedule.directory).unwrap().count());
        found
    }

    fn time(hour: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(3600 * hour)
    }

    fn name(hour: u64) -> String {
        file_name(time(hour))
    }

    /// Takes an empty backup at this hour. Returns the number of removed ones.
    fn take_at(schedule: &mut Schedule, hour: u64) -> u64 {
        let file = schedule.directory.join(name(hour));
        fs::write(&file, "").unwrap();
        schedule.add(file);
        schedule.remove_oldest(time(hour)).unwrap()
    }

    #[test]
    fn newest_backups_are_kept_over_steps_of_the_clock() {
        let directory = tempfile::tempdir().unwrap();
        let new_run = || Schedule { directory: directory.path().to_owned(), keep: 3, taken: VecDeque::new() };
        let mut schedule = new_run();
        for (hour, expected) in [
            (1000, &[1000][..]),
            (1001, &[1000, 1001]),
            (1002, &[1000, 1001, 1002]),
            (1003, &[1001, 1002, 1003]),
            // The clock steps backwards.
            (500, &[500, 1002, 1003]),
            (501, &[500, 501, 1003]),
            (502, &[500, 501, 502]),
            // Further back, and forwards.
            (100, &[100, 501, 502]),
            (900, &[100, 502, 900]),
        ] {
            take_at(&mut schedule, hour);
            assert_eq!(hours(&schedule), expected, "after {hour}");
        }
        // A later run finds names in its past and in its future. Those in the future are removed first.
        let mut schedule = new_run();
        for (hour, expected) in [(600, [100, 502, 600]), (601, [502, 600, 601]), (599, [599, 600, 601])] {
            assert_eq!(take_at(&mut schedule, hour), 1);
            assert_eq!(hours(&schedule), expected, "after {hour}");
        }
        // With fewer to keep, the new backup stays.
        let mut schedule = Schedule { keep: 1, ..new_run() };
        assert_eq!((take_at(&mut schedule, 300), hours(&schedule)), (3, vec![300]));
    }

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
