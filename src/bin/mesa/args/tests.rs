//! Tests arguments: examples in the help, and invalid arguments.

use clap::CommandFactory as _;

use super::*;

/// All commands, each as a list of words.
const COMMANDS: &[&[&str]] = &[
    &["serve"],
    &["demo"],
    &["connect"],
    &["dispatch"],
    &["drain"],
    &["users"],
    &["inbox"],
    &["disconnect"],
    &["status"],
    &["events"],
    &["token"],
    &["config"],
    &["inspect"],
    &["backup"],
    &["restore"],
    &["import"],
    &["export"],
    &["bench"],
    &["completions"],
    &["man"],
    &["config", "init"],
    &["config", "check"],
    &["config", "print"],
];

#[test]
fn command_definition_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn every_command_is_in_the_table_of_commands() {
    let names: Vec<_> = Cli::command().get_subcommands().map(|command| command.get_name().to_owned()).collect();
    let table: Vec<_> = COMMANDS.iter().filter(|path| path.len() == 1).map(|path| path[0]).collect();
    assert_eq!(names, table);
}

#[test]
fn help_of_every_command_has_examples_and_exit_codes() {
    for path in COMMANDS {
        let (code, help) = parse_words(&[path, &["--help"][..]].concat()).unwrap_err();
        assert_eq!(code, 0, "{path:?}");
        let example = format!("  mesa {}", path.join(" "));
        assert!(help.contains("Examples:") && help.contains(&example), "{path:?}\n{help}");
        assert!(help.contains("Exit codes:"), "{path:?}\n{help}");
    }
}

/// Parses every example of every help, so that none is outdated.
#[test]
fn every_example_is_parsed() {
    let mut examples = 0;
    for path in COMMANDS {
        let (_, help) = parse_words(&[path, &["--help"][..]].concat()).unwrap_err();
        let section = help.split("Examples:").nth(1).unwrap().split("Exit codes:").next().unwrap();
        assert!(section.lines().all(|line| line.chars().count() < 80), "too wide for a terminal:\n{section}");
        for line in section.lines().filter_map(command_in) {
            let words = shell_words(&line);
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            assert!(
                parse_words(&words).is_ok(),
                "{path:?}: {line:?} is split into {words:?}: {:?}",
                parse_words(&words)
            );
            examples += 1;
        }
    }
    assert_eq!(examples, 86, "an example was added, or is no longer found");
}

/// Returns the command in an example line, without variables before it and a pipe, file or remark after it.
fn command_in(line: &str) -> Option<String> {
    let line = line.strip_prefix("  ")?;
    let from = if line.starts_with("mesa ") { 0 } else { line.rfind(" mesa ")? + 1 };
    // Two spaces separate a remark.
    if line.trim_start().len() < line.len() || line[..from].contains("  ") {
        return None;
    }
    let command = &line[from + "mesa ".len()..];
    let end = [" | ", " > ", "  "].iter().filter_map(|mark| command.find(mark)).min().unwrap_or(command.len());
    Some(command[..end].trim().to_owned())
}

/// Splits a line into words like a shell, as far as the examples need it.
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
fn invalid_arguments_exit_with_2() {
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
        "token --check x --id alice",
        "token --id alice --key-file f",
        "events --type none",
        "disconnect",
        "completions tcsh",
        "config",
        "config check",
        "config init a b",
        "drain --seconds -1",
    ] {
        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(parse_words(&words).unwrap_err().0, 2, "{line:?}");
    }
}

#[test]
fn recipients_are_separated_by_commas() {
    let Ok(Command::Dispatch(args)) =
        parse_words(&["dispatch", "--to", "alice,bob", "--to", "carol", "--excluding", "dave,eve"])
    else {
        panic!("rejected")
    };
    assert_eq!(args.to, ["alice", "bob", "carol"]);
    assert_eq!(args.excluding, ["dave", "eve"]);
    assert_eq!((args.data.as_str(), args.op, args.no_sync), ("{}", 0, false));
}

#[test]
fn ndjson_reads_a_file_or_standard_input() {
    for (words, file) in [
        (&["dispatch", "--ndjson"][..], "-"),
        (&["dispatch", "--ndjson", "-"], "-"),
        (&["dispatch", "--ndjson", "a b", "--json"], "a b"),
    ] {
        let Ok(Command::Dispatch(args)) = parse_words(words) else { panic!("rejected: {words:?}") };
        assert_eq!(args.ndjson.as_deref(), Some(std::path::Path::new(file)));
    }
}

#[test]
fn dash_is_data_and_not_an_option() {
    let Ok(Command::Dispatch(args)) = parse_words(&["dispatch", "--to", "*", "-"]) else { panic!("rejected") };
    assert_eq!((args.to, args.data.as_str()), (vec!["*".to_owned()], "-"));
}
