//! Reports retired words: names of an earlier version that mean nothing to an engineer of this field.

use crate::{lexer::line, sources::Source};

/// Words that may not be part of an identifier, and the terms to use instead.
const RETIRED: &[(&[&str], &str)] = &[
    (&["told", "said", "say"], "the event, frame or message: `notified`, `inbound`, `reply`"),
    (&["beside"], "`next_to`, or the name of the relation"),
    (&["stock"], "`original`"),
    (&["tally", "tallies"], "`usage`"),
    (&["lapse", "lapses"], "`lossy_restart`"),
    (&["settle", "settles", "settled", "settling"], "`flush`"),
    (&["journal", "journals"], "`wal`"),
    (&["owe", "owes", "owed"], "`pending` or `backlog`"),
    (&["bury", "burial"], "`reap`"),
    (&["planted"], "`failpoint`"),
    (&["forgotten"], "`removed` or `expired`"),
    (&["farewell"], "`closing`"),
    (&["whoever", "somebody", "nobody", "everybody"], "the actor: `client`, `user`, `server`"),
];

/// Reports identifiers that contain a retired word as a part: `was_told`, `WasTold`, `TOLD`.
pub fn words(source: &Source) -> Vec<String> {
    let mut violations = Vec::new();
    for (at, identifier) in identifiers(&source.code) {
        let parts = parts(identifier);
        let retired = RETIRED.iter().find(|(words, _)| parts.iter().any(|part| words.contains(&part.as_str())));
        if let Some((_, instead)) = retired {
            let line = line(&source.code, at);
            violations.push(format!("{}:{line}: `{identifier}` has a retired word; use {instead}", source.path));
        }
    }
    violations
}

/// Returns the identifiers and keywords of blanked code, each with its offset.
fn identifiers(code: &str) -> Vec<(usize, &str)> {
    let is_part = |each: char| each.is_alphanumeric() || each == '_';
    let mut found = Vec::new();
    let mut rest = code;
    while let Some(from) = rest.find(is_part) {
        let length = rest[from..].find(|each| !is_part(each)).unwrap_or(rest.len() - from);
        found.push((code.len() - rest.len() + from, &rest[from..from + length]));
        rest = &rest[from + length..];
    }
    found
}

/// Splits an identifier at underscores and before capitals that follow a small letter or a digit. Returns small
/// letters.
fn parts(identifier: &str) -> Vec<String> {
    let (mut parts, mut last) = (vec![String::new()], '_');
    for each in identifier.chars() {
        if each == '_' || each.is_uppercase() && !last.is_uppercase() {
            parts.push(String::new());
        }
        if each != '_' {
            parts.last_mut().expect("one part at least").extend(each.to_lowercase());
        }
        last = each;
    }
    parts.retain(|part| !part.is_empty());
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_with_a_retired_part_of_an_identifier_returns_it() {
        for text in [
            "let told = 1;",
            "fn was_told() {}",
            "struct WasTold;",
            "enum Told { A }",
            "const TOLD_MAX: u8 = 1;",
            "use crate::journal;",
            "let _stock2 = settle(tally);",
        ] {
            assert!(!words(&Source::new("src/a.rs", text)).is_empty(), "{text}");
        }
        for text in ["// told", "let a = \"told\";", "fn untoldable() {}", "struct Stockade;", "let besides = saying;"]
        {
            assert_eq!(words(&Source::new("src/a.rs", text)), [""; 0], "{text}");
        }
        assert_eq!(words(&Source::new("src/a.rs", "\n\nlet told = tally;")).len(), 2);
        assert!(words(&Source::new("src/a.rs", "\n\nlet told = 1;"))[0].starts_with("src/a.rs:3: `told`"));
    }

    #[test]
    fn parts_of_an_identifier_are_its_words() {
        assert_eq!(parts("WasTold_MAX"), ["was", "told", "max"]);
        assert_eq!(parts("id2Told"), ["id2", "told"]);
    }
}
