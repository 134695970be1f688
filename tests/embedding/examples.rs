//! Runs the example programs of `data/examples`, and compares the excerpts in the guide with them.

use std::{fs, path::Path};

#[path = "../../data/examples/broadcast.rs"]
mod broadcast;
#[path = "../../data/examples/closure.rs"]
mod closure;
#[path = "../../data/examples/dispatcher.rs"]
mod dispatcher;
#[path = "../../data/examples/embedded_server.rs"]
mod embedded_server;
#[path = "../../data/examples/message_options.rs"]
mod message_options;
#[path = "../../data/examples/middleware.rs"]
mod middleware;
#[path = "../../data/examples/portal.rs"]
mod portal;
#[path = "../../data/examples/resuming_client.rs"]
mod resuming_client;

#[test]
fn examples_run_to_their_end() {
    broadcast::main().expect("broadcast");
    closure::main().expect("closure");
    dispatcher::main().expect("dispatcher");
    embedded_server::main().expect("embedded_server");
    message_options::main().expect("message_options");
    middleware::main().expect("middleware");
    portal::main().expect("portal");
    resuming_client::main().expect("resuming_client");
}

/// Longest code sample of the guide, in lines. Longer programs are examples.
const SAMPLE_LINES_MAX: usize = 25;

/// Returns the texts of all files with this extension in a directory of the repository.
fn texts(directory: &str, extension: &str) -> Vec<(String, String)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join(directory);
    let paths = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let paths = paths.filter(|path| path.extension().is_some_and(|found| found == extension));
    paths.map(|path| (path.display().to_string(), fs::read_to_string(&path).unwrap())).collect()
}

/// Joins lines without their indentation, so that an excerpt can be found in a program.
fn unindented(text: &str) -> String {
    text.lines().map(|line| line.trim_start().to_owned() + "\n").collect()
}

#[test]
fn code_samples_of_the_guide_are_short_and_excerpts_are_lines_of_an_example() {
    let programs: Vec<String> = texts("data/examples", "rs").iter().map(|(_, text)| unindented(text)).collect();
    let mut excerpts = 0;
    for (path, text) in texts("src/guide", "md") {
        // Every second part is a sample: it begins with its language.
        for sample in text.split("\n```").skip(1).step_by(2) {
            let (language, sample) = sample.split_once('\n').unwrap();
            assert!(sample.lines().count() <= SAMPLE_LINES_MAX, "{path}: a sample is too long:\n{sample}");
            if language == "rust,ignore" {
                excerpts += 1;
                let found = programs.iter().any(|program| program.contains(&unindented(sample)));
                assert!(found, "{path}: expected these lines in a file of data/examples:\n{sample}");
            }
        }
    }
    assert!(excerpts >= 8, "found {excerpts} excerpts");
}
