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

/// Panics with everything that is wrong.
fn hold(violations: Vec<String>) {
    assert!(violations.is_empty(), "\n{}\n", violations.join("\n"));
}

fn sources(directory: &str) -> Vec<sources::Source> {
    sources::read(Path::new(env!("CARGO_MANIFEST_DIR")), directory)
}

#[test]
fn a_module_imports_only_what_its_row_allows() {
    hold(sources("src").iter().flat_map(rules::imports).collect());
}

#[test]
fn each_foreign_name_has_one_home() {
    hold(sources("src").iter().flat_map(rules::homes).collect());
}

#[test]
fn every_source_file_is_part_of_the_crate() {
    hold(rules::dead_files(&sources("src")));
}

#[test]
fn no_file_is_too_large_to_be_read_at_once() {
    hold(
        ["src", "tests", "benches"]
            .iter()
            .flat_map(|each| sources(each))
            .filter_map(|source| rules::size(&source))
            .collect(),
    );
}

#[test]
fn nothing_is_left_lying_about() {
    hold(
        ["src", "tests", "benches"]
            .iter()
            .flat_map(|each| sources(each))
            .flat_map(|source| rules::leftovers(&source))
            .collect(),
    );
}

#[test]
fn files_do_not_import_each_other() {
    let found = circles::circles(&sources("src"));
    let remedy = "move what both need to a file of its own";
    hold(found.iter().map(|group| format!("these files import each other: {group:?}; {remedy}")).collect());
}
