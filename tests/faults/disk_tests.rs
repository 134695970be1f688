//! The disk that forgets, held against what is known of disks: what was synced is there, and of the rest no more is there
//! than was written.

use std::{collections::HashSet, ffi::OsStr};

use crate::{
    fuse_disk::{Cut, Ino, Lost, Tree},
    support::seeded_rng::Random,
};

const CUTS: [Cut; 3] = [Cut::Clear, Cut::Torn, Cut::Reordered];

/// Times that chance is asked.
const ROUNDS: u64 = 200;

fn name(text: &str) -> &OsStr {
    OsStr::new(text)
}

/// A tree with one file that is there for good, and empty.
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
fn what_was_synced_survives_every_cut() {
    let mut random = Random::announced("disk");
    for round in 0..ROUNDS {
        let (mut tree, ino) = with_file();
        let mut synced = Vec::new();
        for _ in 0..random.within(1..=20) {
            let bytes = vec![random.within(1..=255) as u8; random.within(1..=10_000) as usize];
            let at = random.within(0..=20_000) as usize;
            let file = tree.file_mut(ino).unwrap();
            if random.once_in(8) {
                file.set_len(at);
            } else {
                file.write(at, &bytes);
            }
            if random.once_in(3) {
                file.sync();
                synced = contents(&tree, ino);
            }
        }
        tree.file_mut(ino).unwrap().sync();
        synced.clone_from(&contents(&tree, ino));
        let lost = tree.cut(CUTS[(round % 3) as usize], &mut random);
        assert_eq!(contents(&tree, ino), synced);
        assert_eq!(lost, Lost::default());
    }
}

#[test]
fn a_clear_cut_leaves_nothing_else() {
    let (mut tree, ino) = with_file();
    let file = tree.file_mut(ino).unwrap();
    file.write(0, b"synced");
    file.sync();
    file.write(0, b"not so");
    file.write(100, b"behind");
    file.set_len(3);
    let lost = tree.cut(Cut::Clear, &mut Random::from_seed(1));
    assert_eq!(contents(&tree, ino), b"synced");
    assert_eq!(lost, Lost { writes: 3, bytes: 13, names: 0 });
}

#[test]
fn a_torn_cut_leaves_the_first_writes_and_ends_with_a_sector() {
    let mut lengths = HashSet::new();
    for seed in 0..ROUNDS {
        let (mut tree, ino) = with_file();
        for write in 0..4_usize {
            tree.file_mut(ino).unwrap().write(write * 1000, &[write as u8 + 1; 1000]);
        }
        let lost = tree.cut(Cut::Torn, &mut Random::from_seed(seed));
        let left = contents(&tree, ino);
        let whole: Vec<u8> = (0..4000_u32).map(|at| (at / 1000 + 1) as u8).collect();
        assert_eq!(left, whole[..left.len()]);
        assert!(left.len().is_multiple_of(512) || left.len().is_multiple_of(1000), "torn at {}", left.len());
        assert_eq!(lost.bytes as usize, 4000 - left.len());
        lengths.insert(left.len());
    }
    assert!(lengths.contains(&0) && lengths.contains(&4000) && lengths.len() > 8, "{lengths:?}");
}

#[test]
fn a_cut_that_reorders_leaves_any_of_the_sectors_and_each_whole() {
    let (mut first_gone, mut last_gone) = (false, false);
    for seed in 0..ROUNDS {
        let (mut tree, ino) = with_file();
        tree.file_mut(ino).unwrap().write(0, &vec![1; 16 * 4096]);
        tree.file_mut(ino).unwrap().sync();
        tree.file_mut(ino).unwrap().write(0, &vec![2; 16 * 4096]);
        tree.cut(Cut::Reordered, &mut Random::from_seed(seed));
        let left = contents(&tree, ino);
        assert_eq!(left.len(), 16 * 4096);
        let sectors: Vec<&[u8]> = left.chunks(512).collect();
        assert!(sectors.iter().all(|sector| sector.iter().all(|byte| *byte == sector[0])));
        first_gone |= sectors[0][0] == 1 && sectors[127][0] == 2;
        last_gone |= sectors[0][0] == 2 && sectors[127][0] == 1;
    }
    assert!(first_gone && last_gone, "either may be there without the other");
}

#[test]
fn a_name_is_there_for_good_when_its_directory_was_synced_and_not_before() {
    let mut tree = Tree::new();
    let directory = tree.create(Tree::ROOT, name("directory"), true).unwrap();
    let ino = tree.create(directory, name("file"), false).unwrap();
    tree.file_mut(ino).unwrap().write(0, b"bytes");
    tree.file_mut(ino).unwrap().sync();
    let mut cut = tree.clone();
    assert_eq!(cut.cut(Cut::Clear, &mut Random::from_seed(1)).names, 2);
    assert!(cut.look_up(Tree::ROOT, name("directory")).is_err());
    tree.sync_directory(directory).unwrap();
    let mut cut = tree.clone();
    cut.cut(Cut::Clear, &mut Random::from_seed(1));
    assert!(cut.look_up(Tree::ROOT, name("directory")).is_err(), "the name of the directory was not synced");
    tree.sync_directory(Tree::ROOT).unwrap();
    tree.cut(Cut::Clear, &mut Random::from_seed(1));
    assert_eq!(tree.look_up(directory, name("file")), Ok(ino));
    assert_eq!(contents(&tree, ino), b"bytes");
    tree.remove(directory, name("file"), false).unwrap();
    tree.cut(Cut::Clear, &mut Random::from_seed(1));
    assert_eq!(contents(&tree, ino), b"bytes", "its removal was not synced");
}

#[test]
fn a_renaming_is_done_or_not() {
    let mut seen = HashSet::new();
    for seed in 0..ROUNDS {
        let (mut tree, old) = with_file();
        let new = tree.create(Tree::ROOT, name("new"), false).unwrap();
        tree.sync_directory(Tree::ROOT).unwrap();
        tree.rename((Tree::ROOT, name("new")), (Tree::ROOT, name("file"))).unwrap();
        tree.cut(CUTS[(seed % 3) as usize], &mut Random::from_seed(seed));
        let names = tree.list(Tree::ROOT).unwrap();
        let found: Vec<Ino> = names.iter().map(|(_, ino)| *ino).collect();
        assert!(found == [old, new] || found == [new], "{names:?}");
        seen.insert(found.len());
    }
    assert_eq!(seen.len(), 2);
}

#[cfg(target_os = "linux")]
#[test]
fn as_a_file_system_it_takes_locks_and_forgets_what_was_not_synced() {
    use std::{
        fs::{self, File},
        io::Write as _,
    };

    use crate::fuse_disk::Mounted;

    let disk = match Mounted::new() {
        Ok(disk) => disk,
        Err(error) => {
            assert!(std::env::var_os("CI").is_none(), "there is no FUSE here: {error}");
            eprintln!("there is no FUSE here ({error}): the disk that forgets was NOT tested");
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
    assert!(File::open(disk.path("a/file")).unwrap().try_lock().is_err(), "a lock keeps others out");
    for directory in [disk.path("a"), disk.root().to_owned()] {
        File::open(directory).unwrap().sync_all().unwrap();
    }
    fs::write(disk.path("a/other"), b"nobody synced this").unwrap();
    drop(file);
    let lost = disk.cut(Cut::Clear, &mut random);
    assert_eq!(lost, Lost { writes: 2, bytes: 26, names: 1 });
    let names: Vec<_> = fs::read_dir(disk.path("a")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["file"]);
    assert_eq!(fs::read(disk.path("a/file")).unwrap(), b"synced");
    fs::rename(disk.path("a/file"), disk.path("b")).unwrap();
    fs::remove_dir(disk.path("a")).unwrap();
    assert_eq!(disk.bytes(), 6);
}
