//! What the machine must have for a fault, how much of the battery is wanted, and saying figures.

use std::{io::Write as _, path::Path, process::Command};

use crate::support::seeded_rng::Random;

/// Whether everything is wanted, and not a sample that fits into `cargo test`.
pub fn complete() -> bool {
    match std::env::var("MESA_FAULTS") {
        Ok(all) if all == "all" => true,
        Ok(other) => panic!("MESA_FAULTS is {other:?}; there is \"all\", and nothing at all"),
        Err(_) => false,
    }
}

/// `short`, or `long` where everything is wanted.
pub fn times(short: usize, long: usize) -> usize {
    if complete() { long } else { short }
}

/// Says something past the capture of the test harness, in one piece.
pub fn say(line: &str) {
    _ = std::io::stderr().write_all(format!("faults: {line}\n").as_bytes());
}

/// Whether `strace` is installed. Where it is not, says so; and with `CI` set that is a failure.
pub fn strace_is_here(what: &str) -> bool {
    let here = Command::new("strace").arg("-V").output().is_ok_and(|output| output.status.success());
    here || missing("strace", what)
}

/// Whether `name` is installed, as [`strace_is_here`].
pub fn program_is_here(name: &str, what: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let here = std::env::split_paths(&path).any(|directory| directory.join(name).is_file());
    here || missing(name, what)
}

/// The first of the files that is there, as [`strace_is_here`].
pub fn file_is_here<'a>(files: &[&'a str], name: &str, what: &str) -> Option<&'a str> {
    let found = files.iter().copied().find(|file| Path::new(file).exists());
    if found.is_none() {
        missing(name, what);
    }
    found
}

/// Says that something is not there; with `CI` set that is a failure.
pub fn missing(name: &str, what: &str) -> bool {
    let lack = format!("{name} is not installed: {what} was NOT checked");
    assert!(std::env::var_os("CI").is_none(), "{lack}");
    say(&lack);
    false
}

/// At most `count` of `all`, in order: the first two, the last two, and a choice of those between. All of them in the
/// long form.
pub fn sample<T: Clone>(all: &[T], count: usize, random: &mut Random) -> Vec<T> {
    if complete() || all.len() <= count {
        return all.to_vec();
    }
    let mut wanted: Vec<usize> = [0, 1, all.len() - 2, all.len() - 1].into();
    while wanted.len() < count.max(4) {
        let at = random.within(0..=all.len() as u64 - 1) as usize;
        if !wanted.contains(&at) {
            wanted.push(at);
        }
    }
    wanted.sort_unstable();
    wanted.dedup();
    wanted.into_iter().map(|at| all[at].clone()).collect()
}
