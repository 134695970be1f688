//! `mesa inspect`: reads a store that no server has open.

use std::{
    fmt::Write as _,
    path::Path,
    time::{Duration, UNIX_EPOCH},
};

use bytes::Bytes;
use mesa::{
    embedded::{
        backup::format::Contents,
        offline::{
            inspect::{ConnectedUser, Damage, InspectSink, Inspection, LogFacts},
            salvage::salvage_with,
        },
    },
    message::Seq,
    store::StoreError,
    util::rfc3339::rfc3339,
};
use serde_json::{Value, json};

use crate::{
    args::InspectArgs,
    error::Failure,
    output::{self, count, printable},
    progress::{Progress, Unit},
};

/// Alternative to stopping the server that uses a store.
const INSTEAD_OF_STOPPING: &str = ", or inspect a copy: `mesa backup` saves a running server's store in a file, \
                                    `mesa restore` creates a store from it";

/// Prints the content of a store. Fails if something is damaged.
pub fn run(args: &InspectArgs) -> Result<(), Failure> {
    let reading = Progress::start("reading the tables and the write-ahead log", Unit::Time, None);
    let mut inspection =
        Inspection::open(&args.directory).map_err(|error| Failure::unopened(error, INSTEAD_OF_STOPPING))?;
    drop(reading);
    if let Some(out) = &args.salvage {
        return write_salvaged(&mut inspection, out, args);
    }
    let progress = Progress::start("checking", Unit::Users, user_count(&inspection));
    let mut summary = Summary {
        limit: args.limit,
        all: args.json && args.user.is_none(),
        progress: Some(progress),
        ..Summary::default()
    };
    let visited = match &args.user {
        Some(user) => inspection.visit_one(user, &mut summary),
        None => inspection.visit(&mut summary),
    };
    summary.progress = None;
    visited.map_err(Failure::because)?;
    if args.json {
        print_json(&inspection, &summary, args)?;
    } else {
        print(&inspection, &summary, args)?;
    }
    if args.user.is_some() && summary.users == 0 {
        return Err(Failure::because("the store has nothing of this user"));
    }
    if inspection.is_undamaged() { Ok(()) } else { Err(Failure::Reported) }
}

/// Returns about how many users a store has: its rows. The write-ahead log may have more.
fn user_count(inspection: &Inspection) -> Option<u64> {
    inspection.facts().trees.iter().find_map(|(name, rows)| (*name == "users").then_some(*rows))
}

/// Writes everything readable to a new store, and lists what is lost. Succeeds also with a damaged store.
fn write_salvaged(inspection: &mut Inspection, out: &Path, args: &InspectArgs) -> Result<(), Failure> {
    let progress = Progress::start("saving", Unit::Users, user_count(inspection));
    let saved = salvage_with(inspection, out, || progress.add(1)).map_err(Failure::because)?;
    drop(progress);
    if args.json {
        let Contents { users, entries, bytes, .. } = saved;
        output::json(&json!({ "saved": { "path": out, "users": users, "messages": entries, "bytes": bytes } }))?;
        print_damage_json(inspection)?;
        return Ok(());
    }
    let (users, entries) = (count(saved.users, "user"), count(saved.entries, "message"));
    output::line(&format!("saved {users}, {entries} ({} bytes) to {}", saved.bytes, out.display()))?;
    print_damage(inspection);
    if !inspection.is_undamaged() {
        output::remark("every log continues after a gap, so that no lost sequence is assigned again");
    }
    Ok(())
}

/// Totals of a store, and the users to show.
#[derive(Default)]
struct Summary {
    /// Number of users to show.
    limit: usize,
    /// Whether to show all users, whatever `limit` is.
    all: bool,
    users: u64,
    pending: u64,
    bytes: u64,
    expired: u64,
    shown: Vec<LogFacts>,
    progress: Option<Progress>,
}

impl InspectSink for Summary {
    fn entries(&mut self, _: &str, _: &[(Seq, u32, Bytes)]) -> Result<(), StoreError> {
        Ok(())
    }

    fn log(&mut self, mut facts: LogFacts) -> Result<(), StoreError> {
        self.users += 1;
        if let Some(progress) = &self.progress {
            progress.add(1);
        }
        self.pending += facts.pending.len() as u64;
        self.bytes += facts.pending_bytes();
        self.expired += facts.expired;
        if self.shown.len() < self.limit.max(1) || self.all {
            facts.gaps.shrink_to_fit();
            self.shown.push(facts);
        }
        Ok(())
    }
}

fn print_json(inspection: &Inspection, summary: &Summary, args: &InspectArgs) -> Result<(), Failure> {
    let facts = inspection.facts();
    output::json(&json!({
        "store": {
            "path": args.directory,
            "format": facts.format,
            "namespace": facts.namespace,
            "ending": facts.close_state.as_str(),
            "lossyRestarts": facts.lossy_restarts,
            "floor": facts.floor,
            "records": facts.records.map_or(0, |(_, _, count)| count),
            "firstRecord": facts.records.map(|(first, ..)| first),
            "lastRecord": facts.records.map(|(_, last, _)| last),
            "flushedRecord": facts.flushed,
            "syncedRecord": facts.synced_record,
            "walBytes": facts.wal_bytes,
            "fileBytes": facts.file_bytes,
            "ids": facts.ids,
            "trees": facts.trees.iter().map(|(name, entries)| ((*name).to_owned(), json!(entries))).collect::<Value>(),
            "connected": facts.connected.len(),
            "users": summary.users,
            "pending": summary.pending,
            "pendingBytes": summary.bytes,
            "damage": inspection.damage().len() as u64 + inspection.omitted_damage(),
        }
    }))?;
    for user in &summary.shown {
        output::json(&user_json(user, args.user.is_some()))?;
    }
    let is_shown = |one: &&ConnectedUser| args.user.as_ref().is_none_or(|user| *user == one.user);
    for ConnectedUser { user, since_ms, connections } in facts.connected.iter().filter(is_shown) {
        output::json(&json!({ "connected": { "user": user, "sinceMs": since_ms, "connections": connections } }))?;
    }
    print_damage_json(inspection)
}

fn print_damage_json(inspection: &Inspection) -> Result<(), Failure> {
    for damage in inspection.damage() {
        let Damage { place, key, what, user } = damage;
        output::json(&json!({ "damage": { "place": place, "key": key, "what": what, "user": user } }))?;
    }
    Ok(())
}

fn user_json(facts: &LogFacts, detail: bool) -> Value {
    let cursors = facts.cursors.iter().map(|(device, received, seen_ms)| {
        json!({
            "device": if device.is_empty() { None } else { Some(device) },
            "through": received.through(),
            "ranges": received.ranges(),
            "seenMs": seen_ms,
        })
    });
    let gaps = facts.gaps.iter().map(|gap| json!({ "from": gap.from, "to": gap.to, "reason": gap.reason.as_str() }));
    let mut user = json!({
        "id": facts.user,
        "head": facts.head,
        "pending": facts.pending.len(),
        "pendingBytes": facts.pending_bytes(),
        "oldest": facts.pending.first().map(|(seq, ..)| seq),
        "expired": facts.expired,
        "seenMs": facts.seen_ms,
        "cursors": cursors.collect::<Vec<_>>(),
        "gaps": gaps.collect::<Vec<_>>(),
        "missing": facts.missing,
    });
    if detail {
        user["sequences"] = json!(facts.pending.iter().map(|(seq, ..)| seq).collect::<Vec<_>>());
    }
    user
}

fn print(inspection: &Inspection, summary: &Summary, args: &InspectArgs) -> Result<(), Failure> {
    if let (Some(_), Some(user)) = (&args.user, summary.shown.first()) {
        print_user(user, inspection, args.limit)?;
    } else if args.user.is_none() {
        print_store(inspection, summary, args.limit)?;
    }
    print_damage(inspection);
    Ok(())
}

fn print_damage(inspection: &Inspection) {
    for damage in inspection.damage() {
        output::remark(&format!("damaged: {}", describe(damage)));
    }
    if inspection.omitted_damage() > 0 {
        output::remark(&format!("damaged: and {} more", inspection.omitted_damage()));
    }
}

fn describe(damage: &Damage) -> String {
    let user = damage.user.as_ref().map_or_else(String::new, |user| format!("user {user:?}, "));
    printable(&format!("{user}{damage}"))
}

fn print_store(inspection: &Inspection, summary: &Summary, limit: usize) -> Result<(), Failure> {
    let facts = inspection.facts();
    let unknown = || "unknown".to_owned();
    let records = match facts.records {
        Some((first, last, number)) => {
            format!("{} ({first} to {last}), {} bytes", count(number, "record"), facts.wal_bytes)
        }
        None => format!("empty; everything up to record {} is flushed", facts.flushed),
    };
    let damage = inspection.damage().len() as u64 + inspection.omitted_damage();
    let lines = [
        ("users", summary.users.to_string()),
        ("pending", format!("{} ({} bytes)", count(summary.pending, "message"), summary.bytes)),
        ("expired", count(summary.expired, "message")),
        ("format", facts.format.clone().unwrap_or_else(unknown)),
        ("namespace", facts.namespace.as_ref().map_or_else(unknown, |name| format!("{name:?}"))),
        ("end", facts.close_state.as_str().to_owned()),
        (
            "lossy restarts",
            format!("{} (they may have lost sequences; each leaves a gap in the logs)", facts.lossy_restarts),
        ),
        ("floor", format!("{} (the log of a new user starts above it)", facts.floor)),
        ("wal", records),
        ("synced", facts.synced_record.map_or_else(unknown, |record| format!("up to record {record}"))),
        ("dispatch ids", facts.ids.to_string()),
        ("trees", facts.trees.iter().map(|(name, entries)| format!("{name} {entries}")).collect::<Vec<_>>().join(", ")),
        ("connected", format!("{} when the server ended", count(facts.connected.len() as u64, "user"))),
        ("files", format!("{} bytes", facts.file_bytes)),
        ("damage", if damage == 0 { "none".into() } else { count(damage, "place") }),
    ];
    for (name, value) in lines {
        output::line(&printable(&format!("{name:<14} {value}")))?;
    }
    if summary.users > 0 {
        output::line("")?;
        output::line(&format!(
            "{:>9} {:>9} {:>11} {:>9} {:>7}  user",
            "head", "pending", "bytes", "oldest", "cursors"
        ))?;
    }
    for user in &summary.shown {
        let oldest = user.pending.first().map_or_else(|| "-".to_owned(), |(seq, ..)| seq.to_string());
        let (pending, bytes, cursors) = (user.pending.len(), user.pending_bytes(), user.cursors.len());
        let row = format!("{:>9} {pending:>9} {bytes:>11} {oldest:>9} {cursors:>7}  ", user.head);
        output::line(&format!("{row}{}", printable(&user.user)))?;
    }
    let more = summary.users.saturating_sub(summary.shown.len() as u64);
    if more > 0 {
        output::remark(&format!("{} more; raise --limit, or use --json for all", count(more, "user")));
    }
    print_connected(&facts.connected, limit)
}

/// Prints the connected users at the end of the server.
fn print_connected(connected: &[ConnectedUser], limit: usize) -> Result<(), Failure> {
    if !connected.is_empty() {
        output::line("")?;
        output::line("connections  since                     user")?;
    }
    for ConnectedUser { user, since_ms, connections } in connected.iter().take(limit.max(1)) {
        output::line(&printable(&format!("{connections:>11}  {}  {user}", seen(*since_ms))))?;
    }
    let more = connected.len().saturating_sub(limit.max(1)) as u64;
    if more > 0 {
        output::remark(&format!("and {} more; raise --limit, or use --json for all", count(more, "connected user")));
    }
    Ok(())
}

fn print_user(user: &LogFacts, inspection: &Inspection, limit: usize) -> Result<(), Failure> {
    output::line(&format!("user           {}", printable(&user.user)))?;
    output::line(&format!("head           {}", user.head))?;
    output::line(&format!("last seen      {}", seen(user.seen_ms)))?;
    for one in inspection.facts().connected.iter().filter(|one| one.user == user.user) {
        let connections = count(one.connections.into(), "connection");
        output::line(&format!("connected      {connections} since {}, when the server ended", seen(one.since_ms)))?;
    }
    for (device, received, seen_ms) in &user.cursors {
        let name = if device.is_empty() { "without a device".to_owned() } else { format!("device {device:?}") };
        let further = ranges(received.ranges().iter().copied());
        let further = if further.is_empty() { String::new() } else { format!(", and {further}") };
        let (through, seen) = (received.through(), seen(*seen_ms));
        output::line(&printable(&format!("acknowledged   {name}: up to {through}{further}; last seen {seen}")))?;
    }
    for gap in &user.gaps {
        output::line(&format!("gap            {}: {}", ranges([(gap.from, gap.to)]), gap.reason.as_str()))?;
    }
    if !user.missing.is_empty() {
        output::line(&format!("missing        {}", ranges(user.missing.iter().copied())))?;
    }
    let (pending, bytes) = (user.pending.len() as u64, user.pending_bytes());
    output::line(&format!("pending        {} ({bytes} bytes)", count(pending, "message")))?;
    for (seq, bytes, expires_s) in user.pending.iter().take(limit) {
        let at = Duration::from_secs(u64::from(*expires_s));
        let expires = if at.is_zero() { String::new() } else { format!(", expires {}", date(at)) };
        output::line(&format!("{seq:>9}  {bytes} bytes{expires}"))?;
    }
    let more = pending.saturating_sub(limit as u64);
    if more > 0 {
        output::remark(&format!("{} more; raise --limit", count(more, "message")));
    }
    Ok(())
}

fn ranges(ranges: impl IntoIterator<Item = (Seq, Seq)>) -> String {
    let mut text = String::new();
    for (from, to) in ranges {
        let comma = if text.is_empty() { "" } else { ", " };
        // Writing to a String cannot fail.
        _ = if from == to { write!(text, "{comma}{from}") } else { write!(text, "{comma}{from} to {to}") };
    }
    text
}

/// Formats the time when a user or device was last online.
fn seen(at_ms: u64) -> String {
    if at_ms == 0 { "never".into() } else { date(Duration::from_millis(at_ms)) }
}

/// Formats a time like the server; "unknown" if it is out of range, as may happen in a damaged store.
fn date(since_1970: Duration) -> String {
    UNIX_EPOCH.checked_add(since_1970).map_or_else(|| "unknown".into(), rfc3339)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_formatted_as_a_list() {
        assert_eq!(ranges([(1, 3), (5, 5)]), "1 to 3, 5");
        assert_eq!(ranges([]), "");
    }

    #[test]
    fn time_of_any_value_is_formatted() {
        assert_eq!([seen(0), seen(1_795_954_465_000)], ["never", "2026-11-29T12:14:25.000Z"]);
        assert!(!seen(u64::MAX).is_empty());
    }
}
