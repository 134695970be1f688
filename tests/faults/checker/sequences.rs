//! Sequences, as the HTTP API shows them: each is one message's for ever, none goes back, and none is left out.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::{Kind, Violation, indexed_history::Facts, responses::name};
use crate::history::Key;

/// What stands where in a user's log, as far as anybody has seen it, each with the line that showed it first.
#[derive(Debug, Default)]
pub struct Place {
    pub by_sequence: BTreeMap<u64, (Key, usize)>,
    pub by_message: HashMap<Key, (u64, usize)>,
}

/// By user.
pub type Places<'a> = HashMap<&'a str, Place>;

impl Place {
    /// Takes in what was seen at a line.
    fn see(&mut self, user: &str, line: usize, s: u64, key: Key, violations: &mut Vec<Violation>) {
        let mut wrong = |what: String, at: usize| {
            violations.push(Violation { kind: Kind::Sequence, what, lines: vec![at, line] });
        };
        let (before, at) = *self.by_sequence.entry(s).or_insert((key, line));
        if before != key {
            wrong(format!("{user}: sequence {s} was {} and is {}", name(before), name(key)), at);
        }
        let (before, at) = *self.by_message.entry(key).or_insert((s, line));
        if before != s {
            wrong(format!("{user}: {} has sequences {before} and {s}", name(key)), at);
        }
    }
}

pub fn check<'a>(facts: &'a Facts, violations: &mut Vec<Violation>) -> Places<'a> {
    let mut places = Places::new();
    for (user, readings) in &facts.readings {
        let mut head = facts.heads.get(user).copied().unwrap_or(0);
        let (first, mut line) = (head, 1);
        let place = places.entry(user).or_default();
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
                    violations.push(Violation { kind: Kind::Sequence, what, lines: vec![reading.line] });
                }
                last = s;
                place.see(user, reading.line, s, key, violations);
                if !facts.dispatches.get(&key).is_some_and(|dispatch| dispatch.to.contains(user)) {
                    let what = format!("{user}: {} stands in a log where it does not belong", name(key));
                    foreign.push(Violation { kind: Kind::Foreign, what, lines: vec![reading.line] });
                }
            }
        }
        violations.extend(foreign);
    }
    for (user, connections) in facts.connections_of() {
        let place = places.entry(user).or_default();
        for on in connections.iter().filter(|on| on.after.is_some()) {
            for (line, key, _, s) in &on.received {
                if let Some(s) = s {
                    place.see(user, *line, *s, *key, violations);
                }
            }
        }
        check_order(facts, user, &place.by_message, violations);
    }
    if facts.always {
        check_count(facts, violations);
    }
    places
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
