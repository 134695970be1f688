//! What a connection that resumes gets: first what there is, and then, behind what it has processed, each sequence in
//! turn, as a message or as part of a range that it is told of.

use super::{
    Kind, Violation,
    indexed_history::{Connection, Facts},
    responses::name,
};
use crate::history::Key;

/// In this battery nothing expires, is cleared or evicted: what is gone was received. Where a dispatch is answered
/// before it is synced, a log passes over sequences after a server was killed.
const fn reasons(facts: &Facts) -> &'static [&'static str] {
    if facts.always { &["received"] } else { &["received", "restart"] }
}

enum Step<'a> {
    Told(u64, u64, Option<&'a (u64, u64, String)>),
    Got(Key, Option<u64>),
}

pub fn check(facts: &Facts, violations: &mut Vec<Violation>) {
    for connection in facts.connections.values() {
        if let Some(after) = connection.after {
            follow(connection, after, reasons(facts), violations);
        }
    }
}

fn follow(on: &Connection, after: u64, reasons: &[&str], violations: &mut Vec<Violation>) {
    let told = on.told.iter().map(|(line, first, last, missed)| (*line, Step::Told(*first, *last, missed.as_ref())));
    let got = on.received.iter().map(|(line, key, _, s)| (*line, Step::Got(*key, *s)));
    let mut steps: Vec<(usize, Step<'_>)> = told.chain(got).collect();
    steps.sort_unstable_by_key(|(line, _)| *line);
    // Everything up to `reach` it has had or was told of; `first` as it was told at the beginning.
    let (mut reach, mut first) = (after, None);
    for (line, step) in steps {
        let wrong = match step {
            Step::Told(_, last, _) if first.is_none() && last < after => {
                Some((Kind::Sequence, format!("a log that ends with {last}")))
            }
            Step::Told(begins, ..) if first.is_none() && begins <= after => {
                Some((Kind::Hole, format!("the first was {begins}")))
            }
            Step::Told(_, _, Some((from, to, reason)))
                if *from != reach + 1 || to < from || !reasons.contains(&reason.as_str()) =>
            {
                Some((Kind::Hole, format!("from {from} to {to} was {reason}")))
            }
            Step::Told(begins, _, missed) => {
                first = first.or(Some(begins));
                reach = missed.map_or(reach, |(_, to, _)| *to);
                None
            }
            Step::Got(key, None) => Some((Kind::Numbered, format!("{} without its sequence", name(key)))),
            Step::Got(key, Some(s)) if s <= reach => Some((Kind::Numbered, format!("{} as sequence {s}", name(key)))),
            Step::Got(key, Some(s)) if s != reach + 1 || first.is_none_or(|first| s < first) => {
                Some((Kind::Hole, format!("{} as sequence {s}, the first being {first:?}", name(key))))
            }
            Step::Got(_, Some(s)) => {
                reach = s;
                None
            }
        };
        if let Some((kind, what)) = wrong {
            let what = format!("{} resumed behind {after}, was at {reach}, and got: {what}", on.user);
            violations.push(Violation { kind, what, lines: vec![on.opening, line] });
            return;
        }
    }
}
