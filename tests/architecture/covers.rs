//! Checks that tests hold each guarantee, by tags: `// covers: G1` or `// covers: G1, G4`.
//!
//! A tag stands above the attributes of a test, above a JavaScript test, or above a scenario of the fault tests.

use std::{collections::BTreeSet, path::Path};

use crate::{lexer::line_comments, sources::Source};

/// File whose match arms are scenarios: they carry tags like tests.
const SCENARIOS: &str = "tests/faults/scenarios.rs";

/// Returns the guarantees that the README lists as `- **G1 Durability.**`, in its order.
pub fn guarantees(readme: &str) -> Vec<&str> {
    readme.lines().filter_map(|line| line.strip_prefix("- **")).filter_map(guarantee_at).collect()
}

/// Reports a chapter whose headings (`## G1 Durability`) are not the guarantees of the README.
pub fn chapter(guarantees: &[&str], chapter: &str) -> Option<String> {
    let stated: Vec<&str> =
        chapter.lines().filter_map(|line| line.strip_prefix("## ")).filter_map(guarantee_at).collect();
    (stated != guarantees).then(|| {
        format!("src/guide/guarantees.md: it states {stated:?}, and README.md {guarantees:?}; state the same in both")
    })
}

/// Returns the guarantee at the start of `text`: `G`, digits, and a space.
fn guarantee_at(text: &str) -> Option<&str> {
    let (number, _) = text.split_once(' ')?;
    is_guarantee(number).then_some(number)
}

fn is_guarantee(text: &str) -> bool {
    text.strip_prefix('G')
        .is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit()))
}

/// Reports malformed and misplaced tags, tags of unknown guarantees, and guarantees without a tag.
pub fn covers(guarantees: &[&str], sources: &[Source]) -> Vec<String> {
    let (mut violations, mut covered) = (Vec::new(), BTreeSet::new());
    for source in sources {
        let lines: Vec<&str> = source.text.lines().collect();
        for (line, comment) in comments(source) {
            let tagged = parse(&comment, guarantees).and_then(|tagged| {
                let is_placed = lines[line - 1].trim_start().starts_with("//") && is_above_test(source, &lines[line..]);
                is_placed.then_some(tagged).ok_or("it does not stand above a test".to_owned())
            });
            match tagged {
                Ok(tagged) => covered.extend(tagged),
                Err(reason) => violations.push(format!(
                    "{}:{line}: `{comment}`: {reason}; write `// covers: G1` or `// covers: G1, G4` above the attributes of a test",
                    source.path
                )),
            }
        }
    }
    let uncovered = guarantees.iter().filter(|guarantee| !covered.contains(**guarantee));
    violations.extend(uncovered.map(|guarantee| {
        format!("README.md: no test is tagged `// covers: {guarantee}`; tag the tests that hold it, or write one")
    }));
    violations
}

fn is_javascript(source: &Source) -> bool {
    Path::new(&source.path).extension().is_some_and(|extension| extension == "js")
}

/// Returns the comments that are tags or look like tags, each with its line.
fn comments(source: &Source) -> Vec<(usize, String)> {
    let comments = if is_javascript(source) {
        // The lexer does not know the strings of JavaScript. Tags have lines of their own.
        let lines = source.text.lines().map(str::trim_start).enumerate();
        lines.filter(|(_, line)| line.starts_with("//")).map(|(at, line)| (at + 1, line.to_owned())).collect()
    } else {
        line_comments(&source.text)
    };
    comments.into_iter().filter(|(_, comment)| is_tag_like(comment)).collect()
}

/// Reports whether a comment is a tag, or was meant to be one: `covers:` or `cover G1` in any case.
fn is_tag_like(comment: &str) -> bool {
    let text = comment.trim_start_matches(['/', '!']).trim_start().to_lowercase();
    text.strip_prefix("covers").or(text.strip_prefix("cover")).map(str::trim_start).is_some_and(|rest| {
        rest.starts_with(':')
            || rest.strip_prefix('g').is_some_and(|rest| rest.starts_with(|each: char| each.is_ascii_digit()))
    })
}

/// Parses a tag, and returns its guarantees.
fn parse<'a>(comment: &str, guarantees: &[&'a str]) -> Result<Vec<&'a str>, String> {
    let list = comment.strip_prefix("// covers: ").ok_or("the tag is malformed")?;
    let mut tagged = Vec::new();
    for name in list.split(", ") {
        if !is_guarantee(name) {
            return Err(format!("{name:?} is not the name of a guarantee"));
        }
        let known = guarantees.iter().find(|guarantee| **guarantee == name);
        tagged.push(*known.ok_or_else(|| format!("README.md lists no guarantee {name}"))?);
    }
    let place = |name: &&str| guarantees.iter().position(|guarantee| guarantee == name);
    if tagged.windows(2).any(|pair| place(&pair[0]) >= place(&pair[1])) {
        return Err("its guarantees are not in order".to_owned());
    }
    Ok(tagged)
}

/// Reports whether the next code in `lines` begins a test. Comments and other attributes are skipped.
fn is_above_test(source: &Source, lines: &[&str]) -> bool {
    for line in lines.iter().map(|line| line.trim()) {
        if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
            return true;
        }
        if !line.starts_with("//") && !line.starts_with("#[") {
            let name = line.split('(').next().unwrap_or_default();
            // A part of a test has the form `await t.test(…)`.
            let name = name.strip_prefix("await t.").unwrap_or(name);
            let is_js_test = is_javascript(source) && name.starts_with("test") && line.contains('(');
            let is_scenario = source.path == SCENARIOS && line.starts_with('"') && line.contains("\" =>");
            return is_js_test || is_scenario;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEST: &str = "#[test]\nfn a() {}";

    fn found(files: &[(&str, &str)]) -> Vec<String> {
        let sources: Vec<_> = files.iter().map(|(path, text)| Source::new(path, text)).collect();
        covers(&["G1", "G2"], &sources)
    }

    /// Returns the violations of a tag on a test, where another test covers every guarantee.
    fn of_tag(tag: &str) -> Vec<String> {
        found(&[("tests/a.rs", &format!("// covers: G1, G2\n{TEST}")), ("tests/b.rs", &format!("{tag}\n{TEST}"))])
    }

    #[test]
    fn guarantees_of_a_readme_are_the_items_with_a_number() {
        let readme = "# G3 title\n- **G1 Durability.** Text with G9.\n- **Good.** Text\n- **G2 Order.** Text";
        assert_eq!(guarantees(readme), ["G1", "G2"]);
        assert_eq!(chapter(&["G1", "G2"], "## G1 Durability\n### G9\n## G2 Order\n## Not promised"), None);
        assert!(chapter(&["G1", "G2"], "## G1 Durability").is_some());
    }

    #[test]
    fn covers_without_a_tag_of_a_guarantee_returns_it() {
        assert_eq!(found(&[("tests/a.rs", &format!("// covers: G1, G2\n{TEST}"))]), [""; 0]);
        let violations = found(&[("tests/a.rs", &format!("// covers: G1\n{TEST}"))]);
        assert!(violations.len() == 1 && violations[0].contains("// covers: G2"), "{violations:?}");
        // A text in a string is no tag.
        assert_eq!(found(&[("tests/a.rs", &format!("const A: &str = \"\n// covers: G1, G2\n{TEST}\";"))]).len(), 2);
    }

    #[test]
    fn covers_with_a_malformed_or_unknown_tag_returns_it() {
        assert_eq!(of_tag("// covers: G1"), [""; 0]);
        assert_eq!(of_tag("// Covers the case of G1."), [""; 0]);
        for tag in [
            "// covers: G3",
            "// covers: G1, G3",
            "// covers: G2, G1",
            "// covers: G1, G1",
            "// covers: G1,G2",
            "// covers: G1.",
            "// covers: G1 and G2",
            "// covers: durability",
            "// covers:",
            "//covers: G1",
            "// Covers: G1",
            "/// covers: G1",
            "// covers G1",
            "// cover: G1",
            "fn b() {} // covers: G1",
        ] {
            assert_eq!(of_tag(tag).len(), 1, "{tag}");
        }
    }

    #[test]
    fn covers_with_a_tag_above_anything_but_a_test_returns_it() {
        let scenarios = ("tests/faults/scenarios.rs", "match name {\n    // covers: G1\n    \"kills\" => (),\n}");
        let script = ("tests/node_clients/a.test.js", "// covers: G2\ntestWithEachClient('a', () => {});");
        assert_eq!(found(&[scenarios, script]), [""; 0]);
        let attributes =
            "// covers: G1, G2\n// A reason.\n#[cfg(unix)]\n#[tokio::test(start_paused = true)]\nasync fn a() {}";
        assert_eq!(found(&[("src/a.rs", attributes)]), [""; 0]);
        for (path, text) in [
            ("tests/a.rs", "// covers: G1\nfn a() {}"),
            ("tests/a.rs", "// covers: G1"),
            ("tests/a.rs", "// covers: G1\n\n#[test]\nfn a() {}"),
            ("tests/a.rs", "match name {\n    // covers: G1\n    \"kills\" => (),\n}"),
            ("tests/a.test.js", "// covers: G1\nconst test = 1;"),
        ] {
            assert_eq!(found(&[(path, text)]).len(), 3, "{path}: {text}");
        }
    }
}
