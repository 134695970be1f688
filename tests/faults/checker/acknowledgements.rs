//! Checks that no acknowledged message is sent again.
//!
//! A later connection may repeat a message, unless the server received its acknowledgement before that connection
//! began. The server's next heartbeat on the connection of the op 11, or its answer to a close, proves that it received
//! it.
//!
//! - While that server lives, it repeats no acknowledged message.
//! - Acknowledgements are written with the next commit. A dispatch that started after the proof and was answered by the same
//!   server shows such a commit; so does an exit in order. Then no later server repeats the message either.
//! - Without a later commit, the death of the server may have lost the acknowledgement.
//!
//! Each cursor has its own acknowledgements. A client that resumes acknowledges by sequence, and receives everything
//! above its `after`. What it acknowledged must not reach its device on a connection that does not resume.

use std::collections::HashMap;

use super::{
    Kind, Violation,
    indexed_history::IndexedHistory,
    message_name,
    sequences::{SequenceMap, SequenceMaps},
};
use crate::history::Key;

/// An acknowledgement that a server has certainly received.
#[derive(Clone, Copy, Debug)]
struct Ack {
    server: u64,
    /// The line that proves it.
    proven: usize,
    /// The line that shows what it acknowledges.
    shown: usize,
}

pub fn check(history: &IndexedHistory, sequences: &SequenceMaps<'_>, violations: &mut Vec<Violation>) {
    let commits = history.last_commits();
    let no_sequences = SequenceMap::default();
    for ((user, _), connections) in history.connections_by_cursor() {
        let mut by_message: HashMap<Key, Vec<Ack>> = HashMap::new();
        let mut through: Vec<(u64, Ack)> = Vec::new();
        for connection in &connections {
            let mut done = 0;
            for (count, proven) in &connection.heartbeat_acks {
                for (line, key, ..) in &connection.received[done..*count] {
                    let ack = Ack { server: connection.server, proven: *proven, shown: *line };
                    by_message.entry(*key).or_default().push(ack);
                }
                done = *count;
            }
            let acknowledged = connection.acknowledged.iter();
            through
                .extend(acknowledged.map(|(at, s)| (*s, Ack { server: connection.server, proven: *at, shown: *at })));
        }
        let sequences = sequences.get(user).unwrap_or(&no_sequences);
        for connection in connections.iter().filter(|connection| connection.after.is_none()) {
            let applies = |ack: &Ack| {
                ack.proven < connection.connecting
                    && (ack.server == connection.server || history.survives(&commits, ack.server, ack.proven))
            };
            let highest = through.iter().filter(|(_, ack)| applies(ack)).max_by_key(|(s, _)| *s);
            for (line, key, ..) in &connection.received {
                let of_message = by_message.get(key).and_then(|acks| acks.iter().find(|ack| applies(ack)));
                let s = sequences.by_message.get(key).map(|(s, _)| *s);
                let of_sequence = highest.filter(|(through, _)| s.is_some_and(|s| s <= *through)).map(|(_, ack)| ack);
                if let Some(ack) = of_message.or(of_sequence) {
                    let description = format!(
                        "{user} received {} again, although the server had received its acknowledgement",
                        message_name(*key)
                    );
                    let lines = vec![ack.shown, ack.proven, connection.connecting, *line];
                    violations.push(Violation { kind: Kind::Repeated, description, lines });
                }
            }
        }
    }
}
