//! What may come once more, and what not.
//!
//! A message may be sent again on a later connection unless its receipt was taken in before that connection began. That
//! it was is proven by the server's next question on the connection of the receipt, or by its answer to a close. While
//! that server lives, nothing receipted comes again. Receipts are written down with the next commit: so if a dispatch
//! that began after the proof was answered by the same server, or the server ended in order, nothing comes again after
//! its death either. Otherwise the death may have taken the receipt back.

use std::collections::HashMap;

use super::{Kind, Violation, answers::name, facts::Facts};
use crate::history::Key;

/// A receipt that was taken in.
#[derive(Clone, Copy, Debug)]
struct Taken {
    life: u64,
    at: usize,
    received: usize,
}

pub fn check(facts: &Facts, violations: &mut Vec<Violation>) {
    let witnesses = last_commits(facts);
    let durable = |taken: &Taken| {
        let commit = witnesses.get(&taken.life).copied().unwrap_or(0);
        let life = facts.lives.get(&taken.life);
        let stopped = life.is_some_and(|life| life.stopped && life.ended.is_some_and(|ended| ended > taken.at));
        commit > taken.at || stopped
    };
    for (user, connections) in facts.connections_of() {
        // By message: the earliest proof, and the earliest that a death cannot take back.
        let mut taken: HashMap<Key, Vec<Taken>> = HashMap::new();
        for connection in &connections {
            let mut done = 0;
            for (count, at) in &connection.receipts {
                for (line, key, ..) in &connection.received[done..*count] {
                    let receipt = Taken { life: connection.life, at: *at, received: *line };
                    taken.entry(*key).or_default().push(receipt);
                }
                done = *count;
            }
        }
        for connection in connections {
            for (line, key, ..) in &connection.received {
                let Some(receipts) = taken.get(key) else { continue };
                let barred = receipts.iter().find(|receipt| {
                    receipt.at < connection.opening && (receipt.life == connection.life || durable(receipt))
                });
                if let Some(receipt) = barred {
                    let what = format!("{user} got {} again, although its receipt had been taken in", name(*key));
                    let lines = vec![receipt.received, receipt.at, connection.opening, *line];
                    violations.push(Violation { kind: Kind::Repeated, what, lines });
                }
            }
        }
    }
}

/// By life: where the last dispatch began that it has answered and written a copy of.
fn last_commits(facts: &Facts) -> HashMap<u64, usize> {
    let mut last: HashMap<u64, usize> = HashMap::new();
    for dispatch in facts.dispatches.values() {
        for attempt in &dispatch.attempts {
            let Some((_, 200, answer)) = &attempt.answer else { continue };
            let rejected = answer["rejected"].as_array().map_or(0, Vec::len);
            if answer["duplicate"] != true && rejected < dispatch.to.len() {
                let begun = last.entry(attempt.life).or_default();
                *begun = (*begun).max(attempt.begun);
            }
        }
    }
    last
}
