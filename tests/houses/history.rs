//! Subjects of commits, where the history is at hand.

use std::process::Command;

/// Longest subject of a commit, in characters: as much as lists of commits show.
const SUBJECT_MAX: usize = 72;

/// The last commit that was not held to it.
const BEFORE: &str = "1d297728415883c4bd2a44c58d2b5fe155fe50bb";

/// Finds commits whose subject is too long. None where there is no `git`, or the history is not that of this repository.
pub fn long_subjects(directory: &str) -> Vec<String> {
    let range = format!("{BEFORE}..HEAD");
    let listed = Command::new("git").args(["-C", directory, "log", "--format=%h %s", &range]).output();
    let Some(listed) = listed.ok().filter(|output| output.status.success()) else { return Vec::new() };
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    listed.lines().filter_map(too_long).collect()
}

fn too_long(line: &str) -> Option<String> {
    let (commit, subject) = line.split_once(' ')?;
    let length = subject.chars().count();
    (length > SUBJECT_MAX)
        .then(|| format!("{commit}: its subject has {length} characters, of {SUBJECT_MAX}. Shorten it: {subject}"))
}

#[test]
fn subject_of_73_characters_is_too_long_and_one_of_72_is_not() {
    assert_eq!(too_long(&format!("1234567 {}", "ä".repeat(72))), None);
    assert!(too_long(&format!("1234567 {}", "a".repeat(73))).is_some());
}
