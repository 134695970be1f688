//! Command lines as people type them, and what they are read as.

use clap::CommandFactory as _;

use super::*;

/// Every command, by the words that lead to it.
const COMMANDS: &[&[&str]] = &[
    &["serve"],
    &["demo"],
    &["connect"],
    &["dispatch"],
    &["users"],
    &["inbox"],
    &["token"],
    &["config"],
    &["inspect"],
    &["backup"],
    &["restore"],
    &["import"],
    &["export"],
    &["config", "check"],
    &["config", "print"],
];

#[test]
fn the_definition_holds_together() {
    Cli::command().debug_assert();
}

#[test]
fn every_command_is_in_the_table_of_commands() {
    let names: Vec<_> = Cli::command().get_subcommands().map(|command| command.get_name().to_owned()).collect();
    let table: Vec<_> = COMMANDS.iter().filter(|path| path.len() == 1).map(|path| path[0]).collect();
    assert_eq!(names, table);
}

#[test]
fn every_command_teaches_with_examples_and_exit_codes() {
    for path in COMMANDS {
        let (code, help) = typed(&[path, &["--help"][..]].concat()).unwrap_err();
        assert_eq!(code, 0, "{path:?}");
        let example = format!("  mesa {}", path.join(" "));
        assert!(help.contains("Examples:") && help.contains(&example), "{path:?}\n{help}");
        assert!(help.contains("Exit codes:"), "{path:?}\n{help}");
    }
}

/// Examples go stale unless somebody types them: every example line of every help is read here.
#[test]
fn every_example_can_be_typed() {
    let mut examples = 0;
    for path in COMMANDS {
        let (_, help) = typed(&[path, &["--help"][..]].concat()).unwrap_err();
        let section = help.split("Examples:").nth(1).unwrap().split("Exit codes:").next().unwrap();
        assert!(section.lines().all(|line| line.chars().count() < 80), "too wide for a terminal:\n{section}");
        for line in section.lines().filter_map(command_in) {
            let words = shell_words(&line);
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            assert!(typed(&words).is_ok(), "{path:?}: {line:?} is read as {words:?}: {:?}", typed(&words));
            examples += 1;
        }
    }
    assert_eq!(examples, 53, "an example was added, or is no longer found");
}

/// The command in an example line, without the variables before it and the pipe or the remark after it.
fn command_in(line: &str) -> Option<String> {
    let line = line.strip_prefix("  ")?;
    let from = if line.starts_with("mesa ") { 0 } else { line.rfind(" mesa ")? + 1 };
    // A remark stands apart by spaces.
    if line.trim_start().len() < line.len() || line[..from].contains("  ") {
        return None;
    }
    let command = &line[from + "mesa ".len()..];
    let end = [" | ", "  "].iter().filter_map(|mark| command.find(mark)).min().unwrap_or(command.len());
    Some(command[..end].trim().to_owned())
}

/// Words as a shell splits them, as far as the examples need it.
fn shell_words(line: &str) -> Vec<String> {
    let mut words = vec![];
    let mut word: Option<String> = None;
    let mut quoted = false;
    for character in line.chars() {
        match character {
            '\'' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            ' ' if !quoted => words.extend(word.take()),
            other => word.get_or_insert_default().push(other),
        }
    }
    words.extend(word);
    words
}

#[test]
fn what_makes_no_sense_ends_with_two() {
    for line in [
        "",
        "unknown",
        "serve --port 70000",
        "serve --store redis",
        "serve --log-format xml",
        "connect --as alice --token x",
        "dispatch {}",
        "dispatch --to",
        "dispatch --to alice --ttl 0",
        "dispatch --to alice --ttl 60 --no-sync",
        "dispatch --to alice --ndjson",
        "dispatch --ndjson file {}",
        "connect --as alice --after -1",
        "connect --as alice --after 1 --no-sync",
        "users alice --online",
        "inbox",
        "inbox alice --clear --limit 3",
        "inbox alice --after -1",
        "token",
        "token --id alice --secret s --config f",
        "config",
        "config check",
    ] {
        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(typed(&words).unwrap_err().0, 2, "{line:?}");
    }
}

#[test]
fn users_are_separated_by_commas() {
    let Ok(Command::Dispatch(args)) =
        typed(&["dispatch", "--to", "alice,bob", "--to", "carol", "--excluding", "dave,eve"])
    else {
        panic!("refused")
    };
    assert_eq!(args.to, ["alice", "bob", "carol"]);
    assert_eq!(args.excluding, ["dave", "eve"]);
    assert_eq!((args.data.as_str(), args.op, args.no_sync), ("{}", 0, false));
}

#[test]
fn a_stream_comes_from_a_file_or_from_standard_input() {
    for (words, file) in [
        (&["dispatch", "--ndjson"][..], "-"),
        (&["dispatch", "--ndjson", "-"], "-"),
        (&["dispatch", "--ndjson", "a b", "--json"], "a b"),
    ] {
        let Ok(Command::Dispatch(args)) = typed(words) else { panic!("refused: {words:?}") };
        assert_eq!(args.ndjson.as_deref(), Some(std::path::Path::new(file)));
    }
}

#[test]
fn a_dash_is_data_and_no_flag() {
    let Ok(Command::Dispatch(args)) = typed(&["dispatch", "--to", "*", "-"]) else { panic!("refused") };
    assert_eq!((args.to, args.data.as_str()), (vec!["*".to_owned()], "-"));
}
