//! Checks the order in which messages arrive.
//!
//! A user's messages have one order, that of the log, and every connection reads on in that order. An older message
//! that a connection has not received was acknowledged, so another connection has received it. So the order in which a
//! user receives messages for the first time, over all connections, is the order of the log. Hence three rules:
//!
//! - No message arrives first if its dispatch started after the answer to another that is still to arrive.
//! - Each connection follows the order of first arrivals.
//! - No message arrives twice on one connection.

use std::collections::{HashMap, HashSet};

use super::{
    Kind, Violation,
    indexed_history::{Connection, IndexedHistory},
    message_name,
};
use crate::history::Key;

/// Returns the number of messages that reached a user again.
pub fn check(history: &IndexedHistory, violations: &mut Vec<Violation>) -> u64 {
    let mut repeats = 0;
    for (user, connections) in history.connections_by_user() {
        let mut firsts: HashMap<Key, (usize, usize)> = HashMap::new();
        let mut all: Vec<(usize, Key)> =
            connections.iter().flat_map(|one| one.received.iter().map(|(line, key, ..)| (*line, *key))).collect();
        all.sort_unstable();
        // Of the messages received so far, the one whose dispatch started last.
        let mut latest: Option<(usize, usize, Key)> = None;
        for (line, key) in all {
            if firsts.contains_key(&key) {
                repeats += 1;
                continue;
            }
            firsts.insert(key, (firsts.len(), line));
            let Some(dispatch) = history.dispatches.get(&key) else { continue };
            if let (Some(accepted), Some((started, received, other))) = (dispatch.accepted(), latest)
                && accepted < started
            {
                let description = format!(
                    "{user} received {} after {}, which was sent later",
                    message_name(key),
                    message_name(other)
                );
                let lines = vec![accepted, started, received, line];
                violations.push(Violation { kind: Kind::Reordered, description, lines });
            }
            let started = dispatch.started();
            if latest.is_none_or(|(latest, ..)| started > latest) {
                latest = Some((started, line, key));
            }
        }
        for connection in connections {
            check_connection(user, connection, &firsts, violations);
            check_positions(user, connection, violations);
        }
    }
    repeats
}

/// Checks that a connection follows the order of first arrivals, without repeats.
fn check_connection(
    user: &str,
    connection: &Connection,
    firsts: &HashMap<Key, (usize, usize)>,
    violations: &mut Vec<Violation>,
) {
    let mut last: Option<(usize, usize, Key)> = None;
    let mut received = HashSet::new();
    for (line, key, ..) in &connection.received {
        let rank = firsts.get(key).map_or(0, |(rank, _)| *rank);
        if !received.insert(*key) {
            let description = format!("{user} received {} twice on one connection", message_name(*key));
            let lines = vec![connection.connecting, *line];
            violations.push(Violation { kind: Kind::Repeated, description, lines });
            continue;
        }
        if let Some((last_rank, at, other)) = last
            && rank < last_rank
        {
            let description = format!(
                "{user} received {} after {}, and earlier in the reverse order",
                message_name(*key),
                message_name(other)
            );
            let lines = vec![connection.connecting, at, *line];
            violations.push(Violation { kind: Kind::Reordered, description, lines });
        }
        last = Some((rank, *line, *key));
    }
}

/// Checks `s` on a connection that does not resume: positions in the redelivery from 1, then none on live messages.
fn check_positions(user: &str, connection: &Connection, violations: &mut Vec<Violation>) {
    let (mut last, mut live) = (0, false);
    for (line, key, _, s) in connection.received.iter().filter(|_| connection.after.is_none()) {
        if s.is_some_and(|s| live || s != last + 1) {
            let description = format!("{user} received {} with position {s:?} after {last}", message_name(*key));
            violations.push(Violation { kind: Kind::Position, description, lines: vec![connection.connecting, *line] });
            return;
        }
        live |= s.is_none();
        last = s.unwrap_or(last);
    }
}
