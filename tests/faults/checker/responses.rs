//! What backends were told: of the right form, the same each time, and not a failure that nobody caused.

use serde_json::Value;

use super::{
    Kind, Violation,
    indexed_history::{Dispatch, Facts},
};
use crate::history::Key;

pub fn check(facts: &Facts, violations: &mut Vec<Violation>) {
    for (key, dispatch) in &facts.dispatches {
        once(*key, dispatch, violations);
        let mut first: Option<(usize, Value)> = None;
        let answers = dispatch.attempts.iter().filter_map(|attempt| Some((attempt.begun, attempt.answer.as_ref()?)));
        for (begun, (line, status, answer)) in answers {
            if let Some(wrong) = wrong(*status, answer, dispatch.to.len()) {
                let what = format!("{}: {wrong}", name(*key));
                violations.push(Violation { kind: Kind::Answer, what, lines: vec![begun, *line] });
            }
            if *status != 200 {
                continue;
            }
            let mut result = answer.clone();
            if let Some(fields) = result.as_object_mut() {
                fields.remove("duplicate");
            }
            match &first {
                Some((at, before)) if *before != result => {
                    let what = format!("{} was answered twice, and differently", name(*key));
                    violations.push(Violation { kind: Kind::Answer, what, lines: vec![*at, *line] });
                }
                Some(_) => {}
                None => first = Some((*line, result)),
            }
        }
    }
}

/// Of the answers under one id one is the first, and whatever is asked behind it is a repeat.
fn once(key: Key, dispatch: &Dispatch, violations: &mut Vec<Violation>) {
    let mut wrong = |what: &str, lines: Vec<usize>| {
        violations.push(Violation { kind: Kind::Answer, what: format!("{}: {what}", name(key)), lines });
    };
    let answers: Vec<(usize, usize, bool)> = dispatch
        .attempts
        .iter()
        .filter_map(|attempt| match &attempt.answer {
            Some((line, 200, answer)) => Some((attempt.begun, *line, answer["duplicate"] == true)),
            _ => None,
        })
        .collect();
    let new: Vec<usize> = answers.iter().filter(|(.., repeat)| !repeat).map(|(_, line, _)| *line).collect();
    if new.len() > 1 {
        wrong("it was taken more than once", new.clone());
    }
    if let [(begun, line, true)] = answers[..]
        && dispatch.attempts.iter().all(|attempt| attempt.begun >= begun)
    {
        wrong("it is said to be a repeat, and is none", vec![begun, line]);
    }
    for (begun, line, repeat) in &answers {
        if let Some((_, before, _)) = answers.iter().find(|(_, before, _)| before < begun)
            && !repeat
        {
            wrong("it is said to be new, and had been answered", vec![*before, *begun, *line]);
        }
    }
}

fn wrong(status: u16, answer: &Value, recipients: usize) -> Option<String> {
    match status {
        200 => {
            let recipients = recipients as u64;
            let number = |key: &str| answer[key].as_u64().unwrap_or(u64::MAX / 4);
            let rejected = answer["rejected"].as_array().map_or(0, Vec::len) as u64;
            let counted =
                number("recipients") == recipients && number("online") + number("offline") + rejected == recipients;
            (!counted).then(|| format!("its answer does not count its {recipients} recipients"))
        }
        // The server is going, or too busy, or full.
        503 | 507 => None,
        400..500 => None,
        other => Some(format!("it was answered with status {other}")),
    }
}

/// How a message is called.
pub fn name((b, n): Key) -> String {
    format!("message {n} of backend {b}")
}
