//! Damages files of a store.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use crate::{fixtures::Fixture, support::seeded_rng::Random};

const PAGE_BYTES: u64 = 4096;

/// Damage to files of a closed store. File names are relative to the store's directory.
#[derive(Clone, Debug)]
pub enum Damage {
    /// Bits are inverted: offsets, and the mask of each.
    Flipped { file: String, bits: Vec<(u64, u8)> },
    /// Bytes are zero.
    Zeroed { file: String, from: u64, bytes: u64 },
    /// Bytes have other values, which depend on the seed.
    Overwritten { file: String, from: u64, bytes: u64, seed: u8 },
    /// A page is written to the place of another.
    Misplaced { file: String, from: u64, to: u64 },
    /// The file is cut to a length.
    Truncated { file: String, length: u64 },
    /// The file is replaced with an earlier version.
    Old { file: String },
    /// The file is removed.
    Removed { file: String },
    /// Two files have each other's content.
    Swapped { one: String, other: String },
}

const DB: &str = "log/db";
const CONF: &str = "log/conf";
/// The newest snapshot file of sled, `log/snap.*`.
const SNAP: &str = "snap";
const WATERMARK: &str = "mark";

impl Damage {
    /// Chooses a damage for a case.
    ///
    /// Even cases hit sled's log. Odd cases hit files of the WAL and the value log, which have most bytes.
    pub fn choose(random: &mut Random, fixture: &Fixture, case: u64) -> Self {
        let length = |file: &str| {
            find(&fixture.store, file).map_or(1, |path| fs::metadata(path).map_or(1, |file| file.len())).max(1)
        };
        let mut within = |bound: u64| random.within(0..=bound.max(1) - 1);
        let data_file = |n: u64| fixture.data_files[n as usize % fixture.data_files.len()].clone();
        let file = if case.is_multiple_of(2) { DB.to_owned() } else { data_file(within(1 << 20)) };
        // sled's file is zero behind the last write. Seven of eight damages hit the part before.
        let end = if file == DB && within(8) > 0 { fixture.db_written } else { length(&file) };
        let kind = within(12);
        let small = [CONF, SNAP, WATERMARK][within(3) as usize].to_owned();
        match kind {
            0 | 1 => Self::Flipped { file, bits: vec![(within(end), 1 << within(8))] },
            2 => Self::Flipped { file, bits: (0..10).map(|_| (within(end), 1 << within(8))).collect() },
            3 => Self::Zeroed { file, from: within(end) / PAGE_BYTES * PAGE_BYTES, bytes: PAGE_BYTES },
            4 => Self::Zeroed { file, from: within(end) / 512 * 512, bytes: 512 << within(9) },
            5 => Self::Overwritten { file, from: within(end), bytes: 1 << within(17), seed: within(256) as u8 },
            6 => Self::Misplaced {
                from: within(end) / PAGE_BYTES * PAGE_BYTES,
                to: within(end) / PAGE_BYTES * PAGE_BYTES,
                file,
            },
            7 => Self::Truncated { length: within(end), file },
            8 => Self::Truncated { length: end.saturating_sub(within(2 * PAGE_BYTES)), file },
            9 => Self::Old { file: [&file, &file, SNAP, WATERMARK][within(4) as usize].to_owned() },
            10 => match within(4) {
                0 => Self::Removed { file: [&file, CONF, SNAP, WATERMARK][within(4) as usize].to_owned() },
                1 => Self::Truncated { length: within(length(&small)), file: small },
                _ => Self::Flipped { bits: vec![(within(length(&small)), 1 << within(8))], file: small },
            },
            _ => {
                let other = data_file(within(1 << 20));
                let pairs =
                    [(&file, SNAP), (&file, CONF), (&file, &other), (&file, &other), (&other, WATERMARK), (&file, DB)];
                let (one, other) = pairs[within(6) as usize];
                Self::Swapped { one: one.clone(), other: other.to_owned() }
            }
        }
    }

    /// Names the kind of damage in the printed statistics.
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

    /// Damages the store in `directory`. `earlier` has the earlier versions of its files.
    pub fn apply(&self, directory: &Path, earlier: &Path) {
        let open = |file: &str| {
            let path = find(directory, file)?;
            Some(File::options().read(true).write(true).open(path).expect("a file"))
        };
        match self {
            Self::Flipped { file, bits } => {
                let Some(file) = open(file) else { return };
                for (offset, mask) in bits {
                    let mut byte = [0];
                    if file.read_at(&mut byte, *offset).expect("the file is readable") == 1 {
                        file.write_all_at(&[byte[0] ^ mask], *offset).expect("the file is writable");
                    }
                }
            }
            Self::Zeroed { file, from, bytes } => overwrite(open(file), *from, *bytes, |_| 0),
            Self::Overwritten { file, from, bytes, seed } => {
                overwrite(open(file), *from, *bytes, |offset| (offset as u8).wrapping_mul(31).wrapping_add(*seed));
            }
            Self::Misplaced { file, from, to } => {
                let Some(file) = open(file) else { return };
                let mut page = vec![0; PAGE_BYTES as usize];
                let read = file.read_at(&mut page, *from).expect("the file is readable");
                let left = file.metadata().expect("a file").len().saturating_sub(*to) as usize;
                file.write_all_at(&page[..read.min(left)], *to).expect("the file is writable");
            }
            Self::Truncated { file, length } => {
                if let Some(file) = open(file) {
                    file.set_len(*length).expect("the file is truncated");
                }
            }
            Self::Old { file } => {
                if let (Some(old), Some(new)) = (find(earlier, file), find(directory, file)) {
                    fs::remove_file(&new).expect("the file is removed");
                    let name = old.file_name().expect("a file name");
                    fs::copy(&old, new.with_file_name(name)).expect("a copy");
                }
            }
            Self::Removed { file } => {
                if let Some(path) = find(directory, file) {
                    fs::remove_file(path).expect("the file is removed");
                }
            }
            Self::Swapped { one, other } => {
                if let (Some(one), Some(other)) = (find(directory, one), find(directory, other)) {
                    let bytes = fs::read(&one).expect("the file is readable");
                    fs::copy(&other, &one).expect("a copy");
                    fs::write(&other, bytes).expect("the file is writable");
                }
            }
        }
    }
}

/// Overwrites bytes within the length of the file. `byte` maps an offset to its new value.
fn overwrite(file: Option<File>, from: u64, bytes: u64, byte: impl Fn(u64) -> u8) {
    let Some(file) = file else { return };
    let length = file.metadata().expect("a file").len();
    let bytes: Vec<u8> = (from..(from + bytes).min(length)).map(byte).collect();
    file.write_all_at(&bytes, from).expect("the file is writable");
}

/// Finds a file of the store, if it exists.
fn find(directory: &Path, file: &str) -> Option<PathBuf> {
    if file != SNAP {
        return Some(directory.join(file)).filter(|path| path.exists());
    }
    let files = fs::read_dir(directory.join("log")).ok()?;
    let snapshots = files.filter_map(|file| Some(file.ok()?.path()));
    snapshots.filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("snap."))).max()
}
