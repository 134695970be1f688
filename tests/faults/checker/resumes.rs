//! Checks what a connection that resumes receives: op 13 first, then each sequence above `after` in order.
//!
//! Each sequence comes either as a message or within a reported gap.

use super::{
    Kind, Violation,
    indexed_history::{Connection, IndexedHistory, Resumed},
    message_name,
};
use crate::history::Key;

/// Returns the gap reasons that may occur. In these runs nothing expires, is cleared or is evicted.
///
/// `received`: the entries were acknowledged. `restart`: dispatches were answered before their sync, so the log skips
/// sequences after a server was killed.
const fn gap_reasons(history: &IndexedHistory) -> &'static [&'static str] {
    if history.always { &["received"] } else { &["received", "restart"] }
}

enum Frame<'a> {
    Resumed(&'a Resumed),
    Message(Key, Option<u64>),
}

pub fn check(history: &IndexedHistory, violations: &mut Vec<Violation>) {
    for connection in history.connections.values() {
        if let Some(after) = connection.after {
            check_connection(connection, after, gap_reasons(history), violations);
        }
    }
}

fn check_connection(connection: &Connection, after: u64, reasons: &[&str], violations: &mut Vec<Violation>) {
    let resumed = connection.resumed.iter().map(|resumed| (resumed.line, Frame::Resumed(resumed)));
    let messages = connection.received.iter().map(|(line, key, _, s)| (*line, Frame::Message(*key, *s)));
    let mut frames: Vec<(usize, Frame<'_>)> = resumed.chain(messages).collect();
    frames.sort_unstable_by_key(|(line, _)| *line);
    // `position`: every sequence up to it was received or in a reported gap. `first`: as in the first op 13.
    let (mut position, mut first) = (after, None);
    for (line, frame) in frames {
        let wrong = match frame {
            Frame::Resumed(Resumed { last, .. }) if first.is_none() && *last < after => {
                Some((Kind::Sequence, format!("the last sequence {last}")))
            }
            Frame::Resumed(resumed) if first.is_none() && resumed.first <= after => {
                Some((Kind::Gap, format!("the first sequence {}", resumed.first)))
            }
            Frame::Resumed(Resumed { missed: Some((from, to, reason)), .. })
                if *from != position + 1 || to < from || !reasons.contains(&reason.as_str()) =>
            {
                Some((Kind::Gap, format!("a gap from {from} to {to} ({reason})")))
            }
            Frame::Resumed(resumed) => {
                first = first.or(Some(resumed.first));
                position = resumed.missed.as_ref().map_or(position, |(_, to, _)| *to);
                None
            }
            Frame::Message(key, None) => Some((Kind::Position, format!("{} without a sequence", message_name(key)))),
            Frame::Message(key, Some(s)) if s <= position => {
                Some((Kind::Position, format!("{} as sequence {s}", message_name(key))))
            }
            Frame::Message(key, Some(s)) if s != position + 1 || first.is_none_or(|first| s < first) => {
                Some((Kind::Gap, format!("{} as sequence {s}, where `first` was {first:?}", message_name(key))))
            }
            Frame::Message(_, Some(s)) => {
                position = s;
                None
            }
        };
        if let Some((kind, what)) = wrong {
            let description = format!("{} resumed after {after}, was at {position}, and got: {what}", connection.user);
            violations.push(Violation { kind, description, lines: vec![connection.connecting, line] });
            return;
        }
    }
}
