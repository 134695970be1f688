//! Checks requirements of a fault, chooses the short or long form, and prints results.

use std::{io::Write as _, path::Path, process::Command};

use crate::support::seeded_rng::Random;

/// Reports whether `MESA_FAULTS=all` requests the long form, with every case. The short form samples.
pub fn long_form() -> bool {
    match std::env::var("MESA_FAULTS") {
        Ok(all) if all == "all" => true,
        Ok(other) => panic!("MESA_FAULTS is {other:?}; expected \"all\", or no such variable"),
        Err(_) => false,
    }
}

/// Returns the number of repetitions: `short`, or `long` in the long form.
pub fn repetitions(short: usize, long: usize) -> usize {
    if long_form() { long } else { short }
}

/// Prints a line to stderr in one write. The test harness does not capture it.
pub fn print(line: &str) {
    _ = std::io::stderr().write_all(format!("faults: {line}\n").as_bytes());
}

/// Reports whether `strace` is installed. If not, prints that `check` is skipped; with `CI` set, panics.
pub fn strace_available(check: &str) -> bool {
    let available = Command::new("strace").arg("-V").output().is_ok_and(|output| output.status.success());
    available || report_missing("strace", check)
}

/// Reports whether the program `name` is installed. If not, as [`strace_available`].
pub fn program_available(name: &str, check: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let available = std::env::split_paths(&path).any(|directory| directory.join(name).is_file());
    available || report_missing(name, check)
}

/// Returns the first of the files that exists. If none does, as [`strace_available`].
pub fn find_file<'a>(files: &[&'a str], name: &str, check: &str) -> Option<&'a str> {
    let found = files.iter().copied().find(|file| Path::new(file).exists());
    if found.is_none() {
        report_missing(name, check);
    }
    found
}

/// Prints that `check` is skipped because `name` is missing, and returns false.
///
/// # Panics
/// If `CI` is set.
pub fn report_missing(name: &str, check: &str) -> bool {
    let skipped = format!("{name} is not installed: {check} was NOT checked");
    assert!(std::env::var_os("CI").is_none(), "{skipped}");
    print(&skipped);
    false
}

/// Chooses `count` elements, at least four, in order.
///
/// It chooses the first two, the last two, and random ones between. The long form chooses all elements.
pub fn sample<T: Clone>(all: &[T], count: usize, random: &mut Random) -> Vec<T> {
    let count = count.max(4);
    if long_form() || all.len() <= count {
        return all.to_vec();
    }
    let mut chosen: Vec<usize> = [0, 1, all.len() - 2, all.len() - 1].into();
    while chosen.len() < count {
        let index = random.within(0..=all.len() as u64 - 1) as usize;
        if !chosen.contains(&index) {
            chosen.push(index);
        }
    }
    chosen.sort_unstable();
    chosen.into_iter().map(|index| all[index].clone()).collect()
}
