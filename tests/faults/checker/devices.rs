//! Each cursor for itself: what one device has had and confirmed, another still gets.
//!
//! A new device begins with what somebody else has not received yet. Which that is only the server knows, so nothing is
//! asked of it before it is sure that the device is remembered: from the first visit on that outlived its server. (A
//! device that came just before a kill may be forgotten with it, like a receipt.) From there on everything that is
//! answered for its user has to come to it, and nothing that it does not have is told to have been received.

use std::collections::{HashMap, HashSet};

use super::{
    Kind, Violation,
    indexed_history::{Connection, Facts},
    responses::name,
    sequences::{Place, Places},
};
use crate::history::Key;

pub fn check(facts: &Facts, places: &Places<'_>, violations: &mut Vec<Violation>) {
    if facts.lives.values().any(|life| life.wrong.is_some()) {
        // Told already.
        return;
    }
    let commits = facts.last_commits();
    let nothing = Place::default();
    for ((user, device), connections) in facts.cursors() {
        let known = connections.iter().filter_map(|on| {
            let opened = on.opened?;
            let alive = facts.lives.get(&on.life).is_some_and(|life| life.ended.is_none());
            (alive || facts.outlives(&commits, on.life, opened)).then_some(opened)
        });
        let Some(known) = known.min() else { continue };
        let who = device.map_or_else(|| format!("{user} without a device"), |device| format!("{user} on {device}"));
        complete(facts, (user, &who), known, &connections, violations);
        let place = places.get(user).unwrap_or(&nothing);
        let start = facts.heads.get(user).copied().unwrap_or(0);
        for on in connections.iter().filter(|on| on.after.is_some()) {
            for (line, _, _, missed) in &on.told {
                let Some((from, to, _)) = missed else { continue };
                let told = Told { line: *line, from: (*from).max(start + 1), to: *to };
                truth(facts, &who, known, &connections, &told, place, violations);
            }
        }
    }
}

/// Everything that was sent since the cursor is known has come to it.
fn complete(
    facts: &Facts,
    (user, who): (&str, &str),
    known: usize,
    connections: &[&Connection],
    violations: &mut Vec<Violation>,
) {
    let had: HashSet<Key> = connections.iter().flat_map(|on| on.received.iter().map(|(_, key, ..)| *key)).collect();
    for (key, dispatch) in &facts.dispatches {
        let Some(acked) = dispatch.acked().filter(|_| dispatch.begun() > known) else { continue };
        let for_him = dispatch.to.iter().any(|to| to == user) && !dispatch.rejected(user);
        if for_him && !had.contains(key) {
            let what = format!("{} was answered for {who}, and has not come there", name(*key));
            violations.push(Violation { kind: Kind::Lost, what, lines: vec![known, dispatch.begun(), acked] });
        }
    }
}

struct Told {
    line: usize,
    from: u64,
    to: u64,
}

/// What a device is told to have received it has received: it has said so, or was asked and had it.
fn truth(
    facts: &Facts,
    who: &str,
    known: usize,
    connections: &[&Connection],
    told: &Told,
    place: &Place,
    violations: &mut Vec<Violation>,
) {
    let before = connections.iter().filter(|on| on.opening < told.line);
    let said = before.clone().flat_map(|on| {
        let confirming = on.confirming.iter().filter(|(line, _)| *line < told.line).map(|(_, s)| *s);
        on.after.into_iter().chain(confirming)
    });
    let said = said.max().unwrap_or(0);
    if told.from.max(said + 1) > told.to {
        return;
    }
    // By its cursor it is given no sequences; which those are is known where somebody else had them.
    let mut had: HashMap<Key, usize> = HashMap::new();
    for (line, key, ..) in before.filter(|on| on.after.is_none()).flat_map(|on| &on.received) {
        had.entry(*key).or_insert(*line);
    }
    for (s, (key, _)) in place.by_sequence.range(told.from.max(said + 1)..=told.to) {
        let young = facts.dispatches.get(key).is_some_and(|dispatch| dispatch.begun() > known);
        if young && had.get(key).is_none_or(|line| *line > told.line) {
            let what = format!("{who} was told to have received {} (sequence {s}), and has not", name(*key));
            violations.push(Violation { kind: Kind::Hole, what, lines: vec![known, told.line] });
            return;
        }
    }
}
