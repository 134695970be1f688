//! Tests the warnings of `mesa serve` at start-up, and `mesa config check`.

use std::process::Command;

use crate::{output_text, support::server::Home};

#[test]
fn each_warning_is_logged_once() {
    let home = Home::with_settings("store: { maxBytes: 1000000 },");
    let server = home.start();
    let warnings = ["every token is accepted", "one offline user can fill the store"];
    let log = home.wait_for_log(|log| warnings.iter().all(|warning| log.contains(warning)));
    for warning in warnings {
        assert_eq!(log.matches(warning).count(), 1, "{warning}:\n{log}");
    }
    drop(server);
}

#[test]
fn kubernetes_service_variables_are_ignored_with_an_explanation() {
    let mut home = Home::new();
    for (name, value) in [
        ("MESA_PORT", "tcp://10.96.0.1:4000"),
        ("MESA_SERVICE_HOST", "10.96.0.1"),
        ("MESA_BIN", "/usr/bin/mesa"),
        ("MESA_STORE_PAHT", "elsewhere"),
    ] {
        home.set_variable(name, value);
    }
    let server = home.start();
    let lines = ["enableServiceLinks: false", "MESA_BIN is no setting", "the nearest setting is MESA_STORE_PATH"];
    let log = home.wait_for_log(|log| lines.iter().all(|line| log.contains(line)));
    for expected in lines {
        assert_eq!(log.matches(expected).count(), 1, "{expected}:\n{log}");
    }
    drop(server);
}

#[test]
fn config_check_reads_the_environment_as_serve_does() {
    let home = Home::new();
    let file = home.path("config.json5");
    let check = |name: &str, value: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mesa"));
        command.args(["config", "check"]).arg(&file).env_clear().env(name, value);
        command.output().expect("the binary runs")
    };
    let invalid = check("MESA_STORE_DURABILITY", "sometimes");
    assert_eq!(invalid.status.code(), Some(1), "{}", output_text(&invalid));
    assert!(
        output_text(&invalid).contains("environment variable MESA_STORE_DURABILITY: store.durability must be"),
        "{}",
        output_text(&invalid)
    );
    let valid = check("MESA_PORT", "4001");
    assert!(
        valid.status.success() && output_text(&valid).contains("is valid together with MESA_PORT of the environment"),
        "{}",
        output_text(&valid)
    );
    let unknown = check("MESA_PROT", "4001");
    assert!(
        unknown.status.success() && output_text(&unknown).contains("the nearest setting is MESA_PORT"),
        "{}",
        output_text(&unknown)
    );
}
