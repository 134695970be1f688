//! Architecture rules. Each returns the violations of a file, or of all files.

use std::collections::{HashMap, HashSet};

use crate::{
    lexer::{first_names, line, words},
    sources::Source,
};

/// Modules that every module may import: logging, readiness and small helpers.
const BASE: &[&str] = &["logging", "health", "telemetry", "util"];

/// Import table: a module, and the modules of the crate that it may import in addition to [`BASE`].
///
/// A new module needs a row. `lib.rs` may import everything; the command line uses public names only.
const IMPORTS: &[(&str, &[&str])] = &[
    ("message", &[]),
    ("metrics", &[]),
    ("failpoints", &[]),
    ("http_client", &[]),
    ("guide", &[]),
    ("logging", &[]),
    ("health", &["failpoints"]),
    ("telemetry", &[]),
    ("util", &[]),
    ("protocol", &["message"]),
    ("compat", &["message"]),
    ("config", &["http_client"]),
    ("store", &["message", "metrics"]),
    ("embedded", &["message", "metrics", "failpoints", "store"]),
    ("auth", &["message", "config", "http_client", "failpoints"]),
    ("cluster", &["message", "store"]),
    ("middleware", &["message"]),
    ("redis", &["message", "config", "metrics", "failpoints", "store", "cluster", "compat"]),
    ("hub", &["message", "config", "metrics", "failpoints", "store", "auth", "cluster", "middleware"]),
    ("webhook", &["message", "config", "metrics", "hub", "http_client"]),
    ("live", &["config", "auth"]),
    ("http", &["message", "config", "metrics", "failpoints", "auth", "hub", "live"]),
    ("resp", &["message", "config", "metrics", "auth", "hub", "live", "compat"]),
    ("server", SERVER),
    ("client", &["message", "protocol"]),
    ("dispatcher", &["message", "protocol", "client"]),
    ("portal", &["message", "dispatcher"]),
];

/// Modules that the server may import. It constructs the others.
const SERVER: &[&str] = &[
    "message",
    "metrics",
    "failpoints",
    "http_client",
    "protocol",
    "config",
    "store",
    "embedded",
    "auth",
    "cluster",
    "middleware",
    "redis",
    "hub",
    "webhook",
    "live",
    "http",
    "resp",
];

/// Foreign crates, and the path prefixes of files that may use them.
const HOMES: &[(&[&str], &[&str])] = &[
    (&["sled"], &["src/embedded/tables/", "src/embedded/offline/"]),
    (&["bincode"], &["src/embedded/", "src/store/outbox.rs"]),
    (&["tungstenite", "tokio_tungstenite"], &["src/server/connection", "src/server/socket.rs", "src/client/"]),
    (&["axum", "hyper"], &["src/http/", "src/server/"]),
    (&["hyper_util"], &["src/http/", "src/server/", "src/client/proxy.rs"]),
    (&["rustls", "tokio_rustls"], &["src/client/", "src/server/tls/"]),
    (&["rustls_platform_verifier"], &["src/client/"]),
    (&["rcgen"], &["src/bin/mesa/serve/", "src/server/tls/source/tests.rs"]),
    (&["redis"], &["src/redis/"]),
    (&["clap", "clap_complete", "clap_mangen"], &["src/bin/mesa/args/"]),
    (&["indicatif"], &["src/bin/mesa/progress.rs"]),
    (&["reqwest"], &["src/dispatcher/", "src/portal/", "src/http_client/"]),
    (&["opentelemetry", "opentelemetry_otlp", "opentelemetry_sdk", "tracing_opentelemetry"], &["src/telemetry/"]),
    (&["utoipa"], &["src/http/", "src/message/mod.rs"]),
    (&["aws_lc_rs"], &["src/http_client/"]),
    (&["jsonwebtoken"], &["src/auth/"]),
];

/// Longest permitted file, in lines.
const LINES_MAX: usize = 500;

/// Code that must not be committed, and its replacement.
const LEFTOVERS: &[(&str, &str)] = &[
    ("dbg!", "use a debugger, or log with tracing"),
    ("todo!", "implement it, or return an error that names what is missing"),
    ("unimplemented!", "implement it, or return an error that names what is missing"),
    ("#[ignore", "let the test run everywhere, or print what was not checked"),
];

/// Macros that only the binary and tests may use.
const PRINTS: &[&str] = &["print!", "println!", "eprint!", "eprintln!"];

/// Reports modules of the crate that a file imports against its row of the table.
pub fn imports(source: &Source) -> Vec<String> {
    let path = source.module();
    let Some(own) = path.first().filter(|_| !source.is_test()) else { return vec![] };
    let Some((_, allowed)) = IMPORTS.iter().find(|(module, _)| module == own) else {
        return vec![format!(
            "{}: module `{own}` has no row in the import table of tests/architecture/rules.rs",
            source.path
        )];
    };
    let mut violations = Vec::new();
    for (at, names) in crate_paths(&source.shipped, path.len()) {
        for name in names.iter().filter(|name| name != own && !allowed.iter().chain(BASE).any(|each| each == name)) {
            violations.push(format!(
                "{}:{}: `{own}` may not import `{name}`, only {allowed:?}: move the shared code to a lower module, or pass it as an argument",
                source.path,
                line(&source.shipped, at)
            ));
        }
    }
    violations
}

/// Finds paths from the crate's root (`crate::…`, or enough `super::`): offset, and the modules that they name.
fn crate_paths(code: &str, depth: usize) -> Vec<(usize, Vec<String>)> {
    let root = words(code, "crate").filter_map(|at| Some((at, code[at + 5..].trim_start().strip_prefix("::")?)));
    let supers = words(code, "super").filter_map(|at| {
        let (mut rest, mut up) = (&code[at..], 0);
        while let Some(after) = rest.strip_prefix("super").and_then(|rest| rest.trim_start().strip_prefix("::")) {
            (rest, up) = (after.trim_start(), up + 1);
        }
        (up == depth).then_some((at, rest))
    });
    root.chain(supers).map(|(at, rest)| (at, first_names(rest))).collect()
}

/// Reports uses of foreign crates outside their homes.
pub fn homes(source: &Source) -> Vec<String> {
    let mut violations = Vec::new();
    for (names, homes) in HOMES.iter().filter(|(_, homes)| !homes.iter().any(|home| source.path.starts_with(home))) {
        for name in *names {
            for at in words(&source.code, name).filter(|at| is_foreign(&source.code, *at, name)) {
                let line = line(&source.code, at);
                violations.push(format!(
                    "{}:{line}: `{name}` may be used only in {homes:?}; call a function there",
                    source.path
                ));
            }
        }
    }
    violations
}

/// Reports whether the word at `at` names a crate: it begins a path, or a `use` imports it.
fn is_foreign(code: &str, at: usize, name: &str) -> bool {
    let (before, after) = (code[..at].trim_end(), code[at + name.len()..].trim_start());
    let inner = before.strip_suffix("::").is_some_and(|path| path.ends_with(|each: char| !each.is_whitespace()));
    if inner || is_in_group(before) {
        return false;
    }
    let is_imported = before.ends_with("use") && (after.starts_with(';') || after.starts_with("as "));
    is_imported || after.starts_with("::")
}

/// Reports whether `before` ends inside a group of a path, as in `crate::tables::{`.
fn is_in_group(before: &str) -> bool {
    let mut depth = 0;
    for (at, each) in before.char_indices().rev() {
        match each {
            '}' => depth += 1,
            '{' if depth > 0 => depth -= 1,
            '{' => return before[..at].trim_end().ends_with("::"),
            ';' if depth == 0 => return false,
            _ => {}
        }
    }
    false
}

/// Reports files that no `mod` declaration reaches.
pub fn dead_files(sources: &[Source]) -> Vec<String> {
    let files: HashMap<&str, &Source> = sources.iter().map(|source| (source.path.as_str(), source)).collect();
    let is_root = |path: &&str| *path == "src/lib.rs" || *path == "src/main.rs" || path.ends_with("/main.rs");
    let mut queue: Vec<String> = files.keys().filter(|path| is_root(path)).map(|path| (*path).to_owned()).collect();
    let mut reached = HashSet::new();
    while let Some(path) = queue.pop() {
        let Some(source) = files.get(path.as_str()) else { continue };
        if !reached.insert(path.clone()) {
            continue;
        }
        let (directory, file) = path.rsplit_once('/').expect("a file in src");
        let base = match file {
            "lib.rs" | "main.rs" | "mod.rs" => directory.to_owned(),
            _ => path.trim_end_matches(".rs").to_owned(),
        };
        for name in declared(&source.code) {
            queue.push(format!("{base}/{name}.rs"));
            queue.push(format!("{base}/{name}/mod.rs"));
        }
    }
    let dead = sources.iter().filter(|source| !reached.contains(&source.path));
    dead.map(|source| format!("{}: no `mod` declaration reaches this file; declare it or delete it", source.path))
        .collect()
}

/// Returns the modules that are declared without a body (`mod name;`).
fn declared(code: &str) -> Vec<&str> {
    let name = |at: usize| {
        let (name, _) = code[at + 3..].split_once([';', '{'])?;
        let file = code[at + 3 + name.len()..].starts_with(';');
        (file && code[at + 3..].starts_with(char::is_whitespace)).then_some(name.trim())
    };
    words(code, "mod").filter_map(name).collect()
}

/// Reports a file with more than [`LINES_MAX`] lines.
pub fn size(source: &Source) -> Option<String> {
    (source.lines > LINES_MAX)
        .then(|| format!("{}: {} lines; split it into files of at most {LINES_MAX} lines", source.path, source.lines))
}

/// Reports leftovers of development in a file.
pub fn leftovers(source: &Source) -> Vec<String> {
    let lines_of = |word: &str| -> Vec<usize> {
        let is_whole = |at: &usize| !source.code[..*at].ends_with(|each: char| each.is_alphanumeric() || each == '_');
        let at = source.code.match_indices(word).map(|(at, _)| at);
        at.filter(is_whole).map(|at| line(&source.code, at)).collect()
    };
    let mut violations = Vec::new();
    for (word, remedy) in LEFTOVERS {
        violations.extend(lines_of(word).iter().map(|line| format!("{}:{line}: `{word}`: {remedy}", source.path)));
    }
    if !source.is_test() && !source.path.starts_with("src/bin/") {
        for word in PRINTS {
            let remedy = "log with tracing; only the binary prints";
            violations.extend(lines_of(word).iter().map(|line| format!("{}:{line}: `{word}`: {remedy}", source.path)));
        }
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(path: &str, text: &str) -> Source {
        Source::new(path, text)
    }

    #[test]
    fn imports_with_a_forbidden_module_returns_it() {
        let ok = "use crate::{message::Seq, store::{Entry, Store}};\n// crate::server\n#[cfg(test)] mod t { use crate::server; }";
        assert_eq!(imports(&source("src/hub/mod.rs", ok)), [""; 0]);
        for (path, text) in [
            ("src/hub/mod.rs", "use crate::server::Server;"),
            ("src/hub/mod.rs", "use crate::{message::Seq, protocol::{Frame}};"),
            ("src/hub/session.rs", "fn f() { crate::server::go() }"),
            ("src/hub/session.rs", "use super::super::server;"),
            ("src/hub/mod.rs", "use super::{server::Server};"),
            ("src/message/mod.rs", "pub use crate::config::Config;"),
            ("src/unlisted.rs", ""),
        ] {
            assert_eq!(imports(&source(path, text)).len(), 1, "{path}: {text}");
        }
        assert_eq!(imports(&source("src/hub/session.rs", "use super::server;")), [""; 0]);
        assert_eq!(imports(&source("src/lib.rs", "pub use crate::server::Server;")), [""; 0]);
    }

    #[test]
    fn homes_with_a_foreign_crate_elsewhere_returns_it() {
        for text in [
            "use sled::Db;",
            "use sled;",
            "fn f() -> Result<(), sled::Error> {}",
            "use ::sled::Db;",
            "use {sled::Db, std::fs};",
        ] {
            assert_eq!(homes(&source("src/hub/mod.rs", text)).len(), 1, "{text}");
            assert_eq!(homes(&source("src/embedded/tables/open.rs", text)), [""; 0], "{text}");
        }
        for text in [
            "use crate::tables::{sled::Open, contract};",
            "use crate::tables::sled::Open;",
            "// sled::Db",
            "let sled = 1;",
            "mod sled;",
        ] {
            assert_eq!(homes(&source("src/server/mod.rs", text)), [""; 0], "{text}");
        }
        assert_eq!(homes(&source("src/bin/mesa/main.rs", "#[derive(clap::Parser)]")).len(), 1);
        assert_eq!(homes(&source("src/server/heartbeat.rs", "use tokio_tungstenite::tungstenite::Message;")).len(), 1);
    }

    #[test]
    fn dead_files_with_undeclared_files_returns_them() {
        let mut sources = vec![
            source("src/lib.rs", "pub mod a;\nmod b { }\n// mod c;"),
            source("src/a.rs", "mod d;\n#[cfg(test)]\nmod tests;"),
            source("src/a/d.rs", ""),
            source("src/a/tests.rs", ""),
            source("src/bin/mesa/main.rs", "mod args;"),
            source("src/bin/mesa/args.rs", ""),
        ];
        assert_eq!(dead_files(&sources), [""; 0]);
        sources.push(source("src/c.rs", ""));
        sources.push(source("src/a/e.rs", ""));
        assert_eq!(dead_files(&sources).len(), 2);
    }

    #[test]
    fn size_above_the_limit_is_a_violation() {
        assert_eq!(size(&source("src/a.rs", &"\n".repeat(LINES_MAX))), None);
        assert!(size(&source("src/a.rs", &"\n".repeat(LINES_MAX + 1))).is_some());
    }

    #[test]
    fn leftovers_with_a_forbidden_macro_returns_it() {
        for text in ["dbg!(x);", "todo!()", "unimplemented!()", "#[ignore]", "println!()", "eprint!()"] {
            assert_eq!(leftovers(&source("src/a.rs", text)).len(), 1, "{text}");
        }
        for text in ["// todo!()", "let x = \"dbg!\";", "my_todo!()", "tracing::info!()"] {
            assert_eq!(leftovers(&source("src/a.rs", text)), [""; 0], "{text}");
        }
        assert_eq!(leftovers(&source("src/bin/mesa/main.rs", "println!()")), [""; 0]);
    }
}
