//! What backends were told: of the right form, the same each time, and not a failure that nobody caused.

use serde_json::Value;

use super::{Kind, Violation, facts::Facts};
use crate::history::Key;

pub fn check(facts: &Facts, violations: &mut Vec<Violation>) {
    for (key, dispatch) in &facts.dispatches {
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
