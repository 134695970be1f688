//! Checks the responses to backends: well-formed, equal for one idempotency id, and no server error without a cause.

use serde_json::Value;

use super::{
    Kind, Violation,
    indexed_history::{Dispatch, IndexedHistory},
    message_name,
};
use crate::history::Key;

pub fn check(history: &IndexedHistory, violations: &mut Vec<Violation>) {
    for (key, dispatch) in &history.dispatches {
        check_duplicates(*key, dispatch, violations);
        let mut first: Option<(usize, Value)> = None;
        let responses =
            dispatch.attempts.iter().filter_map(|attempt| Some((attempt.started, attempt.response.as_ref()?)));
        for (started, (line, status, body)) in responses {
            if let Some(error) = response_error(*status, body, dispatch.to.len()) {
                let description = format!("{}: {error}", message_name(*key));
                violations.push(Violation { kind: Kind::Response, description, lines: vec![started, *line] });
            }
            if *status != 200 {
                continue;
            }
            let mut result = body.clone();
            if let Some(fields) = result.as_object_mut() {
                fields.remove("duplicate");
            }
            match &first {
                Some((at, first)) if *first != result => {
                    let description = format!("{} has two different results", message_name(*key));
                    violations.push(Violation { kind: Kind::Response, description, lines: vec![*at, *line] });
                }
                Some(_) => {}
                None => first = Some((*line, result)),
            }
        }
    }
}

/// Checks `duplicate`: one response under an id is the first, and every attempt after a response is a duplicate.
fn check_duplicates(key: Key, dispatch: &Dispatch, violations: &mut Vec<Violation>) {
    let mut report = |description: &str, lines: Vec<usize>| {
        let description = format!("{}: {description}", message_name(key));
        violations.push(Violation { kind: Kind::Response, description, lines });
    };
    let responses: Vec<(usize, usize, bool)> = dispatch
        .attempts
        .iter()
        .filter_map(|attempt| match &attempt.response {
            Some((line, 200, body)) => Some((attempt.started, *line, body["duplicate"] == true)),
            _ => None,
        })
        .collect();
    let firsts: Vec<usize> = responses.iter().filter(|(.., duplicate)| !duplicate).map(|(_, line, _)| *line).collect();
    if firsts.len() > 1 {
        report("it was accepted more than once", firsts.clone());
    }
    if let [(started, line, true)] = responses[..]
        && dispatch.attempts.iter().all(|attempt| attempt.started >= started)
    {
        report("the first attempt was answered as a duplicate", vec![started, line]);
    }
    for (started, line, duplicate) in &responses {
        if let Some((_, earlier, _)) = responses.iter().find(|(_, earlier, _)| earlier < started)
            && !duplicate
        {
            report("it was answered, and a later attempt was not a duplicate", vec![*earlier, *started, *line]);
        }
    }
}

/// Returns what is wrong with a response.
fn response_error(status: u16, body: &Value, recipients: usize) -> Option<String> {
    match status {
        200 => {
            let recipients = recipients as u64;
            let number = |key: &str| body[key].as_u64().unwrap_or(u64::MAX / 4);
            let rejected = body["rejected"].as_array().map_or(0, Vec::len) as u64;
            let counted =
                number("recipients") == recipients && number("online") + number("offline") + rejected == recipients;
            (!counted).then(|| format!("its result does not add up to {recipients} recipients"))
        }
        // The server is shutting down, too busy, or full.
        503 | 507 => None,
        400..500 => None,
        other => Some(format!("it was answered with status {other}")),
    }
}
