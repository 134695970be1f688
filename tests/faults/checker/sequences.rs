//! Checks that sequences are never reused, never go back, and are never skipped.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::{Kind, Violation, indexed_history::IndexedHistory, message_name};
use crate::history::Key;

/// Known sequences of one user's log, each with the line that first showed it.
#[derive(Debug, Default)]
pub struct SequenceMap {
    pub by_sequence: BTreeMap<u64, (Key, usize)>,
    pub by_message: HashMap<Key, (u64, usize)>,
}

/// Known sequences by user.
pub type SequenceMaps<'a> = HashMap<&'a str, SequenceMap>;

impl SequenceMap {
    /// Adds a sequence that a line shows. Reports a contradiction to an earlier line.
    fn add(&mut self, user: &str, line: usize, s: u64, key: Key, violations: &mut Vec<Violation>) {
        let mut report = |description: String, at: usize| {
            violations.push(Violation { kind: Kind::Sequence, description, lines: vec![at, line] });
        };
        let (before, at) = *self.by_sequence.entry(s).or_insert((key, line));
        if before != key {
            report(format!("{user}: sequence {s} was {} and is {}", message_name(before), message_name(key)), at);
        }
        let (before, at) = *self.by_message.entry(key).or_insert((s, line));
        if before != s {
            report(format!("{user}: {} has sequences {before} and {s}", message_name(key)), at);
        }
    }
}

pub fn check<'a>(history: &'a IndexedHistory, violations: &mut Vec<Violation>) -> SequenceMaps<'a> {
    let mut maps = SequenceMaps::new();
    for (user, reads) in &history.log_reads {
        let mut head = history.heads.get(user).copied().unwrap_or(0);
        let (start, mut line) = (head, 1);
        let map = maps.entry(user).or_default();
        let mut foreign = Vec::new();
        for read in reads {
            if read.head < head {
                let description = format!("{user}: the last sequence was {head} and is {}", read.head);
                violations.push(Violation { kind: Kind::Sequence, description, lines: vec![line, read.line] });
            }
            (head, line) = (read.head, read.line);
            let mut last = 0;
            for (s, key) in &read.entries {
                let (s, key) = (*s, *key);
                if s <= last || s <= start || s > read.head {
                    let description = format!(
                        "{user}: sequence {s} after {last}, in a log that began after {start} and ends with {}",
                        read.head
                    );
                    violations.push(Violation { kind: Kind::Sequence, description, lines: vec![read.line] });
                }
                last = s;
                map.add(user, read.line, s, key, violations);
                if !history.dispatches.get(&key).is_some_and(|dispatch| dispatch.to.contains(user)) {
                    let description =
                        format!("{user}: {} is in the log of a user it was not sent to", message_name(key));
                    foreign.push(Violation { kind: Kind::Foreign, description, lines: vec![read.line] });
                }
            }
        }
        violations.extend(foreign);
    }
    for (user, connections) in history.connections_by_user() {
        let map = maps.entry(user).or_default();
        for connection in connections.iter().filter(|connection| connection.after.is_some()) {
            for (line, key, _, s) in &connection.received {
                if let Some(s) = s {
                    map.add(user, *line, *s, *key, violations);
                }
            }
        }
        check_order(history, user, &map.by_message, violations);
    }
    if history.always {
        check_count(history, violations);
    }
    maps
}

/// Checks that messages whose sequences are known arrived in the order of their sequences.
fn check_order(
    history: &IndexedHistory,
    user: &str,
    sequences: &HashMap<Key, (u64, usize)>,
    violations: &mut Vec<Violation>,
) {
    for connection in history.connections.values().filter(|connection| connection.user == user) {
        let mut last = (0, 0);
        for (line, key, ..) in &connection.received {
            let Some((s, read)) = sequences.get(key) else { continue };
            if *s < last.0 {
                let description =
                    format!("{user} received {} (sequence {s}) after sequence {}", message_name(*key), last.0);
                violations.push(Violation { kind: Kind::Reordered, description, lines: vec![*read, last.1, *line] });
            }
            last = (*s, *line);
        }
    }
}

/// Checks that a drained user has received as many messages as sequences were assigned.
fn check_count(history: &IndexedHistory, violations: &mut Vec<Violation>) {
    for (user, connections) in history.connections_by_user() {
        let Some((line, head, 0)) = history.drained.get(user).copied() else { continue };
        let received: HashSet<Key> =
            connections.iter().flat_map(|one| one.received.iter().map(|(_, key, ..)| *key)).collect();
        let assigned = head.saturating_sub(history.heads.get(user).copied().unwrap_or(0));
        if assigned != received.len() as u64 {
            let description =
                format!("{user}: {assigned} sequences were assigned, and {} messages were received", received.len());
            violations.push(Violation { kind: Kind::Sequence, description, lines: vec![line] });
        }
    }
}
