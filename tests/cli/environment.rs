//! Tests environment variables that are not valid UTF-8.

use std::{
    ffi::OsStr,
    fs,
    os::unix::ffi::OsStrExt as _,
    process::{Command, Output},
};

use crate::output_text;

/// Runs `mesa ARGS…` with one environment variable and no other.
fn mesa_with(name: &[u8], value: &[u8], args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mesa"));
    command.env_clear().env(OsStr::from_bytes(name), OsStr::from_bytes(value));
    command.args(args).output().expect("the binary runs")
}

#[test]
fn setting_that_is_not_utf8_is_an_error_that_names_the_variable() {
    for name in ["MESA_STORE_PATH", "MESA_PORT", "WS_KEY", "SYNC_ENABLED"] {
        let output = mesa_with(name.as_bytes(), b"/tmp/x\xff", &["config", "print", "--dev"]);
        let text = output_text(&output);
        assert!(!output.status.success(), "{name}: {text}");
        assert!(text.contains(&format!("environment variable {name}: the value is not valid UTF-8")), "{text}");
    }
}

#[test]
fn argument_of_a_command_that_is_not_utf8_is_an_error_that_names_the_variable() {
    for (name, args) in [
        ("MESA_API_KEY", &["users"][..]),
        ("MESA_URL", &["users", "--key", "0123456789abcdef"]),
        ("MESA_URL", &["connect", "--as", "alice"]),
        ("MESA_TOKEN", &["connect"]),
        ("WS_KEY", &["token", "--id", "alice"]),
    ] {
        let output = mesa_with(name.as_bytes(), b"http://127.0.0.1:1/\xff", args);
        let text = output_text(&output);
        assert!(
            !output.status.success() && text.contains("not valid UTF-8") && text.contains(name),
            "{args:?}: {text}"
        );
    }
}

#[test]
fn unknown_variable_that_is_not_utf8_is_ignored_with_a_warning() {
    for (name, value, warning) in [
        (
            &b"MESA_UNHEARD_OF"[..],
            &b"\xff"[..],
            "the environment variable MESA_UNHEARD_OF is no setting and is ignored",
        ),
        (b"MESA_POR\xff", b"4000", "the environment variable MESA_POR\u{fffd} is no setting and is ignored"),
        (b"MESA_POR\xff", b"\xff", "the environment variable MESA_POR\u{fffd} is no setting and is ignored"),
    ] {
        let output = mesa_with(name, value, &["config", "print", "--dev"]);
        let text = output_text(&output);
        assert!(output.status.success() && text.contains(warning), "{warning}: {text}");
    }
    for name in [&b"FOREIGN"[..], b"MESA_GLSL_CACHE_DIR", b"MESA_TOKEN", b"FOREIGN_\xff"] {
        let output = mesa_with(name, b"\xff", &["config", "print", "--dev"]);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() && !text.contains("environment variable"), "{name:?}: {text}");
    }
}

#[test]
fn configuration_file_whose_path_is_not_utf8_is_read() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join(OsStr::from_bytes(b"x\xff.json5"));
    fs::write(&file, "{ port: 4321 }").expect("the file is written");
    let output = mesa_with(b"MESA_CONFIG", file.as_os_str().as_bytes(), &["config", "print"]);
    assert!(output.status.success() && output_text(&output).contains("4321"), "{}", output_text(&output));
}
