//! What may become of files.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use crate::{sample::Sample, support::random::Random};

const PAGE: u64 = 4096;

/// One thing that has happened to a store while nobody had it open.
#[derive(Clone, Debug)]
pub enum Damage {
    /// Bits are not what they were: where, and which.
    Flipped { file: &'static str, at: Vec<(u64, u8)> },
    /// Bytes are zero.
    Zeroed { file: &'static str, from: u64, bytes: u64 },
    /// Bytes are anything.
    Overwritten { file: &'static str, from: u64, bytes: u64, seed: u8 },
    /// One page is where another was.
    Misplaced { from: u64, to: u64 },
    /// The file ends there.
    Truncated { file: &'static str, at: u64 },
    /// The file is one of an earlier time.
    Old { file: &'static str },
    /// The file is not there.
    Removed { file: &'static str },
    /// Each is where the other was.
    Swapped { one: &'static str, other: &'static str },
}

/// In a store's directory; `snap` is whichever snapshot there is.
const DB: &str = "log/db";
const CONF: &str = "log/conf";
const SNAP: &str = "snap";
const MARK: &str = "mark";

impl Damage {
    /// Most of it to the log, where nearly all bytes are.
    pub fn choose(random: &mut Random, sample: &Sample, case: u64) -> Self {
        let length = |file: &str| {
            find(&sample.store, file).map_or(1, |path| fs::metadata(path).map_or(1, |file| file.len())).max(1)
        };
        // sled's file is zeros behind the last thing written: most of the damage goes where there is something.
        let db = if random.once_in(8) { length(DB) } else { sample.written };
        let mut within = |bound: u64| random.within(0..=bound.max(1) - 1);
        let kind = case / 3 % 12;
        let small = [CONF, SNAP, MARK][within(3) as usize];
        match kind {
            0 | 1 => Self::Flipped { file: DB, at: vec![(within(db), 1 << within(8))] },
            2 => Self::Flipped { file: DB, at: (0..10).map(|_| (within(db), 1 << within(8))).collect() },
            3 => Self::Zeroed { file: DB, from: within(db) / PAGE * PAGE, bytes: PAGE },
            4 => Self::Zeroed { file: DB, from: within(db) / 512 * 512, bytes: 512 << within(9) },
            5 => Self::Overwritten { file: DB, from: within(db), bytes: 1 << within(17), seed: within(256) as u8 },
            6 => Self::Misplaced { from: within(db) / PAGE * PAGE, to: within(db) / PAGE * PAGE },
            7 => Self::Truncated { file: DB, at: within(db) },
            8 => Self::Truncated { file: DB, at: db.saturating_sub(within(2 * PAGE)) },
            9 => Self::Old { file: [DB, DB, SNAP, MARK][within(4) as usize] },
            10 => match within(4) {
                0 => Self::Removed { file: [DB, CONF, SNAP, MARK][within(4) as usize] },
                1 => Self::Truncated { file: small, at: within(length(small)) },
                _ => Self::Flipped { file: small, at: vec![(within(length(small)), 1 << within(8))] },
            },
            _ => {
                let pairs = [(DB, SNAP), (DB, CONF), (CONF, SNAP), (MARK, CONF), (MARK, SNAP), (DB, MARK)];
                let (one, other) = pairs[within(6) as usize];
                Self::Swapped { one, other }
            }
        }
    }

    /// One word.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Flipped { file: DB, .. } => "flipped",
            Self::Zeroed { .. } => "zeroed",
            Self::Overwritten { .. } => "overwritten",
            Self::Misplaced { .. } => "misplaced",
            Self::Truncated { file: DB, .. } => "truncated",
            Self::Flipped { .. } | Self::Truncated { .. } => "small files",
            Self::Old { .. } => "older",
            Self::Removed { .. } => "removed",
            Self::Swapped { .. } => "swapped",
        }
    }

    /// Lets it happen to the store in `directory`.
    pub fn happen(&self, directory: &Path, earlier: &Path) {
        let open = |file: &str| {
            let path = find(directory, file)?;
            Some(File::options().read(true).write(true).open(path).expect("a file"))
        };
        match self {
            Self::Flipped { file, at } => {
                let Some(file) = open(file) else { return };
                for (at, bit) in at {
                    let mut byte = [0];
                    if file.read_at(&mut byte, *at).expect("it is read") == 1 {
                        file.write_all_at(&[byte[0] ^ bit], *at).expect("it is written");
                    }
                }
            }
            Self::Zeroed { file, from, bytes } => fill(open(file), *from, *bytes, |_| 0),
            Self::Overwritten { file, from, bytes, seed } => {
                fill(open(file), *from, *bytes, |at| (at as u8).wrapping_mul(31).wrapping_add(*seed));
            }
            Self::Misplaced { from, to } => {
                let Some(file) = open(DB) else { return };
                let mut page = vec![0; PAGE as usize];
                let read = file.read_at(&mut page, *from).expect("it is read");
                let room = file.metadata().expect("a file").len().saturating_sub(*to) as usize;
                file.write_all_at(&page[..read.min(room)], *to).expect("it is written");
            }
            Self::Truncated { file, at } => {
                if let Some(file) = open(file) {
                    file.set_len(*at).expect("it is cut");
                }
            }
            Self::Old { file } => {
                if let (Some(old), Some(new)) = (find(earlier, file), find(directory, file)) {
                    fs::remove_file(&new).expect("it goes");
                    let name = old.file_name().expect("a name");
                    fs::copy(&old, new.with_file_name(name)).expect("a copy");
                }
            }
            Self::Removed { file } => {
                if let Some(path) = find(directory, file) {
                    fs::remove_file(path).expect("it goes");
                }
            }
            Self::Swapped { one, other } => {
                if let (Some(one), Some(other)) = (find(directory, one), find(directory, other)) {
                    let bytes = fs::read(&one).expect("it is read");
                    fs::copy(&other, &one).expect("a copy");
                    fs::write(&other, bytes).expect("it is written");
                }
            }
        }
    }
}

fn fill(file: Option<File>, from: u64, bytes: u64, byte: impl Fn(u64) -> u8) {
    let Some(file) = file else { return };
    let length = file.metadata().expect("a file").len();
    let bytes: Vec<u8> = (from..(from + bytes).min(length)).map(byte).collect();
    file.write_all_at(&bytes, from).expect("it is written");
}

fn find(directory: &Path, file: &str) -> Option<PathBuf> {
    if file != SNAP {
        return Some(directory.join(file)).filter(|path| path.exists());
    }
    let files = fs::read_dir(directory.join("log")).ok()?;
    let snapshots = files.filter_map(|file| Some(file.ok()?.path()));
    snapshots.filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("snap."))).max()
}
