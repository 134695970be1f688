//! Tests `mesa serve --tls-self-signed`.

use std::{
    io::{BufRead as _, BufReader},
    process::Stdio,
};

use crate::support::command::{mesa_command, output_text};

#[test]
fn printed_commands_reach_a_server_with_a_self_signed_certificate() {
    let directory = tempfile::tempdir().unwrap();
    let mut server = mesa_command()
        .args(["serve", "--dev", "--tls-self-signed", "--port", "0"])
        .current_dir(directory.path())
        .env("TMPDIR", directory.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(server.stdout.take().unwrap()).lines().map(Result::unwrap);
    let banner: Vec<String> = lines.by_ref().take_while(|line| !line.contains("MESA_API_KEY=")).collect();
    let banner = banner.join("\n");
    let after = |word: &str| {
        let rest = banner.split_once(word).unwrap_or_else(|| panic!("no {word} in {banner}")).1;
        rest.split_whitespace().next().unwrap().to_owned()
    };
    assert!(banner.contains("backends   https://127.0.0.1:"), "{banner}");
    let (key, url, ca) = (after("API key"), after("--url "), after("--ca "));
    assert!(url.starts_with("wss://127.0.0.1:"), "{url}");
    let dispatch = |ca: &[&str]| {
        let arguments = [&["dispatch", "--url", &url, "--to", "alice", "--type", "T", "1"], ca].concat();
        mesa_command().args(arguments).env("MESA_API_KEY", &key).output().unwrap()
    };
    let trusting = dispatch(&["--ca", &ca]);
    assert!(trusting.status.success(), "{}", output_text(&trusting));
    let distrusting = dispatch(&[]);
    assert!(!distrusting.status.success(), "the system must not trust this certificate");
    assert!(output_text(&distrusting).contains("--ca FILE"), "{}", output_text(&distrusting));
    server.kill().unwrap();
    server.wait().unwrap();
}
