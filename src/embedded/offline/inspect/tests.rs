//! Tests of inspection and salvage with invalid keys or without the names of tables.

use std::{collections::BTreeMap, fs, path::Path, sync::Arc, time::Duration};

use bytes::Bytes;

use super::{Facts, InspectSink, Inspection, LogFacts};
use crate::{
    embedded::{
        offline::salvage::salvage,
        options::Tuning,
        tables::{
            open::{DiskOptions, open},
            schema::log_key,
        },
    },
    message::{DeviceId, Payload, Seq, UserId},
    store::{Append, ReadLimit, SessionReport, Store, StoreError},
};

const USERS: [&str; 3] = ["a", "b", "c"];

/// Messages to each user. A block holds one or two of them.
const MESSAGES: u64 = 12;
const PAYLOAD_BYTES: usize = 40_000;

/// The last entry that every device of the user has acknowledged.
const ACKNOWLEDGED: Seq = 3;

fn user(id: &str) -> UserId {
    UserId::new(id).unwrap()
}

fn options(path: &Path) -> DiskOptions {
    DiskOptions { tuning: Tuning { flush_delay: Duration::ZERO, ..Tuning::default() }, ..DiskOptions::new(path) }
}

/// Creates a closed store in which every entry is flushed.
async fn create_store(path: &Path) {
    let store = open(options(path)).unwrap();
    for n in 1..=MESSAGES {
        let payload = Payload::encode(0, Some(&format!("\"{n}{}\"", "x".repeat(PAYLOAD_BYTES))), None).unwrap();
        store.append(Append::new(payload, USERS.map(user).to_vec())).await.unwrap();
        if n == ACKNOWLEDGED {
            let phone = DeviceId::new("phone").unwrap();
            for id in USERS.map(user) {
                store.attach(&id, Some(&phone)).unwrap();
                store.report(
                    &id,
                    SessionReport {
                        device: Some(phone.clone()),
                        acknowledged: Some((1, ACKNOWLEDGED)),
                        ..SessionReport::default()
                    },
                );
                store.detach(&id, Some(&phone));
            }
        }
    }
    let one = ReadLimit { entries: 1, bytes: 1 };
    while USERS.iter().any(|id| store.read_cached(&user(id), MESSAGES - 1, one).is_some()) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    store.close().await.unwrap();
}

fn pending(store: &Arc<dyn Store>, id: &str) -> Vec<Seq> {
    let all = ReadLimit { entries: usize::MAX, bytes: usize::MAX };
    store.read(&user(id), 0, all).unwrap().entries.iter().map(|entry| entry.seq).collect()
}

/// Records the visited users, and the pending entries of each.
#[derive(Default)]
struct Visited {
    logs: Vec<LogFacts>,
    entries: BTreeMap<String, Vec<Seq>>,
}

impl InspectSink for Visited {
    fn entries(&mut self, user: &str, entries: &[(Seq, u32, Bytes)]) -> Result<(), StoreError> {
        self.entries.entry(user.to_owned()).or_default().extend(entries.iter().map(|(seq, ..)| *seq));
        Ok(())
    }

    fn log(&mut self, facts: LogFacts) -> Result<(), StoreError> {
        self.logs.push(facts);
        Ok(())
    }
}

/// Changes the table of block locations.
fn change_locations(path: &Path, change: impl FnOnce(&sled::Tree)) {
    let config = sled::Config::new().path(path.join("log")).segment_size(crate::embedded::tables::files::SEGMENT_BYTES);
    let mut opened = config.open();
    // A thread of sled releases the lock of a closed store with a delay.
    for _ in 0..500 {
        if opened.is_ok() {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
        opened = config.open();
    }
    let db = opened.unwrap();
    change(&db.open_tree("log").unwrap());
    db.flush().unwrap();
}

fn with_suffix(key: &[u8], suffix: &[u8]) -> Vec<u8> {
    [key, suffix].concat()
}

// covers: G6
#[tokio::test]
async fn inspection_with_invalid_block_key_visits_its_user_once() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("store");
    create_store(&path).await;
    let store = open(options(&path)).unwrap();
    let wanted: BTreeMap<&str, Vec<Seq>> = USERS.iter().map(|id| (*id, pending(&store, id))).collect();
    store.close().await.unwrap();
    drop(store);
    assert_eq!(wanted["b"], (ACKNOWLEDGED + 1..=MESSAGES).collect::<Vec<_>>());
    change_locations(&path, |locations| {
        // The key of a block in the middle is damaged; the block itself is intact.
        let keys: Vec<_> = locations.scan_prefix(b"b\0").keys().map(Result::unwrap).collect();
        assert!(keys.len() > 3, "{} blocks", keys.len());
        let location = locations.remove(&keys[2]).unwrap().unwrap();
        locations.insert(with_suffix(&keys[2], b"b\0\x01"), location).unwrap();
        // After the last key of a user, and between two users.
        locations.insert(with_suffix(&log_key("b", Seq::MAX), b"\0"), b"").unwrap();
        locations.insert(b"b0", b"").unwrap();
    });
    for only in [None, Some("b")] {
        let mut inspection = Inspection::open(&path).unwrap();
        let mut visited = Visited::default();
        match only {
            Some(id) => inspection.visit_one(id, &mut visited).unwrap(),
            None => inspection.visit(&mut visited).unwrap(),
        }
        let names: Vec<_> = visited.logs.iter().map(|facts| facts.user.as_str()).collect();
        assert_eq!(names, only.map_or(USERS.to_vec(), |id| vec![id]));
        for facts in &visited.logs {
            let shown: Vec<_> = facts.pending.iter().map(|(seq, ..)| *seq).collect();
            assert_eq!(shown, wanted[facts.user.as_str()], "{}", facts.user);
            assert_eq!(visited.entries[&facts.user], shown, "{}", facts.user);
            let through: Vec<_> = facts.cursors.iter().map(|(_, acknowledged, _)| acknowledged.through()).collect();
            assert_eq!(through, [ACKNOWLEDGED], "{}", facts.user);
        }
        let reported =
            inspection.damage().iter().filter(|damage| damage.what.contains("not the key of a block")).count();
        assert!(reported >= 2, "{:?}", inspection.damage());
    }
    let out = home.path().join("salvaged");
    salvage(&mut Inspection::open(&path).unwrap(), &out).unwrap();
    assert!(!fs::exists(home.path().join("salvaged.partial")).unwrap());
    let salvaged = open(options(&out)).unwrap();
    for id in USERS {
        assert_eq!(pending(&salvaged, id), wanted[id], "{id}, salvaged");
    }
    salvaged.close().await.unwrap();
}

// covers: G6
#[tokio::test]
async fn inspection_without_table_names_shows_every_user_once() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("store");
    create_store(&path).await;
    let db = path.join("log").join("db");
    let mut bytes = fs::read(&db).unwrap();
    // Every list of tree names contains this tree of sled.
    let tree = b"__sled__default";
    let names: Vec<_> =
        bytes.windows(tree.len()).enumerate().filter(|(_, name)| name == tree).map(|(at, _)| at).collect();
    assert!(!names.is_empty());
    names.iter().for_each(|at| bytes[*at] ^= 1);
    fs::write(&db, bytes).unwrap();
    let mut inspection = Inspection::open(&path).unwrap();
    let mut visited = Visited::default();
    inspection.visit(&mut visited).unwrap();
    assert!(!inspection.is_undamaged());
    let names: Vec<_> = visited.logs.iter().map(|facts| facts.user.as_str()).collect();
    assert_eq!(names, USERS);
    for facts in &visited.logs {
        let shown: Vec<_> = facts.pending.iter().map(|(seq, ..)| *seq).collect();
        assert_eq!(shown, (ACKNOWLEDGED + 1..=MESSAGES).collect::<Vec<_>>(), "{}", facts.user);
    }
}

#[tokio::test]
async fn connected_users_are_listed_with_the_size_of_each_tree_and_are_not_salvaged() {
    let home = tempfile::tempdir().unwrap();
    let (path, saved) = (home.path().join("store"), home.path().join("saved"));
    let store = open(options(&path)).unwrap();
    for (id, connections) in [("b", 2), ("a", 1), ("c", 1), ("c", 0)] {
        store.set_connections(&user(id), connections);
    }
    // These connections outlive the store.
    store.close().await.unwrap();
    drop(store);
    let mut inspection = Inspection::open(&path).unwrap();
    let Facts { connected, trees, .. } = inspection.facts();
    let listed: Vec<_> = connected.iter().map(|one| (one.user.as_str(), one.connections)).collect();
    assert_eq!(listed, [("a", 1), ("b", 2)]);
    assert!(connected.iter().all(|one| one.since_ms > 1_700_000_000_000), "{connected:?}");
    let names: Vec<_> = trees.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, ["log", "users", "meta", "ids", "outbox", "connected", "bodies"]);
    assert!(trees.contains(&("connected", 2)), "{trees:?}");
    assert!(inspection.is_undamaged());
    salvage(&mut inspection, &saved).unwrap();
    assert_eq!(Inspection::open(&saved).unwrap().facts().connected, []);
}
