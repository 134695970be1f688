//! Verifies what a server, `mesa inspect` and `mesa inspect --salvage` do with a store.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::{Duration, Instant},
};

use bytes::Bytes;
use mesa::{
    embedded::offline::inspect::{InspectSink, Inspection, LogFacts},
    store::StoreError,
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    damage::Damage,
    fixtures::{self, Fixture},
    support::{
        command::{mesa_command, output_text},
        http::Http,
        server::{Home, Server},
    },
};

/// Time within which a server must start, and must stop.
const SERVER_TIMEOUT: Duration = Duration::from_secs(120);

/// How a server handles a damaged store. None of these is a violation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// Every user's log is as before.
    Intact,
    /// The server does not start, and reports why.
    NotStarted,
    /// The server starts and rejects requests for the damaged data. Everything else is as before.
    Isolated,
}

/// Result of a case without a violation.
pub struct CaseResult {
    pub outcome: Outcome,
    /// `mesa inspect` reported damage.
    pub damage_reported: bool,
    /// Number of pending entries that the salvaged store has.
    pub saved: u64,
    /// Number of pending entries that the salvaged store lacks.
    pub lost: u64,
}

/// Sequences and data of pending entries.
type Log = Vec<(u64, Value)>;
type Logs = BTreeMap<String, Log>;

/// A user's log, or the error with which the server rejects the read.
type LogRead = Result<Log, String>;

/// Reads the pending entries of all users from a server on an undamaged store.
pub fn read_pending(fixture: &Fixture) -> Result<Logs, String> {
    let home = Home::new();
    fixtures::copy(&fixture.store, &home.store());
    let server = start(&home)?.ok_or("the server does not start on an undamaged store")?;
    let logs = read_all(&server)?.into_iter().map(|(user, log)| Ok((user, log?))).collect::<Result<_, String>>();
    stop_cleanly(server, &home)?;
    logs
}

/// Damages a copy of a store, and verifies what a server and `mesa inspect` do.
///
/// # Errors
/// With the violation.
pub fn run_case(fixture: &Fixture, damage: Option<&Damage>) -> Result<CaseResult, String> {
    let home = Home::new();
    fixtures::copy(&fixture.store, &home.store());
    if let Some(damage) = damage {
        damage.apply(&home.store(), &fixture.earlier);
    }
    let inspected = inspect(fixture, &home)?;
    let outcome = serve(fixture, &home)?;
    if outcome != Outcome::Intact && !inspected.damage_reported {
        return Err(format!("the server's outcome is {outcome:?}, and inspect finds no damage:\n{}", home.log()));
    }
    if outcome == Outcome::Intact && inspected.lost > 0 {
        return Err(format!("the server has every entry, and salvage lacks {} entries", inspected.lost));
    }
    Ok(CaseResult { outcome, damage_reported: inspected.damage_reported, saved: inspected.saved, lost: inspected.lost })
}

/// Starts a server on the store, and verifies the entries that it shows.
fn serve(fixture: &Fixture, home: &Home) -> Result<Outcome, String> {
    let Some(server) = start(home)? else { return Ok(Outcome::NotStarted) };
    let mut outcome = Outcome::Intact;
    for (user, log) in read_all(&server)? {
        match log {
            Ok(log) if log == fixture.pending[&user] => {}
            Ok(log) => {
                let difference = difference(&user, &fixture.pending[&user], &log, fixture);
                return Err(format!("UNREPORTED: {difference}"));
            }
            Err(_) => outcome = Outcome::Isolated,
        }
    }
    match append_to_all(fixture, &server)? {
        Some(new) => check_sequences_not_reused(fixture, &new)?,
        None => outcome = Outcome::Isolated,
    }
    if !stop(server, home)? {
        outcome = Outcome::Isolated;
    }
    Ok(outcome)
}

/// Describes the difference between the expected and the found log of a user.
fn difference(user: &str, expected: &[(u64, Value)], found: &[(u64, Value)], fixture: &Fixture) -> String {
    let appended = &fixture.appended[user];
    let foreign = found.iter().filter(|(seq, value)| appended.get(seq) != Some(value)).count();
    let missing: Vec<u64> = expected.iter().filter(|entry| !found.contains(entry)).map(|(seq, _)| *seq).collect();
    let restored: Vec<u64> = found.iter().filter(|entry| !expected.contains(entry)).map(|(seq, _)| *seq).collect();
    format!("{user}: {foreign} altered or foreign, missing {missing:?}, pending again {restored:?}")
}

/// Dispatches one message to all users, and returns the sequence of each. `None`: the server rejects it or a read.
fn append_to_all(fixture: &Fixture, server: &Server) -> Result<Option<BTreeMap<String, u64>>, String> {
    let mut http = Http::connect(server.address).map_err(|error| error.to_string())?;
    let recipients: Vec<String> = (0..fixtures::USERS).map(fixtures::user).collect();
    let body = json!({ "message": { "op": 0, "d": "new", "t": "NEW" }, "recipients": recipients });
    // If the store fails, the server stops and reports it.
    let Ok((status, response)) = http.call("POST", "/v1/dispatch", &body.to_string()) else { return Ok(None) };
    let response: Value = serde_json::from_slice(&response).map_err(|error| error.to_string())?;
    if status != 200 || response["rejected"] != json!([]) {
        return Ok(None);
    }
    let mut new = BTreeMap::new();
    for user in recipients {
        // A reused sequence is not above the user's last one, so the page lacks it.
        let Ok(log) = read(server, &user, head(fixture, &user))? else { return Ok(None) };
        let (seq, value) = log.last().ok_or_else(|| format!("{user}: the message just answered is missing"))?;
        if *value != json!("new") {
            return Err(format!("{user}: the last entry is not the message just answered"));
        }
        new.insert(user, *seq);
    }
    Ok(Some(new))
}

/// Returns the last sequence assigned to a user before the damage.
fn head(fixture: &Fixture, user: &str) -> u64 {
    fixture.appended[user].last_key_value().map_or(0, |(seq, _)| *seq)
}

/// Checks that no new sequence was assigned before the damage.
fn check_sequences_not_reused(fixture: &Fixture, new: &BTreeMap<String, u64>) -> Result<(), String> {
    for (user, seq) in new {
        let head = head(fixture, user);
        if *seq <= head {
            return Err(format!("{user}: sequence {seq} is reused, the last one was {head}"));
        }
    }
    Ok(())
}

/// Result of `mesa inspect` and of a server on the salvaged store.
struct Inspected {
    damage_reported: bool,
    saved: u64,
    lost: u64,
}

/// Runs `mesa inspect` and `mesa inspect --salvage`, and a server on the salvaged store.
fn inspect(fixture: &Fixture, home: &Home) -> Result<Inspected, String> {
    let before = fingerprint(&home.store());
    let (code, output) = run_mesa(&[Path::new("inspect"), &home.store(), Path::new("--json")])?;
    let damage_reported = match code {
        Some(0) => false,
        Some(1) if !output.trim().is_empty() => true,
        _ => return Err(format!("inspect: expected exit code 0, or 1 with output; found {code:?}: {output}")),
    };
    let out = home.path("salvaged");
    let (code, output) = run_mesa(&[Path::new("inspect"), &home.store(), Path::new("--salvage"), &out])?;
    if fingerprint(&home.store()) != before {
        return Err("inspect has changed the store".into());
    }
    let pending: u64 = fixture.pending.values().map(|log| log.len() as u64).sum();
    match code {
        Some(0) => {}
        // Without sled's log there is nothing to salvage.
        Some(1) if fs::metadata(home.store().join("log/db")).is_err() => {
            return Ok(Inspected { damage_reported, saved: 0, lost: pending });
        }
        _ => return Err(format!("salvage: expected exit code 0, found {code:?}: {output}")),
    }
    let mut sequences = Sequences::default();
    let mut inspection = Inspection::open(&home.store()).map_err(|error| error.to_string())?;
    inspection.visit(&mut sequences).map_err(|error| error.to_string())?;
    if inspection.is_undamaged() == damage_reported {
        return Err(format!("inspect and Inspection disagree about damage: {:?}", inspection.damage()));
    }
    drop(inspection);
    if !sequences.contradictions.is_empty() {
        return Err(format!("inspect contradicts itself: {}", sequences.contradictions.join("; ")));
    }
    let saved = serve_salvaged(fixture, &out, &sequences.pending)?;
    Ok(Inspected { damage_reported, saved, lost: pending.saturating_sub(saved) })
}

/// Collects the sequences of pending entries, and contradictions between the parts of an inspection.
#[derive(Default)]
struct Sequences {
    /// Sequences of each user's pending entries.
    pending: BTreeMap<String, Vec<u64>>,
    /// Entries received of the user that is visited.
    entries: Vec<u64>,
    contradictions: Vec<String>,
}

impl InspectSink for Sequences {
    fn entries(&mut self, _: &str, entries: &[(u64, u32, Bytes)]) -> Result<(), StoreError> {
        self.entries.extend(entries.iter().map(|(seq, ..)| *seq));
        Ok(())
    }

    fn log(&mut self, facts: LogFacts) -> Result<(), StoreError> {
        let (user, entries) = (facts.user, std::mem::take(&mut self.entries));
        let pending: Vec<u64> = facts.pending.iter().map(|(seq, ..)| *seq).collect();
        if entries != pending {
            self.contradictions.push(format!("{user}: the entries are {entries:?}, the log has {pending:?}"));
        }
        if self.pending.last_key_value().is_some_and(|(last, _)| *last >= user) {
            self.contradictions.push(format!("{user} is visited twice, or not in the order of ids"));
        }
        self.pending.insert(user, pending);
        Ok(())
    }
}

/// Starts a server on the salvaged store in `out`, and counts its pending entries.
///
/// The server must show the entries that `mesa inspect` showed (`inspected`), and each must have its original content.
fn serve_salvaged(fixture: &Fixture, out: &PathBuf, inspected: &BTreeMap<String, Vec<u64>>) -> Result<u64, String> {
    let salvaged = Home::new();
    fs::rename(out, salvaged.store())
        .or_else(|_| {
            fixtures::copy(out, &salvaged.store());
            Ok::<_, std::io::Error>(())
        })
        .map_err(|error| error.to_string())?;
    let server = start(&salvaged)?
        .ok_or_else(|| format!("the server does not start on the salvaged store:\n{}", salvaged.log()))?;
    let mut saved = 0;
    for (user, log) in read_all(&server)? {
        let log = log.map_err(|error| format!("salvaged, {user}: {error}"))?;
        let sequences: Vec<u64> = log.iter().map(|(seq, _)| *seq).collect();
        let inspected = inspected.get(&user).cloned().unwrap_or_default();
        if sequences != inspected {
            let log = salvaged.log();
            return Err(format!("salvaged, {user}: found {sequences:?}, inspect showed {inspected:?}\n{log}"));
        }
        let appended = &fixture.appended[&user];
        if let Some((seq, _)) = log.iter().find(|(seq, value)| appended.get(seq) != Some(value)) {
            return Err(format!("salvaged, {user}: entry {seq} is altered or foreign"));
        }
        saved += fixture.pending[&user].iter().filter(|entry| log.contains(entry)).count() as u64;
    }
    let new = append_to_all(fixture, &server)?.ok_or("the server rejects a dispatch to the salvaged store")?;
    check_sequences_not_reused(fixture, &new).map_err(|error| format!("salvaged: {error}"))?;
    stop_cleanly(server, &salvaged).map_err(|error| format!("salvaged: {error}"))?;
    Ok(saved)
}

/// Runs a `mesa` command, and returns its exit code and output. A panic is an error.
fn run_mesa(arguments: &[&Path]) -> Result<(Option<i32>, String), String> {
    let output = mesa_command().args(arguments).stdin(Stdio::null()).output().map_err(|error| error.to_string())?;
    let text = output_text(&output);
    if text.contains("panicked") {
        return Err(format!("{arguments:?} panics: {text}"));
    }
    Ok((output.status.code(), text))
}

/// Starts a server. `None`: it does not start, exits with code 1 and reports why.
fn start(home: &Home) -> Result<Option<Server>, String> {
    let mut process = home.spawn(&[]);
    let end = Instant::now() + SERVER_TIMEOUT;
    let status = loop {
        if let Ok(text) = fs::read_to_string(home.path("ready")) {
            let Ready { address, pid } = serde_json::from_str(&text).map_err(|error| error.to_string())?;
            return Ok(Some(Server { process, address, pid }));
        }
        if let Some(status) = process.try_wait() {
            break status;
        }
        if Instant::now() > end {
            return Err(format!("the server neither starts nor exits within {SERVER_TIMEOUT:?}:\n{}", home.log()));
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    if check_exit(status, home)? {
        return Err(format!("the server exits with {status} before it listens:\n{}", home.log()));
    }
    Ok(None)
}

/// Checks how a server has ended: true with exit code 0, false with exit code 1 and a reason.
///
/// # Errors
/// With any other end, or a panic.
fn check_exit(status: ExitStatus, home: &Home) -> Result<bool, String> {
    let log = fs::read_to_string(home.path("log")).unwrap_or_default();
    if log.contains("panicked") {
        return Err(format!("the server panics, {status}:\n{}", home.log()));
    }
    match status.code() {
        Some(0) => Ok(true),
        Some(1) if log.contains("mesa: ") => Ok(false),
        _ => Err(format!("the server exits with {status}; expected 0, or 1 and a reason:\n{}", home.log())),
    }
}

#[derive(Deserialize)]
struct Ready {
    address: std::net::SocketAddr,
    pid: i32,
}

/// Stops a server. True: it exits with 0; false: it exits with 1 and reports why, as it does if its store has failed.
fn stop(server: Server, home: &Home) -> Result<bool, String> {
    server.terminate();
    let end = Instant::now() + SERVER_TIMEOUT;
    let mut process = server.process;
    loop {
        if let Some(status) = process.try_wait() {
            return check_exit(status, home);
        }
        if Instant::now() > end {
            return Err(format!("the server does not stop within {SERVER_TIMEOUT:?}"));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Stops a server on an undamaged store.
fn stop_cleanly(server: Server, home: &Home) -> Result<(), String> {
    if stop(server, home)? {
        return Ok(());
    }
    Err(format!("the server on an undamaged store exits with an error:\n{}", home.log()))
}

/// The server's end is checked too, after all reads have succeeded.
#[cfg(feature = "failpoints")]
#[test]
fn server_that_panics_after_the_reads_is_a_violation() {
    let mut home = Home::new();
    home.set_variable("MESA_FAILPOINT_PANIC", "commit_thread");
    let server = start(&home).expect("no violation").expect("a server");
    let mut http = Http::connect(server.address).expect("a connection");
    let body = json!({ "message": { "op": 0, "d": 1, "t": "T" }, "recipients": ["alice"] }).to_string();
    _ = http.call("POST", "/v1/dispatch", &body);
    let violation = stop(server, &home).expect_err("a violation");
    assert!(violation.contains("panics"), "{violation}");
}

#[derive(Deserialize)]
struct Page {
    messages: Vec<Message>,
}

#[derive(Deserialize)]
struct Message {
    s: u64,
    d: Value,
}

/// Reads the log of each user.
fn read_all(server: &Server) -> Result<BTreeMap<String, LogRead>, String> {
    let mut logs = BTreeMap::new();
    for user in (0..fixtures::USERS).map(fixtures::user) {
        let log = read(server, &user, 0)?;
        logs.insert(user, log);
    }
    Ok(logs)
}

/// Reads the entries of a user above a sequence.
///
/// # Errors
/// The outer error is a violation: a response that does not arrive or cannot be parsed. The inner one is a rejection or a closed
/// connection.
fn read(server: &Server, user: &str, after: u64) -> Result<LogRead, String> {
    let mut http = match Http::connect(server.address) {
        Ok(http) => http,
        Err(error) => return Ok(Err(error.to_string())),
    };
    let (mut log, mut after) = (Vec::new(), after);
    loop {
        let path = format!("/v1/users/{}/messages?after={after}&limit=1000", user.replace(' ', "%20"));
        let (status, body) = match http.call("GET", &path, "") {
            Ok(response) => response,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Err(format!("{user}: no response")),
            Err(error) => return Ok(Err(error.to_string())),
        };
        if status != 200 {
            return Ok(Err(format!("{status}: {}", String::from_utf8_lossy(&body))));
        }
        let page: Page = serde_json::from_slice(&body).map_err(|error| error.to_string())?;
        let Some(last) = page.messages.last() else { return Ok(Ok(log)) };
        after = last.s;
        log.extend(page.messages.into_iter().map(|message| (message.s, message.d)));
    }
}

/// Returns name, length and checksum of each file.
fn fingerprint(directory: &Path) -> Vec<(PathBuf, u64, u32)> {
    let mut files = Vec::new();
    let mut directories = vec![directory.to_owned()];
    while let Some(directory) = directories.pop() {
        for file in fs::read_dir(directory).into_iter().flatten().flatten() {
            let path = file.path();
            if path.is_dir() {
                directories.push(path);
            } else {
                let bytes = fs::read(&path).unwrap_or_default();
                files.push((path, bytes.len() as u64, crc32fast::hash(&bytes)));
            }
        }
    }
    files.sort();
    files
}
