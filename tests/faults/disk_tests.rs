//! Tests the simulated disk: after a power cut it has all synced data, and at most the written data of the rest.

use std::{collections::HashSet, ffi::OsStr};

use crate::{
    fuse_disk::{Ino, Losses, PowerCut, Tree},
    support::seeded_rng::Random,
};

const POWER_CUTS: [PowerCut; 3] = [PowerCut::LoseAll, PowerCut::Torn, PowerCut::Reordered];

/// Rounds of each randomized test.
const ROUNDS: u64 = 200;

fn name(text: &str) -> &OsStr {
    OsStr::new(text)
}

/// Returns a tree with one empty file, whose name is synced.
fn with_file() -> (Tree, Ino) {
    let mut tree = Tree::new();
    let ino = tree.create(Tree::ROOT, name("file"), false).unwrap();
    tree.sync_directory(Tree::ROOT).unwrap();
    (tree, ino)
}

fn contents(tree: &Tree, ino: Ino) -> Vec<u8> {
    let file = tree.file(ino).unwrap();
    file.read(0, file.len()).to_vec()
}

#[test]
fn power_cut_after_sync_loses_nothing() {
    let mut random = Random::from_env("disk");
    for round in 0..ROUNDS {
        let (mut tree, ino) = with_file();
        let mut synced = Vec::new();
        for _ in 0..random.within(1..=20) {
            let bytes = vec![random.within(1..=255) as u8; random.within(1..=10_000) as usize];
            let at = random.within(0..=20_000) as usize;
            let file = tree.file_mut(ino).unwrap();
            if random.one_in(8) {
                file.set_len(at);
            } else {
                file.write(at, &bytes);
            }
            if random.one_in(3) {
                file.sync();
                synced = contents(&tree, ino);
            }
        }
        tree.file_mut(ino).unwrap().sync();
        synced.clone_from(&contents(&tree, ino));
        let losses = tree.cut_power(POWER_CUTS[(round % 3) as usize], &mut random);
        assert_eq!(contents(&tree, ino), synced);
        assert_eq!(losses, Losses::default());
    }
}

#[test]
fn power_cut_that_loses_all_removes_every_unsynced_change() {
    let (mut tree, ino) = with_file();
    let file = tree.file_mut(ino).unwrap();
    file.write(0, b"synced");
    file.sync();
    file.write(0, b"not so");
    file.write(100, b"behind");
    file.set_len(3);
    let losses = tree.cut_power(PowerCut::LoseAll, &mut Random::from_seed(1));
    assert_eq!(contents(&tree, ino), b"synced");
    assert_eq!(losses, Losses { writes: 3, bytes: 13, names: 0 });
}

#[test]
fn torn_power_cut_keeps_the_first_writes_up_to_a_sector() {
    let mut lengths = HashSet::new();
    for seed in 0..ROUNDS {
        let (mut tree, ino) = with_file();
        for write in 0..4_usize {
            tree.file_mut(ino).unwrap().write(write * 1000, &[write as u8 + 1; 1000]);
        }
        let losses = tree.cut_power(PowerCut::Torn, &mut Random::from_seed(seed));
        let kept = contents(&tree, ino);
        let whole: Vec<u8> = (0..4000_u32).map(|at| (at / 1000 + 1) as u8).collect();
        assert_eq!(kept, whole[..kept.len()]);
        let at_boundary = kept.len().is_multiple_of(512) || kept.len().is_multiple_of(1000);
        assert!(at_boundary, "expected an end at a sector or at a write, got {}", kept.len());
        assert_eq!(losses.bytes as usize, 4000 - kept.len());
        lengths.insert(kept.len());
    }
    assert!(
        lengths.contains(&0) && lengths.contains(&4000) && lengths.len() > 8,
        "expected 0, 4000 and more than 6 other lengths, got {lengths:?}"
    );
}

#[test]
fn reordered_power_cut_keeps_any_sectors_but_whole_ones() {
    let (mut first_lost, mut last_lost) = (false, false);
    for seed in 0..ROUNDS {
        let (mut tree, ino) = with_file();
        tree.file_mut(ino).unwrap().write(0, &vec![1; 16 * 4096]);
        tree.file_mut(ino).unwrap().sync();
        tree.file_mut(ino).unwrap().write(0, &vec![2; 16 * 4096]);
        tree.cut_power(PowerCut::Reordered, &mut Random::from_seed(seed));
        let kept = contents(&tree, ino);
        assert_eq!(kept.len(), 16 * 4096);
        let sectors: Vec<&[u8]> = kept.chunks(512).collect();
        assert!(sectors.iter().all(|sector| sector.iter().all(|byte| *byte == sector[0])));
        first_lost |= sectors[0][0] == 1 && sectors[127][0] == 2;
        last_lost |= sectors[0][0] == 2 && sectors[127][0] == 1;
    }
    assert!(first_lost && last_lost, "expected the first sector without the last, and the last without the first");
}

#[test]
fn name_survives_a_power_cut_only_if_its_directory_was_synced() {
    let mut tree = Tree::new();
    let directory = tree.create(Tree::ROOT, name("directory"), true).unwrap();
    let ino = tree.create(directory, name("file"), false).unwrap();
    tree.file_mut(ino).unwrap().write(0, b"bytes");
    tree.file_mut(ino).unwrap().sync();
    let mut cut = tree.clone();
    assert_eq!(cut.cut_power(PowerCut::LoseAll, &mut Random::from_seed(1)).names, 2);
    assert!(cut.look_up(Tree::ROOT, name("directory")).is_err());
    tree.sync_directory(directory).unwrap();
    let mut cut = tree.clone();
    cut.cut_power(PowerCut::LoseAll, &mut Random::from_seed(1));
    let found = cut.look_up(Tree::ROOT, name("directory"));
    assert!(found.is_err(), "expected no directory, because its name was not synced");
    tree.sync_directory(Tree::ROOT).unwrap();
    tree.cut_power(PowerCut::LoseAll, &mut Random::from_seed(1));
    assert_eq!(tree.look_up(directory, name("file")), Ok(ino));
    assert_eq!(contents(&tree, ino), b"bytes");
    tree.remove(directory, name("file"), false).unwrap();
    tree.cut_power(PowerCut::LoseAll, &mut Random::from_seed(1));
    assert_eq!(contents(&tree, ino), b"bytes", "expected the file, because its removal was not synced");
}

#[test]
fn rename_survives_a_power_cut_in_whole_or_not_at_all() {
    let mut counts = HashSet::new();
    for seed in 0..ROUNDS {
        let (mut tree, old) = with_file();
        let new = tree.create(Tree::ROOT, name("new"), false).unwrap();
        tree.sync_directory(Tree::ROOT).unwrap();
        tree.rename((Tree::ROOT, name("new")), (Tree::ROOT, name("file"))).unwrap();
        tree.cut_power(POWER_CUTS[(seed % 3) as usize], &mut Random::from_seed(seed));
        let names = tree.list(Tree::ROOT).unwrap();
        let found: Vec<Ino> = names.iter().map(|(_, ino)| *ino).collect();
        assert!(found == [old, new] || found == [new], "expected both files or only the new one, got {names:?}");
        counts.insert(found.len());
    }
    assert_eq!(counts.len(), 2);
}

#[cfg(target_os = "linux")]
#[test]
fn mounted_disk_supports_locks_and_loses_unsynced_changes() {
    use std::{
        fs::{self, File},
        io::Write as _,
    };

    use crate::fuse_disk::MountedDisk;

    let disk = match MountedDisk::new() {
        Ok(disk) => disk,
        Err(error) => {
            assert!(std::env::var_os("CI").is_none(), "FUSE is not available: {error}");
            eprintln!("FUSE is not available ({error}): the mounted disk was NOT tested");
            return;
        }
    };
    let mut random = Random::from_seed(1);
    fs::create_dir(disk.path("a")).unwrap();
    let mut file = File::create(disk.path("a/file")).unwrap();
    file.write_all(b"synced").unwrap();
    file.sync_data().unwrap();
    file.write_all(b" and not").unwrap();
    assert_eq!(fs::read(disk.path("a/file")).unwrap(), b"synced and not");
    file.try_lock().unwrap();
    let second = File::open(disk.path("a/file")).unwrap();
    assert!(second.try_lock().is_err(), "expected that the locked file cannot be locked again");
    drop(second);
    for directory in [disk.path("a"), disk.root().to_owned()] {
        File::open(directory).unwrap().sync_all().unwrap();
    }
    fs::write(disk.path("a/other"), b"18 unsynced bytes.").unwrap();
    drop(file);
    let losses = disk.cut_power(PowerCut::LoseAll, &mut random);
    assert_eq!(losses, Losses { writes: 2, bytes: 26, names: 1 });
    let names: Vec<_> = fs::read_dir(disk.path("a")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["file"]);
    assert_eq!(fs::read(disk.path("a/file")).unwrap(), b"synced");
    fs::rename(disk.path("a/file"), disk.path("b")).unwrap();
    fs::remove_dir(disk.path("a")).unwrap();
    assert_eq!(disk.bytes(), 6);
}

#[cfg(target_os = "linux")]
#[test]
fn power_cut_at_a_copy_removes_later_changes_and_reuses_no_inode() {
    use std::{fs, os::unix::fs::MetadataExt as _};

    use crate::fuse_disk::MountedDisk;

    let Ok(disk) = MountedDisk::new() else {
        assert!(std::env::var_os("CI").is_none(), "FUSE is not available");
        eprintln!("FUSE is not available: the copy of a mounted disk was NOT tested");
        return;
    };
    let mut random = Random::from_seed(1);
    fs::write(disk.path("earlier"), b"x").unwrap();
    let earlier = fs::metadata(disk.path("earlier")).unwrap().ino();
    // The changes are: a file, its contents, its sync, the sync of its name, and further contents.
    disk.empty_and_copy_after(4);
    assert_eq!(fs::read_dir(disk.root()).unwrap().count(), 0);
    let file = fs::File::create(disk.path("file")).unwrap();
    for contents in [b"first", b"other"] {
        std::os::unix::fs::FileExt::write_all_at(&file, contents, 0).unwrap();
        if contents == b"first" {
            file.sync_data().unwrap();
            fs::File::open(disk.root()).unwrap().sync_all().unwrap();
            assert_eq!(disk.changes(), 4);
        } else {
            file.sync_data().unwrap();
        }
    }
    drop(file);
    assert_eq!(disk.cut_power_at_copy(PowerCut::LoseAll, &mut random), Some(Losses::default()));
    assert_eq!(fs::read(disk.path("file")).unwrap(), b"first");
    assert_eq!(disk.cut_power_at_copy(PowerCut::LoseAll, &mut random), None);
    fs::write(disk.path("later"), b"x").unwrap();
    let inos = ["file", "later"].map(|name| fs::metadata(disk.path(name)).unwrap().ino());
    assert!(earlier < inos[0] && inos[0] < inos[1], "expected new inode numbers, got {earlier} and {inos:?}");
}

#[test]
fn changes_of_a_failed_sync_are_lost_unless_made_again() {
    let (mut tree, ino) = with_file();
    let file = tree.file_mut(ino).unwrap();
    file.write(0, b"first second");
    file.fail_sync();
    assert_eq!(file.read(0, 12), b"first second", "the changes stay readable");
    file.write(6, b"SECOND");
    file.sync();
    tree.cut_power(PowerCut::LoseAll, &mut Random::from_seed(1));
    assert_eq!(contents(&tree, ino), b"\0\0\0\0\0\0SECOND");
}
