//! In which order messages came.
//!
//! A user's messages have one order, that of his log, and every connection reads on in it. Whatever a connection has
//! not been sent yet and is older was confirmed, so some other connection has had it: the order in which a user has
//! messages for the first time, over all his connections, is the order of his log. Hence three rules: none comes first
//! that began after another was answered which is still to come; each connection follows the one order; and nothing
//! comes twice on a connection.

use std::collections::{HashMap, HashSet};

use super::{
    Kind, Violation,
    indexed_history::{Connection, Facts},
    responses::name,
};
use crate::history::Key;

/// Returns how many messages came to a user who had had them.
pub fn check(facts: &Facts, violations: &mut Vec<Violation>) -> u64 {
    let mut repeats = 0;
    for (user, connections) in facts.connections_of() {
        let mut firsts: HashMap<Key, (usize, usize)> = HashMap::new();
        let mut all: Vec<(usize, Key)> =
            connections.iter().flat_map(|one| one.received.iter().map(|(line, key, ..)| (*line, *key))).collect();
        all.sort_unstable();
        // Of those he has, the one that began last.
        let mut latest: Option<(usize, usize, Key)> = None;
        for (line, key) in all {
            if firsts.contains_key(&key) {
                repeats += 1;
                continue;
            }
            firsts.insert(key, (firsts.len(), line));
            let Some(dispatch) = facts.dispatches.get(&key) else { continue };
            if let (Some(acked), Some((begun, before, other))) = (dispatch.acked(), latest)
                && acked < begun
            {
                let what = format!("{user} got {} behind {}, which came later", name(key), name(other));
                violations.push(Violation { kind: Kind::Reordered, what, lines: vec![acked, begun, before, line] });
            }
            let begun = dispatch.begun();
            if latest.is_none_or(|(latest, ..)| begun > latest) {
                latest = Some((begun, line, key));
            }
        }
        for connection in connections {
            follow(user, connection, &firsts, violations);
            count(user, connection, violations);
        }
    }
    repeats
}

/// A connection follows the order in which the user had the messages first.
fn follow(user: &str, on: &Connection, firsts: &HashMap<Key, (usize, usize)>, violations: &mut Vec<Violation>) {
    let mut last: Option<(usize, usize, Key)> = None;
    let mut here = HashSet::new();
    for (line, key, ..) in &on.received {
        let place = firsts.get(key).map_or(0, |(place, _)| *place);
        if !here.insert(*key) {
            let what = format!("{user} got {} twice on one connection", name(*key));
            violations.push(Violation { kind: Kind::Repeated, what, lines: vec![on.opening, *line] });
            continue;
        }
        if let Some((before, at, other)) = last
            && place < before
        {
            let what =
                format!("{user} got {} behind {}, and before it was the other way round", name(*key), name(other));
            violations.push(Violation { kind: Kind::Reordered, what, lines: vec![on.opening, at, *line] });
        }
        last = Some((place, *line, *key));
    }
}

/// Numbers, but for those that resume: the place in what is redelivered, from one, and then none.
fn count(user: &str, on: &Connection, violations: &mut Vec<Violation>) {
    let (mut last, mut live) = (0, false);
    for (line, key, _, s) in on.received.iter().filter(|_| on.after.is_none()) {
        if s.is_some_and(|s| live || s != last + 1) {
            let what = format!("{user} got {} as number {s:?} behind {last}", name(*key));
            violations.push(Violation { kind: Kind::Numbered, what, lines: vec![on.opening, *line] });
            return;
        }
        live |= s.is_none();
        last = s.unwrap_or(last);
    }
}
