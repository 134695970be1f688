//! Checks that each device has its own cursor: an acknowledgement of one device withholds nothing from another.
//!
//! A new device starts with the messages that another cursor has not acknowledged. Only the server knows which these
//! are. So a device is checked only once the server has certainly stored it: from its first connection whose server
//! survived it. (A device that connects shortly before a kill may be lost with the server, like an acknowledgement.)
//! From then on every message that is accepted for its user must reach it, and no gap may say `received` of a message
//! that it did not receive.

use std::collections::{HashMap, HashSet};

use super::{
    Kind, Violation,
    indexed_history::{Connection, IndexedHistory},
    message_name,
    sequences::{SequenceMap, SequenceMaps},
};
use crate::history::Key;

/// A cursor of a user, from the line on from which the server has certainly stored it.
struct Cursor<'a> {
    user: &'a str,
    /// User and device, for the texts of violations.
    label: String,
    stored: usize,
    connections: &'a [&'a Connection],
}

/// A gap `received` that the server reported to a device.
struct ReportedGap {
    line: usize,
    from: u64,
    to: u64,
}

pub fn check(history: &IndexedHistory, sequences: &SequenceMaps<'_>, violations: &mut Vec<Violation>) {
    if history.has_failed_server() {
        // That is a violation already.
        return;
    }
    let commits = history.last_commits();
    let no_sequences = SequenceMap::default();
    for ((user, device), connections) in history.connections_by_cursor() {
        let stored = connections.iter().filter_map(|connection| {
            let connected = connection.connected?;
            let alive = history.servers.get(&connection.server).is_some_and(|server| server.exited.is_none());
            (alive || history.survives(&commits, connection.server, connected)).then_some(connected)
        });
        let Some(stored) = stored.min() else { continue };
        let label = device.map_or_else(|| format!("{user} without a device"), |device| format!("{user} on {device}"));
        let cursor = Cursor { user, label, stored, connections: &connections };
        check_delivery(history, &cursor, violations);
        let sequences = sequences.get(user).unwrap_or(&no_sequences);
        let start = history.heads.get(user).copied().unwrap_or(0);
        for connection in connections.iter().filter(|connection| connection.after.is_some()) {
            for resumed in &connection.resumed {
                let Some((from, to, _)) = resumed.missed else { continue };
                let gap = ReportedGap { line: resumed.line, from: from.max(start + 1), to };
                check_gap(history, &cursor, &gap, sequences, violations);
            }
        }
    }
}

/// Reports messages that were sent since the cursor is stored and did not reach it.
fn check_delivery(history: &IndexedHistory, cursor: &Cursor<'_>, violations: &mut Vec<Violation>) {
    let Cursor { user, label, stored, connections } = cursor;
    let received = connections.iter().flat_map(|connection| connection.received.iter().map(|(_, key, ..)| *key));
    let received: HashSet<Key> = received.collect();
    for (key, dispatch) in &history.dispatches {
        let Some(accepted) = dispatch.accepted().filter(|_| dispatch.started() > *stored) else { continue };
        let is_recipient = dispatch.to.iter().any(|to| to == user) && !dispatch.rejected_for(user);
        if is_recipient && !received.contains(key) {
            let description = format!("{} was accepted for {label}, and did not arrive there", message_name(*key));
            let lines = vec![*stored, dispatch.started(), accepted];
            violations.push(Violation { kind: Kind::Lost, description, lines });
        }
    }
}

/// Reports a gap `received` with a message that the device neither acknowledged nor received.
fn check_gap(
    history: &IndexedHistory,
    cursor: &Cursor<'_>,
    gap: &ReportedGap,
    sequences: &SequenceMap,
    violations: &mut Vec<Violation>,
) {
    let before = cursor.connections.iter().filter(|connection| connection.connecting < gap.line);
    let acknowledged = before.clone().flat_map(|connection| {
        let acknowledging = connection.acknowledging.iter().filter(|(line, _)| *line < gap.line).map(|(_, s)| *s);
        connection.after.into_iter().chain(acknowledging)
    });
    let acknowledged = acknowledged.max().unwrap_or(0);
    if gap.from.max(acknowledged + 1) > gap.to {
        return;
    }
    // A connection that does not resume receives no sequences. They are known if another connection received the
    // messages.
    let mut received: HashMap<Key, usize> = HashMap::new();
    for (line, key, ..) in before.filter(|connection| connection.after.is_none()).flat_map(|one| &one.received) {
        received.entry(*key).or_insert(*line);
    }
    for (s, (key, _)) in sequences.by_sequence.range(gap.from.max(acknowledged + 1)..=gap.to) {
        let is_new = history.dispatches.get(key).is_some_and(|dispatch| dispatch.started() > cursor.stored);
        if is_new && received.get(key).is_none_or(|line| *line > gap.line) {
            let label = &cursor.label;
            let description =
                format!("a gap reports that {label} received {} (sequence {s}), and it did not", message_name(*key));
            violations.push(Violation { kind: Kind::Gap, description, lines: vec![cursor.stored, gap.line] });
            return;
        }
    }
}
