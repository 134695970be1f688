//! What only a disk can do: be opened again, be opened twice, be damaged, and fail.

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use mesa::{
    message::{Payload, Seq},
    store::{
        Append, Durability, StoreError,
        disk::{DiskOptions, open},
        inspect::{Inspection, LogFacts, Sink},
        journal::Tuning,
    },
};

use crate::support::{AT_ONCE, NEVER, Place, append, read, receive, until, user};

pub fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    if from.join("mark").exists() {
        // First, because it must not tell of what is written while the rest is copied: a crash leaves all at once.
        fs::copy(from.join("mark"), to.join("mark")).unwrap();
    }
    for file in fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        let target = to.join(file.file_name());
        if target.exists() && file.file_name() == "mark" {
            continue;
        }
        if file.path().is_dir() { copy(&file.path(), &target) } else { _ = fs::copy(file.path(), target).unwrap() }
    }
}

#[tokio::test]
async fn a_sequence_outlives_its_messages_and_ten_restarts() {
    let place = Place::disk();
    for round in 0..10 {
        let store = place.open(if round % 2 == 0 { NEVER } else { AT_ONCE });
        assert_eq!(read(&*store, "a", 0), []);
        assert_eq!(append(&*store, round, &["a"]).await.unwrap(), [round + 1]);
        receive(&*store, "a", 1, round + 1);
        store.close().await.unwrap();
    }
}

#[tokio::test]
async fn what_was_settled_is_read_from_the_inbox_and_goes_when_it_is_received() {
    let place = Place::disk();
    let store = place.open(AT_ONCE);
    for n in 1..=500 {
        append(&*store, n, &["a", "b"]).await.unwrap();
    }
    let all: Vec<_> = (1..=500).map(|n| (n, n)).collect();
    assert_eq!(read(&*store, "a", 0), all);
    until("the journal to be settled", || store.recent(&user("a"), 0, crate::support::ALL).is_none()).await;
    assert_eq!(read(&*store, "a", 0), all);
    assert_eq!(read(&*store, "a", 250), all[250..]);
    receive(&*store, "a", 1, 490);
    assert_eq!(read(&*store, "a", 0), all[490..]);
    store.close().await.unwrap();
    drop(store);
    let store = place.open(AT_ONCE);
    assert_eq!(read(&*store, "a", 0), all[490..]);
    assert_eq!(read(&*store, "b", 0), all);
}

#[tokio::test]
async fn a_store_that_was_copied_while_it_was_written_opens_as_a_prefix() {
    let place = Place::disk();
    let store = place.open(AT_ONCE);
    let writing = store.clone();
    let task = tokio::spawn(async move {
        for n in 1..=2_000 {
            append(&*writing, n, &["a"]).await.unwrap();
        }
    });
    let mut last = 0;
    for at in 0..5 {
        until("more to be written", || store.state(&user("a")).unwrap().head >= at * 300 + 50).await;
        let answered = store.state(&user("a")).unwrap().head;
        let target = tempfile::tempdir().unwrap();
        copy(place.path(), target.path());
        let copied = open(DiskOptions::new(target.path())).unwrap();
        let entries = read(&*copied, "a", 0);
        let expected: Vec<_> = (1..=entries.len() as u64).map(|n| (n, n)).collect();
        assert_eq!(entries, expected, "in order and without a hole");
        assert!(entries.len() as u64 >= answered.min(last), "what was answered before the copy began is in it");
        last = answered;
    }
    task.await.unwrap();
}

#[tokio::test]
async fn a_snapshot_that_was_cut_off_is_set_aside() {
    let place = Place::disk();
    for n in 1..=3 {
        let store = place.open(NEVER);
        append(&*store, n, &["a"]).await.unwrap();
        store.close().await.unwrap();
    }
    let log = place.path().join("log");
    let snapshots = || {
        let files = fs::read_dir(&log).unwrap().map(|file| file.unwrap().path());
        files.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("snap.")).collect::<Vec<_>>()
    };
    assert!(!snapshots().is_empty(), "sled writes a snapshot when it opens");
    for snapshot in snapshots() {
        fs::write(snapshot, b"").unwrap();
    }
    fs::write(log.join("snap.00000000FFFFFFFF.generating"), b"half").unwrap();
    let store = place.open(NEVER);
    assert_eq!(read(&*store, "a", 0), [(1, 1), (2, 2), (3, 3)]);
    assert!(fs::read_dir(place.path().join("set-aside")).unwrap().count() >= 2, "nothing is thrown away");
}

#[tokio::test]
async fn a_store_that_was_being_made_when_the_power_went_is_made_anew() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    fs::create_dir_all(path.join("making")).unwrap();
    // As sled leaves it where only the first of its two writes came to the disk.
    fs::write(path.join("making").join("conf"), "longer than eight bytes").unwrap();
    let store = open(DiskOptions::new(&path)).unwrap();
    assert_eq!(append(&*store, 1, &["a"]).await.unwrap(), [1]);
    store.close().await.unwrap();
    drop(store);
    assert!(!path.join("making").exists());
    assert_eq!(read(&*open(DiskOptions::new(&path)).unwrap(), "a", 0), [(1, 1)]);
}

#[tokio::test]
async fn a_second_process_is_told_who_has_the_directory() {
    let place = Place::disk();
    let _store = place.open(NEVER);
    let error = open(DiskOptions::new(place.path())).err().unwrap();
    let told = error.to_string();
    assert!(matches!(error, StoreError::InUse { .. }), "{told}");
    assert!(told.contains(&std::process::id().to_string()) && told.contains("store.path"), "{told}");
}

#[tokio::test]
async fn a_store_belongs_to_one_namespace() {
    let place = Place::disk();
    let open_as = |namespace: Option<&str>| {
        open(DiskOptions { namespace: namespace.map(str::to_owned), ..DiskOptions::new(place.path()) })
    };
    open_as(Some("one")).unwrap().close().await.unwrap();
    for other in [None, Some("two")] {
        let told = open_as(other).err().unwrap().to_string();
        assert!(told.contains("namespace \"one\""), "{told}");
    }
    open_as(Some("one")).unwrap().close().await.unwrap();
}

#[tokio::test]
async fn places_that_are_no_directories_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (file, link) = (dir.path().join("file"), dir.path().join("link"));
    fs::write(&file, b"").unwrap();
    std::os::unix::fs::symlink(dir.path(), &link).unwrap();
    for (path, why) in [(file, "not a directory"), (link, "symbolic link")] {
        let told = open(DiskOptions::new(path)).err().unwrap().to_string();
        assert!(told.contains(why), "{told}");
    }
    let made = dir.path().join("made");
    open(DiskOptions::new(&made)).unwrap().close().await.unwrap();
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&made).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o700, "readable by its owner alone");
}

#[tokio::test]
async fn after_a_failed_sync_nothing_is_promised_any_more() {
    let place = Place::disk();
    let left = Arc::new(AtomicUsize::new(3));
    let counting = left.clone();
    let sync = Arc::new(move || {
        let fails = counting.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_err();
        if fails { Err(std::io::Error::other("the disk is gone")) } else { Ok(()) }
    });
    let store = open(DiskOptions { sync: Some(sync), ..DiskOptions::new(place.path()) }).unwrap();
    let mut answers = Vec::new();
    for n in 0..10 {
        answers.push(append(&*store, n, &["a"]).await);
    }
    let promised = answers.iter().take_while(|answer| answer.is_ok()).count();
    assert_eq!(promised, 3);
    for answer in &answers[promised..] {
        assert!(answer.as_ref().is_err_and(|error| error.to_string().contains("the disk is gone")), "{answer:?}");
    }
    assert_eq!(read(&*store, "a", 0).len(), promised, "what is not durable is not shown");
    let failure = tokio::time::timeout(Duration::from_secs(120), store.failure()).await.unwrap();
    assert!(matches!(failure, StoreError::Failed(_)));
    assert!(store.clear(&user("a")).await.is_err());
}

#[tokio::test]
async fn sequences_a_crash_took_back_are_not_given_out_again() {
    for durability in [Durability::Never, Durability::Interval(Duration::from_secs(60))] {
        let (place, earlier) = (Place::disk(), tempfile::tempdir().unwrap());
        let options = |path: &Path| DiskOptions { durability, tuning: NEVER, ..DiskOptions::new(path) };
        let store = open(options(place.path())).unwrap();
        append(&*store, 1, &["a"]).await.unwrap();
        // The first entry of a log is synced, so no crash takes it back (see `lapses`).
        append(&*store, 1, &["new"]).await.unwrap();
        copy(place.path(), earlier.path());
        let lost = append(&*store, 2, &["a", "new"]).await.unwrap();
        drop(store);
        // The crash: what is left is as it was before the second message was answered.
        let store = open(options(earlier.path())).unwrap();
        let given = append(&*store, 3, &["a", "new"]).await.unwrap();
        assert!(given[0] > lost[0] && given[1] > lost[1], "{given:?} after {lost:?}");
        assert_eq!(
            read(&*store, "a", 0),
            [(1, 1), (given[0], 3)],
            "what is left is read, and the gap is none to a reader"
        );
        assert_eq!(store.state(&user("a")).unwrap().pending, 2);
        store.close().await.unwrap();
        drop(store);
        // Closed in order: no gap.
        let store = open(options(earlier.path())).unwrap();
        assert_eq!(append(&*store, 4, &["a"]).await.unwrap(), [given[0] + 1]);
    }
}

#[tokio::test]
async fn always_durable_sequences_leave_no_gap_after_a_crash() {
    let (place, crashed) = (Place::disk(), tempfile::tempdir().unwrap());
    let store = place.open(NEVER);
    append(&*store, 1, &["a"]).await.unwrap();
    copy(place.path(), crashed.path());
    let store = open(DiskOptions::new(crashed.path())).unwrap();
    assert_eq!(append(&*store, 2, &["a"]).await.unwrap(), [2]);
    assert_eq!(read(&*store, "a", 0), [(1, 1), (2, 2)]);
}

/// Bytes of a directory and all that is in it.
fn size_of(path: &Path) -> u64 {
    let size = |file: std::io::Result<fs::DirEntry>| {
        let path = file.unwrap().path();
        // What sled replaces goes away while it is looked at.
        if path.is_dir() { size_of(&path) } else { fs::metadata(path).map_or(0, |file| file.len()) }
    };
    fs::read_dir(path).unwrap().map(size).sum()
}

/// Fills a store with messages of `bytes`, `backlog` bytes of them, waits until they are settled, and drains it, as often
/// as said; how large the directory was in each round, when all was settled or when all was drained.
async fn fill_and_drain(tuning: Tuning, rounds: usize, backlog: usize, bytes: usize) -> Vec<u64> {
    fill_and_drain_in(&Place::disk(), tuning, rounds, backlog, bytes).await
}

async fn fill_and_drain_in(place: &Place, tuning: Tuning, rounds: usize, backlog: usize, bytes: usize) -> Vec<u64> {
    let store = place.open(tuning);
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
        until("everything to be settled", || {
            // Reads come from memory until it is.
            users.iter().zip(&heads).all(|(id, head)| store.recent(&user(id), head - 1, crate::support::ALL).is_none())
        })
        .await;
        let filled = size_of(place.path());
        users.iter().for_each(|user| receive(&*store, user, 1, u64::MAX));
        until("everything to be drained", || users.iter().all(|id| store.state(&user(id)).unwrap().pending == 0)).await;
        sizes.push(filled.max(size_of(place.path())));
    }
    // sled's segments, and a file each that is written to.
    until("the room to be given back", || size_of(place.path()) < 26 << 20).await;
    sizes
}

/// Of many messages a few stay, in every part of the files.
#[tokio::test]
async fn what_stays_does_not_keep_the_room_of_what_went_and_is_still_there() {
    let place = Place::disk();
    let store = place.open(AT_ONCE);
    let (gone, stays) = ("gone", "stays");
    let text = format!("\"{}\"", "x".repeat(10_000));
    let payload = Payload::encode(0, Some(&text), None).unwrap();
    for n in 0..600 {
        let append = |to: &str| Append::new(payload.clone(), vec![user(to)]);
        let appends = (0..10).map(|at| append(if n % 3 == 0 && at == 0 { stays } else { gone })).collect();
        store.append_all(appends).await.unwrap();
    }
    let head = store.state(&user(stays)).unwrap().head;
    let heads = [gone, stays].map(|id| store.state(&user(id)).unwrap().head);
    until("everything to be settled", || {
        let settled = |(id, head): (&str, u64)| store.recent(&user(id), head - 1, crate::support::ALL).is_none();
        [gone, stays].into_iter().zip(heads).all(settled)
    })
    .await;
    let full = size_of(place.path());
    receive(&*store, gone, 1, u64::MAX);
    until("the room to be given back", || size_of(place.path()) < full / 2).await;
    let seqs = |store: &dyn mesa::store::Store| {
        let entries = store.read(&user(stays), 0, crate::support::ALL).unwrap().entries;
        entries.iter().map(|entry| entry.seq).collect::<Vec<_>>()
    };
    assert_eq!(seqs(&*store), (1..=head).collect::<Vec<_>>());
    drop(store);
    let store = place.open(AT_ONCE);
    assert_eq!(seqs(&*store), (1..=head).collect::<Vec<_>>());
    assert_eq!(store.state(&user(gone)).unwrap().pending, 0);
}

/// What a round leaves behind goes while the next one runs, so a round on a busy machine may find more of it than another did. Its
/// size has a bound all the same, and when nothing happens all of it is given back.
#[tokio::test]
async fn disk_stays_near_the_largest_backlog_and_is_given_back() {
    const MIB: u64 = 1 << 20;
    let (backlog, rounds) = (8 * MIB, 16);
    let place = Place::disk();
    let sizes = fill_and_drain_in(&place, AT_ONCE, rounds, backlog as usize, 30_000).await;
    // Twice what is alive, and two files more; the file that is written to; the journal and its last file; sled's segments.
    let bound = 2 * backlog + 16 * MIB + 8 * MIB + backlog + 8 * MIB + 24 * MIB;
    let mib: Vec<_> = sizes.iter().map(|size| size / MIB).collect();
    println!("MiB in each round: {mib:?}");
    assert!(bound < rounds as u64 * backlog * 2 / 3, "the bound tells nothing");
    assert!(sizes.iter().all(|size| *size <= bound), "{mib:?} MiB, and {} are allowed", bound / MIB);
}

/// `MESA_ROUNDS=50 cargo test --test store fill_and_drain -- --nocapture` has as many. `MESA_BACKLOG_MIB` sets another
/// backlog than 20: the files weigh the less the larger it is.
#[tokio::test]
async fn rounds_of_fill_and_drain_never_take_three_times_the_backlog() {
    let number = |name: &str, default| std::env::var(name).map_or(default, |set| set.parse().expect("a number"));
    let (rounds, mib): (usize, usize) = (number("MESA_ROUNDS", 4), number("MESA_BACKLOG_MIB", 20));
    let backlog = mib << 20;
    // What has waited for a while is settled, as it is where users are away: a second stands for ten.
    let tuning = Tuning { settle_after: Duration::from_secs(1), ..Tuning::default() };
    for bytes in [256, 8_000] {
        let sizes = fill_and_drain(tuning, rounds, backlog, bytes).await;
        let (last, most) = (*sizes.last().unwrap(), *sizes.iter().max().unwrap());
        let times = |size: u64| size as f64 / backlog as f64;
        println!(
            "{rounds} rounds of {mib} MiB in messages of {bytes} bytes: {:.2} times that at the end, {:.2} at most",
            times(last),
            times(most)
        );
        assert!(most <= 3 * backlog as u64, "{sizes:?}");
    }
}

#[tokio::test]
async fn a_log_that_lost_what_was_synced_is_refused_and_not_taken_for_a_shorter_one() {
    let place = Place::disk();
    for n in 1..=6 {
        let store = place.open(if n % 2 == 0 { NEVER } else { AT_ONCE });
        append(&*store, n, &["a"]).await.unwrap();
        store.close().await.unwrap();
    }
    type Damage = fn(&Path);
    let damage: [(&str, Damage); 4] = [
        ("garbage", |db| fs::write(db, b"garbage").unwrap()),
        ("nothing", |db| fs::write(db, b"").unwrap()),
        ("gone", |db| fs::remove_file(db).unwrap()),
        ("overwritten", |db| {
            let mut bytes = fs::read(db).unwrap();
            let end = bytes.len().min(1 << 20);
            bytes[..end].fill(0xAA);
            fs::write(db, bytes).unwrap();
        }),
    ];
    for (what, damage) in damage {
        let damaged = tempfile::tempdir().unwrap();
        copy(place.path(), damaged.path());
        damage(&damaged.path().join("log/db"));
        let told = open(DiskOptions::new(damaged.path())).err().map(|error| error.to_string());
        let told = told.unwrap_or_else(|| panic!("{what}: it opened"));
        assert!(told.contains("damaged") || told.contains("cannot open"), "{what}: {told}");
    }
    let store = place.open(NEVER);
    assert_eq!(read(&*store, "a", 0).len(), 6, "the original is as it was");
}

#[tokio::test]
async fn a_synced_commit_that_lost_its_end_is_refused_and_inspect_tells_why() {
    let place = Place::disk();
    let store = place.open(NEVER);
    append(&*store, 1, &["a"]).await.unwrap();
    // Stamps of so many users take several records, and are answered once the last of them is synced.
    let users: Vec<String> = (0..20_000).map(|n| format!("somebody-{n}")).collect();
    let users: Vec<&str> = users.iter().map(String::as_str).collect();
    append(&*store, 2, &users).await.unwrap();
    let left = tempfile::tempdir().unwrap();
    copy(place.path(), left.path());
    let journal = fs::read_dir(left.path().join("journal")).unwrap().map(|file| file.unwrap().path()).max().unwrap();
    let whole = fs::metadata(&journal).unwrap().len();
    for gone in [1, 100_000, 300_000] {
        fs::File::options().write(true).open(&journal).unwrap().set_len(whole - gone).unwrap();
        let refused = open(DiskOptions::new(left.path())).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(refused.contains("was synced"), "{gone} bytes gone: {refused}");
        let mut inspection = Inspection::open(left.path()).unwrap();
        let told = inspection.damage().iter().any(|one| one.to_string().contains("although synced"));
        assert!(told && !inspection.is_whole(), "{gone} bytes gone: {:?}", inspection.damage());
        inspection.visit(&mut Unread).unwrap();
    }
}

/// Takes what is found and keeps nothing.
pub struct Unread;

impl Sink for Unread {
    fn entries(&mut self, _: &str, _: &[(Seq, u32, Bytes)]) -> Result<(), StoreError> {
        Ok(())
    }

    fn log(&mut self, _: LogFacts) -> Result<(), StoreError> {
        Ok(())
    }
}
