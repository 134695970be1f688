//! Tests the API against its own description, with requests that Schemathesis generates from it.
//!
//! `MESA_OPENAPI_CASES` sets the number of cases for each operation: 2000 makes about 10,000 in all. `MESA_OPENAPI_SEED`
//! selects other cases.

#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "each suite uses a part of it")]
mod support;

use std::{path::Path, process::Command};

use support::server::{Home, KEY};

/// Cases for each operation: about 200 in all.
const CASES: &str = "12";

/// Checks that do not apply.
///
/// - A schema cannot state every rule of a dispatch: `*` is alone, and `o.ttl` needs `o.sync`. So the server rejects some
///   requests that match the schema.
/// - A wrong API key is answered after up to 2 s, and 20 of them lock out an address. `tests/cli` tests that.
const CHECKS_EXCLUDED: &str = "positive_data_acceptance,ignored_auth";

#[test]
fn generated_requests_get_described_responses() {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/schemathesis/bin/schemathesis");
    if !program.exists() {
        let skipped = "Schemathesis is not installed (tests/tools): generated requests were NOT checked";
        assert!(std::env::var_os("CI").is_none(), "{skipped}");
        eprintln!("{skipped}");
        return;
    }
    let home = Home::new();
    let server = home.start();
    let variable = |name: &str, default: &str| std::env::var(name).unwrap_or_else(|_| default.to_owned());
    let (cases, seed) = (variable("MESA_OPENAPI_CASES", CASES), variable("MESA_OPENAPI_SEED", "1"));
    let mut command = Command::new(program);
    command.current_dir(home.path(".")).env("NO_COLOR", "1");
    command.args(["run", &format!("http://{}/openapi.json", server.address)]);
    command.args(["--header", &format!("Authorization: Bearer {KEY}")]);
    command.args([
        "--max-examples",
        &cases,
        "--seed",
        &seed,
        "--phases",
        "examples,coverage,fuzzing",
        "--workers",
        "1",
    ]);
    command.args(["--exclude-checks", CHECKS_EXCLUDED, "--request-timeout", "30", "--suppress-health-check", "all"]);
    // A stream of events does not end. A drained server is not ready.
    command.args(["--exclude-operation-id", "streamEvents", "--exclude-operation-id", "drain"]);
    command.args(["--no-shrink", "--warnings", "off"]);
    let output = command.output().expect("Schemathesis runs");
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{text}\n{}", home.log());
    println!("{text}");
}
