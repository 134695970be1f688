//! Sequences, as the HTTP API shows them: each is one message's for ever, none goes back, and none is left out.

use std::collections::{HashMap, HashSet};

use super::{Kind, Violation, answers::name, facts::Facts};
use crate::history::Key;

pub fn check(facts: &Facts, violations: &mut Vec<Violation>) {
    for (user, readings) in &facts.readings {
        let mut head = facts.heads.get(user).copied().unwrap_or(0);
        let (first, mut line) = (head, 1);
        let mut messages: HashMap<u64, (Key, usize)> = HashMap::new();
        let mut sequences: HashMap<Key, (u64, usize)> = HashMap::new();
        let mut foreign = Vec::new();
        for reading in readings {
            let mut wrong = |what: String, lines: Vec<usize>| {
                violations.push(Violation { kind: Kind::Sequence, what, lines });
            };
            if reading.head < head {
                wrong(
                    format!("{user}: the last sequence was {head} and is {}", reading.head),
                    vec![line, reading.line],
                );
            }
            (head, line) = (reading.head, reading.line);
            let mut last = 0;
            for (s, key) in &reading.entries {
                let (s, key) = (*s, *key);
                if s <= last || s <= first || s > reading.head {
                    let what = format!(
                        "{user}: sequence {s} behind {last}, in a log that began after {first} and ends with {}",
                        reading.head
                    );
                    wrong(what, vec![reading.line]);
                }
                last = s;
                let (before, at) = *messages.entry(s).or_insert((key, reading.line));
                if before != key {
                    let what = format!("{user}: sequence {s} was {} and is {}", name(before), name(key));
                    wrong(what, vec![at, reading.line]);
                }
                let (before, at) = *sequences.entry(key).or_insert((s, reading.line));
                if before != s {
                    wrong(format!("{user}: {} has sequences {before} and {s}", name(key)), vec![at, reading.line]);
                }
                if !facts.dispatches.get(&key).is_some_and(|dispatch| dispatch.to.contains(user)) {
                    let what = format!("{user}: {} stands in a log where it does not belong", name(key));
                    foreign.push(Violation { kind: Kind::Foreign, what, lines: vec![reading.line] });
                }
            }
        }
        violations.extend(foreign);
        check_order(facts, user, &sequences, violations);
    }
    if facts.always {
        check_count(facts, violations);
    }
}

/// What was received came in the order of the sequences, where those are known.
fn check_order(facts: &Facts, user: &str, sequences: &HashMap<Key, (u64, usize)>, violations: &mut Vec<Violation>) {
    for connection in facts.connections.values().filter(|connection| connection.user == user) {
        let mut last = (0, 0);
        for (line, key, ..) in &connection.received {
            let Some((s, read)) = sequences.get(key) else { continue };
            if *s < last.0 {
                let what = format!("{user} got {} (sequence {s}) behind sequence {}", name(*key), last.0);
                violations.push(Violation { kind: Kind::Reordered, what, lines: vec![*read, last.1, *line] });
            }
            last = (*s, *line);
        }
    }
}

/// In the end everything that has a sequence was received, so there are as many sequences as messages.
fn check_count(facts: &Facts, violations: &mut Vec<Violation>) {
    for (user, connections) in facts.connections_of() {
        let Some((line, head, 0)) = facts.drained.get(user).copied() else { continue };
        let had: HashSet<Key> =
            connections.iter().flat_map(|one| one.received.iter().map(|(_, key, ..)| *key)).collect();
        let given = head.saturating_sub(facts.heads.get(user).copied().unwrap_or(0));
        if given != had.len() as u64 {
            let what = format!("{user}: {given} sequences were given out, and {} messages were received", had.len());
            violations.push(Violation { kind: Kind::Sequence, what, lines: vec![line] });
        }
    }
}
