//! Tests that the file of `mesa config init` works with the commands that it prints.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, process::Output};

use crate::{
    WAIT_TIMEOUT, output_text,
    support::{
        command::mesa_command,
        server::{Home, Process},
    },
};

fn run(directory: &Path, words: &[&str]) -> Output {
    mesa_command().args(words).current_dir(directory).env_remove("WS_KEY").output().expect("the binary runs")
}

#[test]
fn written_file_is_valid_and_serves_as_printed() {
    let home = Home::new();
    let directory = home.path("");
    let output = run(&directory, &["config", "init"]);
    let text = output_text(&output);
    assert!(output.status.success(), "{text}");
    let file = fs::read_to_string(home.path("mesa.json5")).expect("the file");
    let mode = fs::metadata(home.path("mesa.json5")).expect("the file").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let checked = run(&directory, &["config", "check", "mesa.json5"]);
    assert_eq!(output_text(&checked), "mesa.json5 is valid\n", "without a warning");

    let again = run(&directory, &["config", "init"]);
    assert_eq!(again.status.code(), Some(1));
    assert!(output_text(&again).contains("mesa.json5 exists and was not changed"), "{}", output_text(&again));
    assert_eq!(fs::read_to_string(home.path("mesa.json5")).expect("the file"), file);
    let other = home.path("other.json5");
    run(&directory, &["config", "init", other.to_str().expect("UTF-8")]);
    assert_ne!(fs::read_to_string(other).expect("the file"), file, "each file has secrets of its own");

    let mut serve = mesa_command();
    serve.args(["serve", "--config", "mesa.json5", "--port", "0", "--ready-file", "ready"]);
    let log = fs::File::create(home.path("log")).expect("a log");
    serve.current_dir(&directory).stdout(log.try_clone().expect("a copy")).stderr(log);
    let server = home.wait_until_ready(Process::new(serve.spawn().expect("the binary starts")));
    let key = text.split("MESA_API_KEY=").nth(1).and_then(|rest| rest.split(' ').next()).expect("a key");
    let url = format!("http://{}", server.address);
    let dispatch = ["dispatch", "--url", &url, "--to", "alice", "--type", "GREETING", "{}"];
    let output = mesa_command().args(dispatch).env("MESA_API_KEY", key).output().expect("the binary runs");
    assert!(output.status.success(), "{}", output_text(&output));
    let token = run(&directory, &["token", "--id", "alice", "--config", "mesa.json5"]);
    let token = String::from_utf8(token.stdout).expect("UTF-8");
    let connected = crate::support::current_thread_runtime()
        .block_on(crate::support::socket::Socket::connect(server.address, token.trim()));
    assert!(connected.is_ok(), "{:?}", connected.err());
    server.stop(WAIT_TIMEOUT);
}

#[test]
fn check_of_the_environment_needs_no_file_and_names_wrong_variables() {
    let check = |name: &str, value: &str| {
        let output = mesa_command().args(["config", "check", "--env"]).env(name, value).output();
        output.expect("the binary runs")
    };
    let valid = check("MESA_PORT", "4001");
    assert!(
        valid.status.success() && output_text(&valid).contains("the environment is valid (MESA_PORT)"),
        "{}",
        output_text(&valid)
    );
    let wrong = check("MESA_PORT", "many");
    assert_eq!(wrong.status.code(), Some(1));
    assert!(output_text(&wrong).contains("environment variable MESA_PORT: port must be"), "{}", output_text(&wrong));
    let home = Home::with_settings("prot: 1,");
    let wrong = check("MESA_CONFIG", home.path("config.json5").to_str().expect("UTF-8"));
    assert!(
        output_text(&wrong).contains("unknown key `prot`"),
        "the file of MESA_CONFIG is read: {}",
        output_text(&wrong)
    );
}

#[test]
fn file_in_the_working_directory_is_mentioned_and_not_used() {
    let home = Home::new();
    fs::write(home.path("mesa.json5"), "{ port: 1, prot: 2 }").expect("the file is written");
    let mut serve = mesa_command();
    serve.args(["serve", "--dev", "--port", "0", "--ready-file", "ready"]);
    let log = fs::File::create(home.path("log")).expect("a log");
    serve.current_dir(home.path("")).stdout(log.try_clone().expect("a copy")).stderr(log);
    let server = home.wait_until_ready(Process::new(serve.spawn().expect("the binary starts")));
    home.wait_for_log(|log| {
        log.contains("mesa.json5 in the working directory is not used; `--config mesa.json5` uses it")
    });
    server.stop(WAIT_TIMEOUT);
}
