//! Tests the engine on disk: repeated and concurrent opens, damage, failed syncs, and disk usage.

use std::{
    fs, io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use mesa::{
    embedded::{
        Tuning,
        offline::inspect::{InspectSink, Inspection, LogFacts},
        tables::{DiskOptions, open},
    },
    message::{Payload, Seq},
    store::{Append, Durability, StoreError},
};

use crate::{
    support::{
        ALL, FLUSH_AT_ONCE, FLUSH_NEVER, Location, acknowledge, append, read, user, wait_until, wait_until_flushed,
    },
    wait::WAIT_TIMEOUT,
};

/// Copies the directory of a store, as a crash would leave it. An open store may remove a file meanwhile; then it starts
/// again.
pub fn copy(from: &Path, to: &Path) {
    let end = Instant::now() + WAIT_TIMEOUT;
    while let Err(error) = try_copy(from, to) {
        assert!(error.kind() == io::ErrorKind::NotFound && Instant::now() < end, "{error}");
        // Files of the attempt that do not exist any more.
        fs::remove_dir_all(to).unwrap();
    }
}

/// Copies the directory of a store. Fails if an open store removes a file meanwhile.
fn try_copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    if from.join("mark").exists() {
        // The watermark is copied first: it must not cover bytes that are written while the rest is copied.
        fs::copy(from.join("mark"), to.join("mark"))?;
    }
    for file in fs::read_dir(from)? {
        let file = file?;
        let target = to.join(file.file_name());
        if target.exists() && file.file_name() == "mark" {
            continue;
        }
        if file.path().is_dir() { try_copy(&file.path(), &target)? } else { _ = fs::copy(file.path(), target)? }
    }
    Ok(())
}

// covers: G5
#[tokio::test]
async fn sequences_continue_over_ten_restarts_of_an_empty_log() {
    let location = Location::disk();
    for round in 0..10 {
        let store = location.open(if round % 2 == 0 { FLUSH_NEVER } else { FLUSH_AT_ONCE });
        assert_eq!(read(&*store, "a", 0), []);
        assert_eq!(append(&*store, round, &["a"]).await.unwrap(), [round + 1]);
        acknowledge(&*store, "a", 1, round + 1);
        store.close().await.unwrap();
    }
}

#[tokio::test]
async fn flushed_entries_are_read_from_the_value_log_until_acknowledged() {
    let location = Location::disk();
    let store = location.open(FLUSH_AT_ONCE);
    for n in 1..=500 {
        append(&*store, n, &["a", "b"]).await.unwrap();
    }
    let all: Vec<_> = (1..=500).map(|n| (n, n)).collect();
    assert_eq!(read(&*store, "a", 0), all);
    wait_until_flushed(&*store, "a").await;
    assert_eq!(read(&*store, "a", 0), all);
    assert_eq!(read(&*store, "a", 250), all[250..]);
    acknowledge(&*store, "a", 1, 490);
    assert_eq!(read(&*store, "a", 0), all[490..]);
    store.close().await.unwrap();
    drop(store);
    let store = location.open(FLUSH_AT_ONCE);
    assert_eq!(read(&*store, "a", 0), all[490..]);
    assert_eq!(read(&*store, "b", 0), all);
}

// covers: G1
#[tokio::test]
async fn copy_of_a_store_during_appends_opens_with_a_prefix() {
    let location = Location::disk();
    let store = location.open(FLUSH_AT_ONCE);
    let writing = store.clone();
    let task = tokio::spawn(async move {
        for n in 1..=2_000 {
            append(&*writing, n, &["a"]).await.unwrap();
        }
    });
    let mut last = 0;
    for round in 0..5 {
        wait_until("more entries are appended", || store.state(&user("a")).unwrap().head >= round * 300 + 50).await;
        let answered = store.state(&user("a")).unwrap().head;
        let target = tempfile::tempdir().unwrap();
        copy(location.path(), target.path());
        let copied = open(DiskOptions::new(target.path())).unwrap();
        let entries = read(&*copied, "a", 0);
        let expected: Vec<_> = (1..=entries.len() as u64).map(|n| (n, n)).collect();
        assert_eq!(entries, expected, "the entries are in order and without a gap");
        assert!(entries.len() as u64 >= answered.min(last), "the copy has at least the entries of the round before");
        last = answered;
    }
    task.await.unwrap();
}

#[tokio::test]
async fn truncated_snapshot_of_sled_is_set_aside() {
    let location = Location::disk();
    for n in 1..=3 {
        let store = location.open(FLUSH_NEVER);
        append(&*store, n, &["a"]).await.unwrap();
        store.close().await.unwrap();
    }
    let log = location.path().join("log");
    let snapshots = || {
        let files = fs::read_dir(&log).unwrap().map(|file| file.unwrap().path());
        files.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("snap.")).collect::<Vec<_>>()
    };
    assert!(!snapshots().is_empty(), "sled writes a snapshot when it opens");
    for snapshot in snapshots() {
        fs::write(snapshot, b"").unwrap();
    }
    fs::write(log.join("snap.00000000FFFFFFFF.generating"), b"half").unwrap();
    let store = location.open(FLUSH_NEVER);
    assert_eq!(read(&*store, "a", 0), [(1, 1), (2, 2), (3, 3)]);
    assert!(
        fs::read_dir(location.path().join("set-aside")).unwrap().count() >= 2,
        "the snapshots are set aside, not deleted"
    );
}

#[tokio::test]
async fn store_that_was_incomplete_at_a_power_cut_is_created_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    fs::create_dir_all(path.join("making")).unwrap();
    // As sled leaves the file if only the first of its two writes reached the disk.
    fs::write(path.join("making").join("conf"), "longer than eight bytes").unwrap();
    let store = open(DiskOptions::new(&path)).unwrap();
    assert_eq!(append(&*store, 1, &["a"]).await.unwrap(), [1]);
    store.close().await.unwrap();
    drop(store);
    assert!(!path.join("making").exists());
    assert_eq!(read(&*open(DiskOptions::new(&path)).unwrap(), "a", 0), [(1, 1)]);
}

#[tokio::test]
async fn second_open_of_a_directory_is_rejected_with_the_process_id() {
    let location = Location::disk();
    let _store = location.open(FLUSH_NEVER);
    let error = open(DiskOptions::new(location.path())).err().unwrap();
    let text = error.to_string();
    assert!(matches!(error, StoreError::InUse { .. }), "{text}");
    assert!(text.contains(&std::process::id().to_string()) && text.contains("store.path"), "{text}");
}

#[tokio::test]
async fn store_of_another_namespace_is_rejected() {
    let location = Location::disk();
    let open_as = |namespace: Option<&str>| {
        open(DiskOptions { namespace: namespace.map(str::to_owned), ..DiskOptions::new(location.path()) })
    };
    open_as(Some("one")).unwrap().close().await.unwrap();
    for other in [None, Some("two")] {
        let error = open_as(other).err().unwrap().to_string();
        assert!(error.contains("namespace \"one\""), "{error}");
    }
    open_as(Some("one")).unwrap().close().await.unwrap();
}

#[tokio::test]
async fn path_that_is_not_a_directory_is_rejected() {
    let dir = tempfile::tempdir().unwrap();
    let (file, link) = (dir.path().join("file"), dir.path().join("link"));
    fs::write(&file, b"").unwrap();
    std::os::unix::fs::symlink(dir.path(), &link).unwrap();
    for (path, expected) in [(file, "not a directory"), (link, "symbolic link")] {
        let error = open(DiskOptions::new(path)).err().unwrap().to_string();
        assert!(error.contains(expected), "expected {expected:?} in {error:?}");
    }
    let created = dir.path().join("created");
    open(DiskOptions::new(&created)).unwrap().close().await.unwrap();
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&created).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o700, "only the owner may read the directory");
}

// covers: G1
#[tokio::test]
async fn store_after_a_failed_sync_rejects_every_operation() {
    let location = Location::disk();
    let syncs_left = Arc::new(AtomicUsize::new(3));
    let counter = syncs_left.clone();
    let sync = Arc::new(move || {
        let fails = counter.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_err();
        if fails { Err(std::io::Error::other("the disk is gone")) } else { Ok(()) }
    });
    let store = open(DiskOptions { sync: Some(sync), ..DiskOptions::new(location.path()) }).unwrap();
    let mut results = Vec::new();
    for n in 0..10 {
        results.push(append(&*store, n, &["a"]).await);
    }
    let accepted = results.iter().take_while(|result| result.is_ok()).count();
    assert_eq!(accepted, 3);
    for result in &results[accepted..] {
        assert!(result.as_ref().is_err_and(|error| error.to_string().contains("the disk is gone")), "{result:?}");
    }
    assert_eq!(read(&*store, "a", 0).len(), accepted, "an entry that is not durable is hidden");
    let failure = tokio::time::timeout(WAIT_TIMEOUT, store.failure()).await.unwrap();
    assert!(matches!(failure, StoreError::Failed(_)));
    assert!(store.clear(&user("a")).await.is_err());
}

// covers: G5
#[tokio::test]
async fn sequences_lost_in_a_crash_are_not_reused() {
    for durability in [Durability::Never, Durability::Interval(Duration::from_secs(60))] {
        let (location, earlier) = (Location::disk(), tempfile::tempdir().unwrap());
        let options = |path: &Path| DiskOptions { durability, tuning: FLUSH_NEVER, ..DiskOptions::new(path) };
        let store = open(options(location.path())).unwrap();
        append(&*store, 1, &["a"]).await.unwrap();
        // The first entry of a log is synced, so a crash cannot lose it (see `lossy_restarts`).
        append(&*store, 1, &["new"]).await.unwrap();
        copy(location.path(), earlier.path());
        let lost = append(&*store, 2, &["a", "new"]).await.unwrap();
        drop(store);
        // The crash leaves the state from before the second message was answered.
        let store = open(options(earlier.path())).unwrap();
        let assigned = append(&*store, 3, &["a", "new"]).await.unwrap();
        assert!(assigned[0] > lost[0] && assigned[1] > lost[1], "{assigned:?} after {lost:?}");
        assert_eq!(read(&*store, "a", 0), [(1, 1), (assigned[0], 3)], "a read skips the gap");
        assert_eq!(store.state(&user("a")).unwrap().pending, 2);
        store.close().await.unwrap();
        drop(store);
        // A clean close leaves no gap.
        let store = open(options(earlier.path())).unwrap();
        assert_eq!(append(&*store, 4, &["a"]).await.unwrap(), [assigned[0] + 1]);
    }
}

// covers: G1
#[tokio::test]
async fn sequences_with_durability_always_have_no_gap_after_a_crash() {
    let (location, crashed) = (Location::disk(), tempfile::tempdir().unwrap());
    let store = location.open(FLUSH_NEVER);
    append(&*store, 1, &["a"]).await.unwrap();
    copy(location.path(), crashed.path());
    let store = open(DiskOptions::new(crashed.path())).unwrap();
    assert_eq!(append(&*store, 2, &["a"]).await.unwrap(), [2]);
    assert_eq!(read(&*store, "a", 0), [(1, 1), (2, 2)]);
}

/// Returns the bytes of a directory and its contents.
fn directory_bytes(path: &Path) -> u64 {
    let size = |file: std::io::Result<fs::DirEntry>| {
        let path = file.unwrap().path();
        // sled may remove a file that it replaces at any time.
        if path.is_dir() { directory_bytes(&path) } else { fs::metadata(path).map_or(0, |file| file.len()) }
    };
    fs::read_dir(path).unwrap().map(size).sum()
}

/// Fills a store and drains it, `rounds` times; returns the size of the directory in each round.
///
/// Each round appends `backlog` bytes in messages of `bytes` bytes, waits until they are flushed, and acknowledges
/// them. The size is the larger of that after the flush and that after the acknowledgement.
async fn fill_and_drain(tuning: Tuning, rounds: usize, backlog: usize, bytes: usize) -> Vec<u64> {
    fill_and_drain_in(&Location::disk(), tuning, rounds, backlog, bytes).await
}

async fn fill_and_drain_in(
    location: &Location,
    tuning: Tuning,
    rounds: usize,
    backlog: usize,
    bytes: usize,
) -> Vec<u64> {
    let store = location.open(tuning);
    let text = format!("\"{}\"", "x".repeat(bytes));
    let payload = Payload::encode(0, Some(&text), None).unwrap();
    let users: Vec<_> = (0..20).map(|n| format!("user-{n}")).collect();
    let mut sizes = Vec::new();
    for _ in 0..rounds {
        let mut left = backlog.div_ceil(bytes);
        while left > 0 {
            let count = left.min(200);
            left -= count;
            let append = |n: usize| Append::new(payload.clone(), vec![user(&users[n % users.len()])]);
            store.append_all((0..count).map(append).collect()).await.unwrap();
        }
        let heads: Vec<_> = users.iter().map(|id| store.state(&user(id)).unwrap().head).collect();
        wait_until("all entries are flushed", || {
            // Until the flush they are read from memory.
            users.iter().zip(&heads).all(|(id, head)| store.read_cached(&user(id), head - 1, ALL).is_none())
        })
        .await;
        let filled = directory_bytes(location.path());
        users.iter().for_each(|user| acknowledge(&*store, user, 1, u64::MAX));
        wait_until("all entries are removed", || users.iter().all(|id| store.state(&user(id)).unwrap().pending == 0))
            .await;
        sizes.push(filled.max(directory_bytes(location.path())));
    }
    // sled's segments, and the current file of the value log and of the write-ahead log.
    wait_until("the disk space is freed", || directory_bytes(location.path()) < 26 << 20).await;
    sizes
}

/// A few of many entries stay pending, spread over all value log files.
#[tokio::test]
async fn value_log_with_few_pending_entries_is_compacted_and_keeps_them() {
    let location = Location::disk();
    let store = location.open(FLUSH_AT_ONCE);
    let (acknowledged, pending) = ("acknowledged", "pending");
    let text = format!("\"{}\"", "x".repeat(10_000));
    let payload = Payload::encode(0, Some(&text), None).unwrap();
    for n in 0..600 {
        let append = |to: &str| Append::new(payload.clone(), vec![user(to)]);
        let appends = (0..10).map(|at| append(if n % 3 == 0 && at == 0 { pending } else { acknowledged })).collect();
        store.append_all(appends).await.unwrap();
    }
    let head = store.state(&user(pending)).unwrap().head;
    let heads = [acknowledged, pending].map(|id| store.state(&user(id)).unwrap().head);
    wait_until("all entries are flushed", || {
        let is_flushed = |(id, head): (&str, u64)| store.read_cached(&user(id), head - 1, ALL).is_none();
        [acknowledged, pending].into_iter().zip(heads).all(is_flushed)
    })
    .await;
    let full = directory_bytes(location.path());
    acknowledge(&*store, acknowledged, 1, u64::MAX);
    wait_until("the disk space is freed", || directory_bytes(location.path()) < full / 2).await;
    let seqs = |store: &dyn mesa::store::Store| {
        let entries = store.read(&user(pending), 0, ALL).unwrap().entries;
        entries.iter().map(|entry| entry.seq).collect::<Vec<_>>()
    };
    assert_eq!(seqs(&*store), (1..=head).collect::<Vec<_>>());
    drop(store);
    let store = location.open(FLUSH_AT_ONCE);
    assert_eq!(seqs(&*store), (1..=head).collect::<Vec<_>>());
    assert_eq!(store.state(&user(acknowledged)).unwrap().pending, 0);
}

/// Compaction of one round runs during the next, so on a busy machine a round may start with more garbage than another.
/// The size is bounded nevertheless, and an idle store frees all of it.
#[tokio::test]
async fn disk_usage_over_sixteen_rounds_is_bounded_and_freed() {
    const MIB: u64 = 1 << 20;
    let (backlog, rounds) = (8 * MIB, 16);
    let location = Location::disk();
    let sizes = fill_and_drain_in(&location, FLUSH_AT_ONCE, rounds, backlog as usize, 30_000).await;
    // Twice the live bytes and two more files; the current value log file; the write-ahead log and its last file;
    // sled's segments.
    let bound = 2 * backlog + 16 * MIB + 8 * MIB + backlog + 8 * MIB + 24 * MIB;
    let mib: Vec<_> = sizes.iter().map(|size| size / MIB).collect();
    println!("MiB in each round: {mib:?}");
    assert!(bound < rounds as u64 * backlog * 2 / 3, "a bound near the total of all rounds would test nothing");
    assert!(sizes.iter().all(|size| *size <= bound), "expected at most {} MiB per round, not {mib:?}", bound / MIB);
}

/// `MESA_ROUNDS=50 cargo test --test store fill_and_drain -- --nocapture` runs 50 rounds instead of 4.
/// `MESA_BACKLOG_MIB` sets the backlog, 20 MiB by default: the share of the current files shrinks with it.
#[tokio::test]
async fn fill_and_drain_rounds_use_at_most_three_times_the_backlog() {
    let number = |name: &str, default| std::env::var(name).map_or(default, |set| set.parse().expect("a number"));
    let (rounds, mib): (usize, usize) = (number("MESA_ROUNDS", 4), number("MESA_BACKLOG_MIB", 20));
    let backlog = mib << 20;
    // Entries are flushed after 1 s, as those of offline users are after 10 s by default.
    let tuning = Tuning { flush_delay: Duration::from_secs(1), ..Tuning::default() };
    for bytes in [256, 8_000] {
        let sizes = fill_and_drain(tuning, rounds, backlog, bytes).await;
        let (last, max) = (*sizes.last().unwrap(), *sizes.iter().max().unwrap());
        let times = |size: u64| size as f64 / backlog as f64;
        println!(
            "{rounds} rounds of {mib} MiB in messages of {bytes} bytes: disk usage {:.2} times that at the end, {:.2} at most",
            times(last),
            times(max)
        );
        assert!(max <= 3 * backlog as u64, "expected at most {} bytes, not {sizes:?}", 3 * backlog);
    }
}

// covers: G6
#[tokio::test]
async fn store_whose_sled_log_lost_synced_data_is_rejected() {
    let location = Location::disk();
    for n in 1..=6 {
        let store = location.open(if n % 2 == 0 { FLUSH_NEVER } else { FLUSH_AT_ONCE });
        append(&*store, n, &["a"]).await.unwrap();
        store.close().await.unwrap();
    }
    type Damage = fn(&Path);
    let damage: [(&str, Damage); 4] = [
        ("garbage", |db| fs::write(db, b"garbage").unwrap()),
        ("empty", |db| fs::write(db, b"").unwrap()),
        ("missing", |db| fs::remove_file(db).unwrap()),
        ("overwritten", |db| {
            let mut bytes = fs::read(db).unwrap();
            let end = bytes.len().min(1 << 20);
            bytes[..end].fill(0xAA);
            fs::write(db, bytes).unwrap();
        }),
    ];
    for (name, damage) in damage {
        let damaged = tempfile::tempdir().unwrap();
        copy(location.path(), damaged.path());
        damage(&damaged.path().join("log/db"));
        let error = open(DiskOptions::new(damaged.path())).err().map(|error| error.to_string());
        let error = error.unwrap_or_else(|| panic!("{name}: expected an error, but the store opened"));
        assert!(error.contains("damaged") || error.contains("cannot open"), "{name}: {error}");
    }
    let store = location.open(FLUSH_NEVER);
    assert_eq!(read(&*store, "a", 0).len(), 6, "the store that was copied is unchanged");
}

/// Copies an idle store once its sync watermark includes the last record.
pub fn copy_with_watermark(from: &Path) -> tempfile::TempDir {
    let end = Instant::now() + WAIT_TIMEOUT;
    loop {
        let copied = tempfile::tempdir().unwrap();
        // A copy of an open store may be torn, and is then made again.
        let inspection = try_copy(from, copied.path())
            .map_err(|error| StoreError::Failed(error.to_string().into()))
            .and_then(|()| Inspection::open(copied.path()));
        let facts = inspection.as_ref().map(Inspection::facts);
        if facts.is_ok_and(|facts| facts.synced_record == facts.records.map(|(_, last, _)| last)) {
            return copied;
        }
        assert!(Instant::now() < end, "the sync watermark does not reach the last record: {:?}", inspection.err());
        std::thread::sleep(Duration::from_millis(10));
    }
}

// covers: G6
#[tokio::test]
async fn truncated_synced_commit_is_rejected_and_reported_by_inspect() {
    let location = Location::disk();
    let store = location.open(FLUSH_NEVER);
    append(&*store, 1, &["a"]).await.unwrap();
    // An append to 30,000 users takes several records, and is answered once the last one is synced.
    let users: Vec<String> = (0..30_000).map(|n| format!("user-{n}")).collect();
    let users: Vec<&str> = users.iter().map(String::as_str).collect();
    append(&*store, 2, &users).await.unwrap();
    let copied = copy_with_watermark(location.path());
    let segment = fs::read_dir(copied.path().join("wal")).unwrap().map(|file| file.unwrap().path()).max().unwrap();
    let whole = fs::read(&segment).unwrap();
    // Zeros follow the last record.
    let end = whole.iter().rposition(|byte| *byte != 0).unwrap() as u64 + 1;
    for cut in [1, 100_000, 300_000] {
        fs::File::options().write(true).open(&segment).unwrap().set_len(end - cut).unwrap();
        let error = open(DiskOptions::new(copied.path())).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains("was synced"), "without the last {cut} bytes: {error}");
        let mut inspection = Inspection::open(copied.path()).unwrap();
        let is_reported = inspection.damage().iter().any(|one| one.to_string().contains("although synced"));
        assert!(is_reported && !inspection.is_undamaged(), "without the last {cut} bytes: {:?}", inspection.damage());
        inspection.visit(&mut DiscardingSink).unwrap();
    }
}

/// Sink that discards everything.
pub struct DiscardingSink;

impl InspectSink for DiscardingSink {
    fn entries(&mut self, _: &str, _: &[(Seq, u32, Bytes)]) -> Result<(), StoreError> {
        Ok(())
    }

    fn log(&mut self, _: LogFacts) -> Result<(), StoreError> {
        Ok(())
    }
}
