//! Tests `mesa completions` and `mesa man` with the shells and the formatter that are installed.

use std::{
    fs,
    io::Write as _,
    process::{Command, Stdio},
};

use crate::{output_text, run_mesa, support::command::utf8};

/// Every command.
const COMMANDS: &[&str] = &[
    "serve",
    "demo",
    "connect",
    "dispatch",
    "users",
    "inbox",
    "disconnect",
    "status",
    "events",
    "token",
    "config",
    "inspect",
    "backup",
    "restore",
    "import",
    "export",
    "completions",
    "man",
];

/// Runs a program with this input. Returns what it prints; `None` if it is not installed.
fn run_installed(program: &str, args: &[&str], input: &str) -> Option<String> {
    let mut command = Command::new(program);
    let child = command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let Ok(mut child) = child else {
        println!("{program} is not installed: not checked with it");
        return None;
    };
    child.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("it reads its input");
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{program}: {}", output_text(&output));
    Some(output_text(&output))
}

fn completions(shell: &str) -> String {
    let output = run_mesa(&["completions", shell]);
    assert!(output.status.success(), "{}", output_text(&output));
    let script = output_text(&output);
    for command in COMMANDS {
        assert!(script.contains(command), "{shell}: {command}");
    }
    script
}

#[test]
fn bash_completes_commands_options_and_values() {
    let script = completions("bash");
    for (words, expected) in [
        (&["mesa", "st"][..], "status"),
        (&["mesa", "serve", "--store-p"], "--store-path"),
        (&["mesa", "serve", "--log-format", ""], "text json"),
        (&["mesa", "events", "--type", "dis"], "disconnection"),
        (&["mesa", "completions", "z"], "zsh"),
    ] {
        let (last, before) = (words[words.len() - 1], words[words.len() - 2]);
        let call = format!(
            "{script}\nCOMP_WORDS=({}); COMP_CWORD={}; _mesa mesa '{last}' '{before}'; echo \"${{COMPREPLY[@]}}\"",
            words.iter().map(|word| format!("'{word}'")).collect::<Vec<_>>().join(" "),
            words.len() - 1
        );
        let completed = run_installed("bash", &["--norc", "--noprofile", "-s"], &call).expect("bash is installed");
        assert_eq!(completed.trim(), expected, "{words:?}");
    }
}

#[test]
fn completions_of_other_shells_are_valid_scripts() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    for shell in ["zsh", "fish"] {
        let file = directory.path().join(shell);
        fs::write(&file, completions(shell)).expect("the script is written");
        run_installed(shell, &["-n", utf8(&file)], "");
    }
    let unknown = run_mesa(&["completions", "tcsh"]);
    assert_eq!(unknown.status.code(), Some(2), "{}", output_text(&unknown));
}

#[test]
fn man_pages_of_every_command_have_their_examples() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let pages = directory.path().join("share").join("man1");
    let written = run_mesa(&["man", utf8(&pages)]);
    assert!(written.status.success(), "{}", output_text(&written));
    let page =
        |name: &str| fs::read_to_string(pages.join(format!("{name}.1"))).unwrap_or_else(|_| panic!("no {name}.1"));
    for command in COMMANDS {
        let text = page(&format!("mesa-{command}"));
        // The formatter must not join the lines of the examples.
        let example = format!("mesa {command}");
        let lines: Vec<&str> = text.lines().collect();
        let at =
            lines.iter().position(|line| line.contains("Examples:")).unwrap_or_else(|| panic!("{command}: {text}"));
        assert!(lines[at..].iter().any(|line| line.replace("\\-", "-").contains(&example)), "{command}: {text}");
        if let Some(shown) =
            run_installed("man", &["-l", "-P", "cat", utf8(&pages.join(format!("mesa-{command}.1")))], "")
        {
            let examples = shown.split("Examples:").nth(1).expect("examples");
            assert!(examples.lines().any(|line| line.trim_start().starts_with(&example)), "{command}: {shown}");
            // Filled lines would be stretched by spaces.
            assert!(!examples.contains(&format!("mesa  {command}")), "{command}: {shown}");
        }
    }
    for name in ["mesa", "mesa-config-check", "mesa-config-print"] {
        assert!(!page(name).is_empty());
    }
    assert_eq!(output_text(&run_mesa(&["man"])), page("mesa"));

    fs::write(directory.path().join("file"), "").expect("the file is written");
    let failed = run_mesa(&["man", utf8(&directory.path().join("file"))]);
    assert_eq!(failed.status.code(), Some(1), "{}", output_text(&failed));
    assert!(output_text(&failed).contains("Name a directory"), "{}", output_text(&failed));
}
