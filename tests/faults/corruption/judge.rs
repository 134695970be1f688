//! What a server, `mesa inspect` and its `--salvage` make of a store.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use bytes::Bytes;
use mesa::store::{
    StoreError,
    inspect::{Inspection, LogFacts, Sink},
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    damage::Damage,
    sample::{self, Sample},
    support::{
        http::Http,
        server::{Home, Server},
    },
};

/// Longest time for anything.
const PATIENCE: Duration = Duration::from_secs(120);

/// What became of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// Every user's log was as it had been.
    Whole,
    /// The server did not start, and said why.
    Refused,
    /// It did, and what was not there was refused aloud; everything else was as it had been.
    Isolated,
}

/// What was found.
pub struct Found {
    pub outcome: Outcome,
    /// `mesa inspect` said that something is damaged.
    pub inspect_told: bool,
    /// Pending entries in what was salvaged, and those that are not in it.
    pub saved: u64,
    pub lost: u64,
}

type Log = Vec<(u64, Value)>;
type Logs = BTreeMap<String, Log>;

/// A log, or how the server refuses to show it.
type Shown = Result<Log, String>;

/// What a server shows of an undamaged store.
pub fn pending(sample: &Sample) -> Result<Logs, String> {
    let home = Home::new();
    sample::copy(&sample.store, &home.store());
    let server = start(&home)?.ok_or("it is refused")?;
    let logs = read_all(&server)?.into_iter().map(|(user, log)| Ok((user, log?))).collect::<Result<_, String>>();
    stop(server)?;
    logs
}

/// Lets `damage` happen to a copy of a store, and looks at what comes of it. An error is what must not be.
pub fn judge(sample: &Sample, damage: Option<&Damage>) -> Result<Found, String> {
    let home = Home::new();
    sample::copy(&sample.store, &home.store());
    if let Some(damage) = damage {
        damage.happen(&home.store(), &sample.earlier);
    }
    let inspected = inspect(sample, &home)?;
    let outcome = serve(sample, &home)?;
    if outcome != Outcome::Whole && !inspected.told {
        return Err(format!("the server: {outcome:?}, and inspect finds nothing wrong:\n{}", home.log()));
    }
    if outcome == Outcome::Whole && inspected.lost > 0 {
        return Err(format!("the server has all of it, and salvage saves {} entries less", inspected.lost));
    }
    Ok(Found { outcome, inspect_told: inspected.told, saved: inspected.saved, lost: inspected.lost })
}

/// Starts a server on the store; what it shows has to be the truth.
fn serve(sample: &Sample, home: &Home) -> Result<Outcome, String> {
    let Some(server) = start(home)? else { return Ok(Outcome::Refused) };
    let mut outcome = Outcome::Whole;
    for (user, log) in read_all(&server)? {
        match log {
            Ok(log) if log == sample.pending[&user] => {}
            Ok(log) => return Err(format!("SILENT: {}", difference(&user, &sample.pending[&user], &log, sample))),
            Err(_) => outcome = Outcome::Isolated,
        }
    }
    match new_entries(sample, &server)? {
        Some(new) => check_new(sample, &new)?,
        None => outcome = Outcome::Isolated,
    }
    stop(server)?;
    Ok(outcome)
}

/// What differs, in words.
fn difference(user: &str, expected: &[(u64, Value)], found: &[(u64, Value)], sample: &Sample) -> String {
    let known = &sample.appended[user];
    let forged = found.iter().filter(|(seq, value)| known.get(seq) != Some(value)).count();
    let missing: Vec<u64> = expected.iter().filter(|each| !found.contains(each)).map(|(seq, _)| *seq).collect();
    let again: Vec<u64> = found.iter().filter(|each| !expected.contains(each)).map(|(seq, _)| *seq).collect();
    format!("{user}: {forged} altered or foreign, {missing:?} missing, {again:?} there again")
}

/// Dispatches to everybody; where that is taken, the sequences given.
fn new_entries(sample: &Sample, server: &Server) -> Result<Option<BTreeMap<String, u64>>, String> {
    let mut http = Http::connect(server.address).map_err(|error| error.to_string())?;
    let recipients: Vec<String> = (0..sample::USERS).map(sample::user).collect();
    let body = json!({ "message": { "op": 0, "d": "new", "t": "NEW" }, "recipients": recipients });
    // The server stops when its store fails, and says so.
    let Ok((status, answer)) = http.call("POST", "/v1/dispatch", &body.to_string()) else { return Ok(None) };
    let answer: Value = serde_json::from_slice(&answer).map_err(|error| error.to_string())?;
    if status != 200 || answer["rejected"] != json!([]) {
        return Ok(None);
    }
    let mut new = BTreeMap::new();
    for user in recipients {
        // A sequence that was given out before would not show behind the last.
        let Ok(log) = read(server, &user, head(sample, &user))? else { return Ok(None) };
        let (seq, value) = log.last().ok_or_else(|| format!("{user} has nothing of what was just answered"))?;
        if *value != json!("new") {
            return Err(format!("{user} has not what was just answered at the end of the log"));
        }
        new.insert(user, *seq);
    }
    Ok(Some(new))
}

/// The last sequence a user was given.
fn head(sample: &Sample, user: &str) -> u64 {
    sample.appended[user].last_key_value().map_or(0, |(seq, _)| *seq)
}

/// Sequences that were given out before are not given out again.
fn check_new(sample: &Sample, new: &BTreeMap<String, u64>) -> Result<(), String> {
    for (user, seq) in new {
        let head = head(sample, user);
        if *seq <= head {
            return Err(format!("{user}: sequence {seq} is given out again, the last was {head}"));
        }
    }
    Ok(())
}

struct Inspected {
    told: bool,
    saved: u64,
    lost: u64,
}

/// Runs `mesa inspect` and `--salvage`, and a server on what was salvaged.
fn inspect(sample: &Sample, home: &Home) -> Result<Inspected, String> {
    let before = fingerprint(&home.store());
    let (status, said) = mesa(&[Path::new("inspect"), &home.store(), Path::new("--json")])?;
    let told = match status {
        Some(0) => false,
        Some(1) if !said.trim().is_empty() => true,
        _ => return Err(format!("inspect ends with {status:?}: {said}")),
    };
    let out = home.path("salvaged");
    let (status, said) = mesa(&[Path::new("inspect"), &home.store(), Path::new("--salvage"), &out])?;
    if fingerprint(&home.store()) != before {
        return Err("inspect has changed the store".into());
    }
    let all: u64 = sample.pending.values().map(|log| log.len() as u64).sum();
    match status {
        Some(0) => {}
        // There has to be something to read.
        Some(1) if fs::metadata(home.store().join("log/db")).is_err() => {
            return Ok(Inspected { told, saved: 0, lost: all });
        }
        _ => return Err(format!("salvage ends with {status:?}: {said}")),
    }
    let mut shown = Sequences::default();
    let mut inspection = Inspection::open(&home.store()).map_err(|error| error.to_string())?;
    inspection.visit(&mut shown).map_err(|error| error.to_string())?;
    if inspection.is_whole() == told {
        return Err(format!("inspect, asked twice, says two things: {:?}", inspection.damage()));
    }
    drop(inspection);
    if !shown.contradictions.is_empty() {
        return Err(format!("inspect contradicts itself: {}", shown.contradictions.join("; ")));
    }
    let saved = serve_salvaged(sample, home, &out, &shown.shown)?;
    Ok(Inspected { told, saved, lost: all.saturating_sub(saved) })
}

/// The pending entries of each user.
#[derive(Default)]
struct Sequences {
    shown: BTreeMap<String, Vec<u64>>,
    /// Entries of the user being visited.
    given: Vec<u64>,
    contradictions: Vec<String>,
}

impl Sink for Sequences {
    fn entries(&mut self, _: &str, entries: &[(u64, u32, Bytes)]) -> Result<(), StoreError> {
        self.given.extend(entries.iter().map(|(seq, ..)| *seq));
        Ok(())
    }

    fn log(&mut self, facts: LogFacts) -> Result<(), StoreError> {
        let (user, given) = (facts.user, std::mem::take(&mut self.given));
        let pending: Vec<u64> = facts.pending.iter().map(|(seq, ..)| *seq).collect();
        if given != pending {
            self.contradictions.push(format!("{user}: the entries {given:?}, and in the log {pending:?}"));
        }
        if self.shown.last_key_value().is_some_and(|(last, _)| *last >= user) {
            self.contradictions.push(format!("{user} is visited a second time, or not in the order of the ids"));
        }
        self.shown.insert(user, pending);
        Ok(())
    }
}

/// A server on what was salvaged shows what inspect showed, and nothing but the truth. How many of the entries that were
/// pending are there.
fn serve_salvaged(
    sample: &Sample,
    home: &Home,
    out: &PathBuf,
    shown: &BTreeMap<String, Vec<u64>>,
) -> Result<u64, String> {
    let salvaged = Home::new();
    fs::rename(out, salvaged.store())
        .or_else(|_| {
            sample::copy(out, &salvaged.store());
            Ok::<_, std::io::Error>(())
        })
        .map_err(|error| error.to_string())?;
    let server = start(&salvaged)?.ok_or_else(|| format!("what was salvaged is refused:\n{}", salvaged.log()))?;
    let mut saved = 0;
    for (user, log) in read_all(&server)? {
        let log = log.map_err(|error| format!("salvaged, {user}: {error}"))?;
        let sequences: Vec<u64> = log.iter().map(|(seq, _)| *seq).collect();
        let shown = shown.get(&user).cloned().unwrap_or_default();
        if sequences != shown {
            return Err(format!("salvaged, {user}: {sequences:?}, and inspect showed {shown:?}\n{}", home.log()));
        }
        let known = &sample.appended[&user];
        if let Some((seq, _)) = log.iter().find(|(seq, value)| known.get(seq) != Some(value)) {
            return Err(format!("salvaged, {user}: entry {seq} is not what it was"));
        }
        saved += sample.pending[&user].iter().filter(|each| log.contains(each)).count() as u64;
    }
    let new = new_entries(sample, &server)?.ok_or("a salvaged store takes nothing")?;
    check_new(sample, &new).map_err(|error| format!("salvaged: {error}"))?;
    stop(server)?;
    Ok(saved)
}

fn mesa(words: &[&Path]) -> Result<(Option<i32>, String), String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mesa"));
    let child = command.args(words).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let output = child.and_then(std::process::Child::wait_with_output).map_err(|error| error.to_string())?;
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if said.contains("panicked") {
        return Err(format!("{words:?} panics: {said}"));
    }
    Ok((output.status.code(), said))
}

/// Starts a server; `None` where it refuses to, and says why.
fn start(home: &Home) -> Result<Option<Server>, String> {
    let mut process = home.spawn(&[]);
    let end = Instant::now() + PATIENCE;
    let status = loop {
        if let Ok(text) = fs::read_to_string(home.path("ready")) {
            let Ready { address, pid } = serde_json::from_str(&text).map_err(|error| error.to_string())?;
            return Ok(Some(Server { process, address, pid }));
        }
        if let Some(status) = process.ended() {
            break status;
        }
        if Instant::now() > end {
            return Err(format!("the server neither starts nor ends:\n{}", home.log()));
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    let log = fs::read_to_string(home.path("log")).unwrap_or_default();
    if log.contains("panicked") {
        return Err(format!("the server panics, {status}:\n{}", home.log()));
    }
    match status.code() {
        Some(1) if log.contains("mesa: ") => Ok(None),
        _ => Err(format!("the server ends with {status}, and does not say why:\n{}", home.log())),
    }
}

#[derive(Deserialize)]
struct Ready {
    address: std::net::SocketAddr,
    pid: i32,
}

fn stop(server: Server) -> Result<(), String> {
    server.terminate();
    let end = Instant::now() + PATIENCE;
    let mut process = server.process;
    while process.ended().is_none() {
        if Instant::now() > end {
            return Err("the server does not stop".into());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
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

/// What the server shows of each user, or how it refuses to.
fn read_all(server: &Server) -> Result<BTreeMap<String, Shown>, String> {
    let mut logs = BTreeMap::new();
    for user in (0..sample::USERS).map(sample::user) {
        let log = read(server, &user, 0)?;
        logs.insert(user, log);
    }
    Ok(logs)
}

fn read(server: &Server, user: &str, after: u64) -> Result<Shown, String> {
    let mut http = match Http::connect(server.address) {
        Ok(http) => http,
        Err(error) => return Ok(Err(error.to_string())),
    };
    let (mut log, mut after) = (Vec::new(), after);
    loop {
        let path = format!("/v1/users/{}/messages?after={after}&limit=1000", user.replace(' ', "%20"));
        let (status, body) = match http.call("GET", &path, "") {
            Ok(answer) => answer,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Err(format!("{user}: no answer")),
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

/// Names, lengths and bytes of all files.
fn fingerprint(directory: &Path) -> Vec<(PathBuf, u64, u32)> {
    let mut files = Vec::new();
    let mut waiting = vec![directory.to_owned()];
    while let Some(directory) = waiting.pop() {
        for file in fs::read_dir(directory).into_iter().flatten().flatten() {
            let path = file.path();
            if path.is_dir() {
                waiting.push(path);
            } else {
                let bytes = fs::read(&path).unwrap_or_default();
                files.push((path, bytes.len() as u64, crc32fast::hash(&bytes)));
            }
        }
    }
    files.sort();
    files
}
