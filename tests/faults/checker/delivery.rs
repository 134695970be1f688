//! Who has what: everybody what was answered, and nobody anything else.

use std::collections::{BTreeMap, HashMap};

use super::{Kind, Violation, indexed_history::Facts, responses::name};
use crate::history::Key;

pub fn check(facts: &Facts, violations: &mut Vec<Violation>) {
    let mut had: BTreeMap<&str, HashMap<Key, usize>> = BTreeMap::new();
    for connection in facts.connections.values() {
        let user = had.entry(&connection.user).or_default();
        for (line, key, padding, _) in &connection.received {
            let (line, key) = (*line, *key);
            user.entry(key).or_insert(line);
            let opening = connection.opening;
            let mut foreign = |what: String| {
                violations.push(Violation { kind: Kind::Foreign, what, lines: vec![opening, line] });
            };
            match facts.dispatches.get(&key) {
                None => foreign(format!("{} has {}, which nobody has sent", connection.user, name(key))),
                Some(dispatch) if !dispatch.to.contains(&connection.user) => {
                    foreign(format!("{} has {}, which was for {:?}", connection.user, name(key), dispatch.to));
                }
                Some(dispatch) if dispatch.padding != *padding => {
                    foreign(format!("{} has {} with other contents", connection.user, name(key)));
                }
                Some(dispatch) if dispatch.refused() || dispatch.rejected(&connection.user) => {
                    foreign(format!("{} has {}, which was refused", connection.user, name(key)));
                }
                Some(dispatch) if dispatch.begun() > line => {
                    foreign(format!("{} has {} before it was sent", connection.user, name(key)));
                }
                Some(_) => {}
            }
        }
    }
    if facts.lives.values().any(|life| life.wrong.is_some()) {
        // That is told already, and nobody can say what such a server would have delivered.
        return;
    }
    for (key, dispatch) in &facts.dispatches {
        let Some(acked) = dispatch.acked() else { continue };
        for user in dispatch.to.iter().filter(|user| !dispatch.rejected(user)) {
            if !had.get(user.as_str()).is_some_and(|had| had.contains_key(key)) {
                let what = format!("{} was answered for {user}, who does not have it", name(*key));
                violations.push(Violation { kind: Kind::Lost, what, lines: vec![dispatch.begun(), acked] });
            }
            if !facts.drained.contains_key(user) {
                let what = format!("{user} was not drained in the end");
                violations.push(Violation { kind: Kind::History, what, lines: vec![acked] });
            }
        }
    }
    for (user, (line, _, pending)) in &facts.drained {
        if *pending > 0 {
            let what = format!("{user} goes on having {pending} pending messages that nobody sends him");
            violations.push(Violation { kind: Kind::Pending, what, lines: vec![*line] });
        }
    }
}
