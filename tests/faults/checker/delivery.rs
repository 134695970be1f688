//! Checks that each recipient received every accepted message, and no other user did.

use std::collections::{BTreeMap, HashMap};

use super::{Kind, Violation, indexed_history::IndexedHistory, message_name};
use crate::history::Key;

pub fn check(history: &IndexedHistory, violations: &mut Vec<Violation>) {
    let mut received: BTreeMap<&str, HashMap<Key, usize>> = BTreeMap::new();
    for connection in history.connections.values() {
        let user = received.entry(&connection.user).or_default();
        for (line, key, padding, _) in &connection.received {
            let (line, key) = (*line, *key);
            user.entry(key).or_insert(line);
            let connecting = connection.connecting;
            let mut foreign = |description: String| {
                violations.push(Violation { kind: Kind::Foreign, description, lines: vec![connecting, line] });
            };
            match history.dispatches.get(&key) {
                None => foreign(format!("{} received {}, which was never sent", connection.user, message_name(key))),
                Some(dispatch) if !dispatch.to.contains(&connection.user) => {
                    foreign(format!(
                        "{} received {}, which was for {:?}",
                        connection.user,
                        message_name(key),
                        dispatch.to
                    ));
                }
                Some(dispatch) if dispatch.padding != *padding => {
                    foreign(format!("{} received {} with other contents", connection.user, message_name(key)));
                }
                Some(dispatch) if dispatch.rejected() || dispatch.rejected_for(&connection.user) => {
                    foreign(format!("{} received {}, which was rejected", connection.user, message_name(key)));
                }
                Some(dispatch) if dispatch.started() > line => {
                    foreign(format!("{} received {} before it was sent", connection.user, message_name(key)));
                }
                Some(_) => {}
            }
        }
    }
    if history.has_failed_server() {
        // That is a violation already.
        return;
    }
    for (key, dispatch) in &history.dispatches {
        let Some(accepted) = dispatch.accepted() else { continue };
        for user in dispatch.to.iter().filter(|user| !dispatch.rejected_for(user)) {
            if !received.get(user.as_str()).is_some_and(|received| received.contains_key(key)) {
                let description =
                    format!("{} was accepted for {user}, and {user} did not receive it", message_name(*key));
                violations.push(Violation { kind: Kind::Lost, description, lines: vec![dispatch.started(), accepted] });
            }
            if !history.drained.contains_key(user) {
                let description = format!("{user} was not drained at the end");
                violations.push(Violation { kind: Kind::History, description, lines: vec![accepted] });
            }
        }
    }
    for (user, (line, _, pending)) in &history.drained {
        if *pending > 0 {
            let description = format!("{user} still has {pending} pending messages, which the server does not send");
            violations.push(Violation { kind: Kind::Pending, description, lines: vec![*line] });
        }
    }
}
