//! Checks the files in `data/deploy` against the programs that read them: systemd, and the server itself.
//!
//! The Debian package and the image are built by `tests/packages`, because that takes an optimised build.

#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "each suite uses a part of it")]
mod support;

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use serde_json::json;
use support::{
    command::{mesa_command, output_text, utf8},
    http::Http,
    server::Home,
};

/// Largest exposure that `systemd-analyze security` may find, in tenths. Below 2 is "OK"; the network alone costs 0.8.
const EXPOSURE_MAX: &str = "15";

/// Secrets in the form that the Debian package writes to `/etc/mesa/environment`.
const SECRETS: [(&str, &str); 2] =
    [("MESA_API_KEYS", "0123456789abcdef0123456789abcdef"), ("WS_KEY", "0123456789abcdef0123456789abcdef")];

#[test]
fn systemd_unit_is_valid_and_hardened() {
    if !is_installed("systemd-analyze") {
        return;
    }
    let directory = tempfile::tempdir().expect("a temporary directory");
    let unit = directory.path().join("mesa.service");
    // The unit names an installed binary, which `verify` looks for.
    let text = deploy_file("mesa.service").replace("/usr/bin/mesa", env!("CARGO_BIN_EXE_mesa"));
    fs::write(&unit, text).expect("a unit");

    let verified = systemd_analyze(&["verify", "--man=no", utf8(&unit)]);
    assert_eq!(output_text(&verified), "", "systemd accepts each line");

    let threshold = format!("--threshold={EXPOSURE_MAX}");
    let security = systemd_analyze(&["security", "--offline=true", "--no-pager", &threshold, utf8(&unit)]);
    assert!(security.status.success(), "the unit is less hardened than before:\n{}", output_text(&security));
}

#[test]
fn server_makes_only_system_calls_that_the_unit_allows() {
    if !is_installed("systemd-analyze") || !is_installed("strace") {
        return;
    }
    let home = Home::new();
    let trace = home.path("calls");
    let wrapper = ["strace", "-f", "-c", "-U", "name", "-o", utf8(&trace)];
    let server = home.wait_until_ready(home.spawn(&wrapper));
    let mut http = Http::connect(server.address).expect("a connection");
    http.dispatch(&json!({ "text": "hello" }), &["alice".to_owned()]).expect("a response");
    for path in ["/metrics", "/readyz", "/v1/users", "/v1/users/alice", "/v1/users/alice/messages"] {
        http.call("GET", path, "").expect("a response");
    }
    server.stop(Duration::from_secs(60));

    let called = fs::read_to_string(&trace).expect("a summary of system calls");
    let called =
        called.lines().map(str::trim).filter(|line| line.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'));
    let called: HashSet<&str> = called.filter(|name| !matches!(*name, "" | "syscall" | "total")).collect();
    assert!(called.contains("fdatasync") && called.len() > 30, "a summary of system calls: {called:?}");

    let filters = systemd_analyze(&["syscall-filter", "--no-pager"]);
    let filters = String::from_utf8(filters.stdout).expect("UTF-8");
    let allowed = system_calls(&filters, "@system-service");
    let denied: HashSet<String> =
        ["@privileged", "@resources"].iter().flat_map(|set| system_calls(&filters, set)).collect();
    // The unit's comment: raising the limit of open files may fail.
    let may_fail = |name: &str| matches!(name, "prlimit64" | "setrlimit");
    let mut refused: Vec<&str> = called
        .into_iter()
        .filter(|name| (!allowed.contains(*name) || denied.contains(*name)) && !may_fail(name))
        .collect();
    refused.sort_unstable();
    assert!(refused.is_empty(), "the unit's SystemCallFilter does not allow: {refused:?}");
}

#[test]
fn configuration_of_debian_package_with_its_secrets_is_valid() {
    check_configuration(&deploy_file("debian/mesa.json5"), &SECRETS);
}

#[test]
fn configuration_of_kubernetes_manifest_with_its_variables_is_valid() {
    let manifest = deploy_file("kubernetes.yaml");
    let (_, block) = manifest.split_once("mesa.json5: |\n").expect("the configuration in the manifest");
    let (block, _) = block.split_once("---").expect("a further document");
    for (name, _) in SECRETS {
        assert!(manifest.contains(&format!("- name: {name}\n")), "the manifest sets {name}");
    }
    check_configuration(block, &SECRETS);
}

#[test]
fn variables_of_image_are_settings() {
    let dockerfile = deploy_file("Dockerfile");
    let variables = dockerfile.lines().filter_map(|line| line.strip_prefix("ENV MESA_"));
    let variables: Vec<(String, String)> = variables
        .flat_map(str::split_whitespace)
        .map(|variable| {
            let (name, value) = variable.split_once('=').expect("NAME=VALUE");
            (if name.starts_with("MESA_") { name.to_owned() } else { format!("MESA_{name}") }, value.to_owned())
        })
        .collect();
    assert!(variables.len() >= 3, "the variables of the image: {variables:?}");
    let variables: Vec<(&str, &str)> =
        variables.iter().map(|(name, value)| (name.as_str(), value.as_str())).chain(SECRETS).collect();
    check_configuration("{ }", &variables);
}

/// Requires that `mesa config check` accepts a configuration with some variables, and warns of nothing.
fn check_configuration(text: &str, variables: &[(&str, &str)]) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("mesa.json5");
    fs::write(&file, text).expect("a configuration");
    let checked = mesa_command()
        .args(["config", "check", utf8(&file)])
        .envs(variables.iter().copied())
        .output()
        .expect("the binary runs");
    let output = output_text(&checked);
    assert!(checked.status.success() && !output.contains("warn"), "{output}");
}

/// Returns the system calls of a set, including those of the sets in it.
fn system_calls(filters: &str, set: &str) -> HashSet<String> {
    let mut lines = filters.lines().skip_while(|line| *line != set);
    assert!(lines.next().is_some(), "systemd knows the set {set}");
    let members = lines.take_while(|line| line.starts_with(' ')).map(str::trim).filter(|line| !line.starts_with('#'));
    members
        .flat_map(|member| {
            if member.starts_with('@') { system_calls(filters, member) } else { HashSet::from([member.to_owned()]) }
        })
        .collect()
}

fn systemd_analyze(args: &[&str]) -> Output {
    Command::new("systemd-analyze").args(args).env("SYSTEMD_COLORS", "0").output().expect("systemd-analyze runs")
}

fn deploy_file(name: &str) -> String {
    let path: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/deploy").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Reports whether a program is installed. If not, prints that the check is skipped; with `CI` set, panics.
fn is_installed(program: &str) -> bool {
    let installed = Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success());
    if !installed {
        let skipped = format!("{program} is not installed: data/deploy/mesa.service was NOT checked with it");
        assert!(std::env::var_os("CI").is_none(), "{skipped}");
        use std::io::Write as _;
        _ = writeln!(std::io::stderr(), "{skipped}");
    }
    installed
}
