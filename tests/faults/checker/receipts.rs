//! What may come once more, and what not.
//!
//! A message may be sent again on a later connection unless its receipt was taken in before that connection began. That
//! it was is proven by the server's next question on the connection of the receipt, or by its answer to a close. While
//! that server lives, nothing receipted comes again. Receipts are written down with the next commit: so if a dispatch
//! that began after the proof was answered by the same server, or the server ended in order, nothing comes again after
//! its death either. Otherwise the death may have taken the receipt back.
//!
//! Each cursor has receipts of its own. A client that resumes gives them by sequence, and is sent whatever is above the
//! one it names: what it has confirmed may not come to its device when that does not resume.

use std::collections::HashMap;

use super::{
    Kind, Violation,
    indexed_history::Facts,
    responses::name,
    sequences::{Place, Places},
};
use crate::history::Key;

/// A receipt that was taken in.
#[derive(Clone, Copy, Debug)]
struct Taken {
    life: u64,
    at: usize,
    /// The line that shows what it was for.
    shown: usize,
}

pub fn check(facts: &Facts, places: &Places<'_>, violations: &mut Vec<Violation>) {
    let commits = facts.last_commits();
    let nothing = Place::default();
    for ((user, _), connections) in facts.cursors() {
        // By message, and by sequence: the earliest proof, and the earliest that a death cannot take back.
        let mut taken: HashMap<Key, Vec<Taken>> = HashMap::new();
        let mut through: Vec<(u64, Taken)> = Vec::new();
        for connection in &connections {
            let mut done = 0;
            for (count, at) in &connection.receipts {
                for (line, key, ..) in &connection.received[done..*count] {
                    let receipt = Taken { life: connection.life, at: *at, shown: *line };
                    taken.entry(*key).or_default().push(receipt);
                }
                done = *count;
            }
            let confirmed = connection.confirmed.iter();
            through.extend(confirmed.map(|(at, s)| (*s, Taken { life: connection.life, at: *at, shown: *at })));
        }
        let place = places.get(user).unwrap_or(&nothing);
        for connection in connections.iter().filter(|connection| connection.after.is_none()) {
            let bars = |receipt: &Taken| {
                receipt.at < connection.opening
                    && (receipt.life == connection.life || facts.outlives(&commits, receipt.life, receipt.at))
            };
            let bar = through.iter().filter(|(_, receipt)| bars(receipt)).max_by_key(|(s, _)| *s);
            for (line, key, ..) in &connection.received {
                let by_message = taken.get(key).and_then(|receipts| receipts.iter().find(|receipt| bars(receipt)));
                let s = place.by_message.get(key).map(|(s, _)| *s);
                let by_sequence = bar.filter(|(through, _)| s.is_some_and(|s| s <= *through)).map(|(_, taken)| taken);
                if let Some(receipt) = by_message.or(by_sequence) {
                    let what = format!("{user} got {} again, although its receipt had been taken in", name(*key));
                    let lines = vec![receipt.shown, receipt.at, connection.opening, *line];
                    violations.push(Violation { kind: Kind::Repeated, what, lines });
                }
            }
        }
    }
}
