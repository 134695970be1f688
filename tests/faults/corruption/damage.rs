//! What may become of files.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use crate::{fixtures::Sample, support::seeded_rng::Random};

const PAGE: u64 = 4096;

/// One thing that has happened to a store while nobody had it open. Files are named from the store's directory on.
#[derive(Clone, Debug)]
pub enum Damage {
    /// Bits are not what they were: where, and which.
    Flipped { file: String, at: Vec<(u64, u8)> },
    /// Bytes are zero.
    Zeroed { file: String, from: u64, bytes: u64 },
    /// Bytes are anything.
    Overwritten { file: String, from: u64, bytes: u64, seed: u8 },
    /// One page is where another was.
    Misplaced { file: String, from: u64, to: u64 },
    /// The file ends there.
    Truncated { file: String, at: u64 },
    /// The file is one of an earlier time.
    Old { file: String },
    /// The file is not there.
    Removed { file: String },
    /// Each is where the other was.
    Swapped { one: String, other: String },
}

/// `snap` is whichever snapshot there is.
const DB: &str = "log/db";
const CONF: &str = "log/conf";
const SNAP: &str = "snap";
const MARK: &str = "mark";

impl Damage {
    /// As much of it to the log of the tables as to the files of the journal and of the inboxes, where most bytes are.
    pub fn choose(random: &mut Random, sample: &Sample, case: u64) -> Self {
        let length = |file: &str| {
            find(&sample.store, file).map_or(1, |path| fs::metadata(path).map_or(1, |file| file.len())).max(1)
        };
        let mut within = |bound: u64| random.within(0..=bound.max(1) - 1);
        let large = |at: u64| sample.large[at as usize % sample.large.len()].clone();
        let file = if case.is_multiple_of(2) { DB.to_owned() } else { large(within(1 << 20)) };
        // sled's file is zeros behind the last thing written: most of the damage goes where there is something.
        let end = if file == DB && within(8) > 0 { sample.written } else { length(&file) };
        let kind = within(12);
        let small = [CONF, SNAP, MARK][within(3) as usize].to_owned();
        match kind {
            0 | 1 => Self::Flipped { file, at: vec![(within(end), 1 << within(8))] },
            2 => Self::Flipped { file, at: (0..10).map(|_| (within(end), 1 << within(8))).collect() },
            3 => Self::Zeroed { file, from: within(end) / PAGE * PAGE, bytes: PAGE },
            4 => Self::Zeroed { file, from: within(end) / 512 * 512, bytes: 512 << within(9) },
            5 => Self::Overwritten { file, from: within(end), bytes: 1 << within(17), seed: within(256) as u8 },
            6 => Self::Misplaced { from: within(end) / PAGE * PAGE, to: within(end) / PAGE * PAGE, file },
            7 => Self::Truncated { at: within(end), file },
            8 => Self::Truncated { at: end.saturating_sub(within(2 * PAGE)), file },
            9 => Self::Old { file: [&file, &file, SNAP, MARK][within(4) as usize].to_owned() },
            10 => match within(4) {
                0 => Self::Removed { file: [&file, CONF, SNAP, MARK][within(4) as usize].to_owned() },
                1 => Self::Truncated { at: within(length(&small)), file: small },
                _ => Self::Flipped { at: vec![(within(length(&small)), 1 << within(8))], file: small },
            },
            _ => {
                let other = large(within(1 << 20));
                let pairs =
                    [(&file, SNAP), (&file, CONF), (&file, &other), (&file, &other), (&other, MARK), (&file, DB)];
                let (one, other) = pairs[within(6) as usize];
                Self::Swapped { one: one.clone(), other: other.to_owned() }
            }
        }
    }

    /// One word.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Flipped { file, .. } | Self::Truncated { file, .. } if !file.contains('/') => "small files",
            Self::Flipped { .. } => "flipped",
            Self::Zeroed { .. } => "zeroed",
            Self::Overwritten { .. } => "overwritten",
            Self::Misplaced { .. } => "misplaced",
            Self::Truncated { .. } => "truncated",
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
            Self::Misplaced { file, from, to } => {
                let Some(file) = open(file) else { return };
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
