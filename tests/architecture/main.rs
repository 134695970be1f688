//! Architecture rules, checked on the source text. Each message names the remedy.
//!
//! - `rules`: the import table, homes of foreign crates, unreachable files, file size, leftovers
//! - `circles`: import circles between files
//! - `sources`, `lexer`: source files and their tokens

mod circles;
mod lexer;
mod rules;
mod sources;

use std::path::Path;

/// Panics with all violations, if there are any.
fn assert_none(violations: Vec<String>) {
    assert!(violations.is_empty(), "\n{}\n", violations.join("\n"));
}

fn sources(directory: &str) -> Vec<sources::Source> {
    sources::read(Path::new(env!("CARGO_MANIFEST_DIR")), directory)
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
