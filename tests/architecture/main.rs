//! Checks architecture rules on the source text. Each message names the remedy.
//!
//! - `rules`: the import table, homes of foreign crates, unreachable files, file size, leftovers
//! - `circles`: import circles between files
//! - `covers`: tags of tests that hold a guarantee
//! - `retired`: words that may not return as identifiers
//! - `sources`, `lexer`: source files and their tokens

mod circles;
mod covers;
mod lexer;
mod retired;
mod rules;
mod sources;

use std::{fs, path::Path};

/// Panics with all violations, if there are any.
fn assert_none(violations: Vec<String>) {
    assert!(violations.is_empty(), "\n{}\n", violations.join("\n"));
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn sources(directory: &str) -> Vec<sources::Source> {
    sources::read(root(), directory, "rs")
}

#[test]
fn modules_import_only_what_the_table_allows() {
    assert_none(sources("src").iter().flat_map(rules::imports).collect());
}

#[test]
fn foreign_crates_are_used_only_in_their_homes() {
    assert_none(sources("src").iter().flat_map(rules::homes).collect());
}

#[test]
fn source_files_are_reached_by_mod_declarations() {
    assert_none(rules::dead_files(&sources("src")));
}

#[test]
fn files_have_at_most_500_lines() {
    assert_none(
        ["src", "tests", "benches"]
            .iter()
            .flat_map(|directory| sources(directory))
            .filter_map(|source| rules::size(&source))
            .collect(),
    );
}

#[test]
fn sources_contain_no_leftovers() {
    assert_none(
        ["src", "tests", "benches"]
            .iter()
            .flat_map(|directory| sources(directory))
            .flat_map(|source| rules::leftovers(&source))
            .collect(),
    );
}

#[test]
fn files_form_no_import_circle() {
    let found = circles::circles(&sources("src"));
    let remedy = "move the shared code to a separate file";
    assert_none(found.iter().map(|group| format!("these files import each other: {group:?}; {remedy}")).collect());
}

#[test]
fn each_guarantee_of_the_readme_has_a_tagged_test() {
    let read = |path: &str| fs::read_to_string(root().join(path)).expect("a readable file");
    let readme = read("README.md");
    let guarantees = covers::guarantees(&readme);
    assert!(!guarantees.is_empty(), "README.md lists no guarantee as `- **G1 Durability.**`");
    let files = [("src", "rs"), ("tests", "rs"), ("tests", "js")];
    let sources: Vec<_> =
        files.iter().flat_map(|(directory, extension)| sources::read(root(), directory, extension)).collect();
    let mut violations = covers::covers(&guarantees, &sources);
    violations.extend(covers::chapter(&guarantees, &read("src/guide/guarantees.md")));
    assert_none(violations);
}

#[test]
fn identifiers_contain_no_retired_words() {
    assert_none(
        ["src", "tests", "benches", "data"]
            .iter()
            .flat_map(|directory| sources(directory))
            .flat_map(|source| retired::words(&source))
            .collect(),
    );
}
