//! Simulates one file.

use super::{Losses, PowerCut};
use crate::support::seeded_rng::Random;

/// Size that a disk writes atomically, in bytes.
const SECTOR_BYTES: usize = 512;

/// Size that an operating system writes back at once, in bytes.
const PAGE_BYTES: usize = 4096;

/// Limit of unsynced changes. Above it the older half is written back, as an operating system does.
const UNSYNCED_MAX: usize = 2048;

/// An unsynced change.
#[derive(Clone, Debug)]
enum Change {
    Write { at: usize, bytes: Vec<u8> },
    Length(usize),
}

/// A file, with its contents now and after a power cut.
#[derive(Clone, Debug, Default)]
pub struct File {
    live: Vec<u8>,
    synced: Vec<u8>,
    unsynced: Vec<Change>,
}

impl File {
    pub fn len(&self) -> usize {
        self.live.len()
    }

    pub fn read(&self, at: usize, length: usize) -> &[u8] {
        let at = at.min(self.live.len());
        &self.live[at..self.live.len().min(at.saturating_add(length))]
    }

    pub fn write(&mut self, at: usize, bytes: &[u8]) {
        write(&mut self.live, at, bytes);
        self.add_unsynced(Change::Write { at, bytes: bytes.to_vec() });
    }

    pub fn set_len(&mut self, length: usize) {
        self.live.resize(length, 0);
        self.add_unsynced(Change::Length(length));
    }

    fn add_unsynced(&mut self, change: Change) {
        self.unsynced.push(change);
        if self.unsynced.len() > UNSYNCED_MAX {
            self.unsynced.drain(..UNSYNCED_MAX / 2).for_each(|change| change.apply(&mut self.synced));
        }
    }

    /// Makes all changes so far durable.
    pub fn sync(&mut self) {
        self.unsynced.drain(..).for_each(|change| change.apply(&mut self.synced));
    }

    /// Simulates a failed sync after which the system takes the changes for written, although the disk lacks them.
    ///
    /// They stay readable until a power cut. A later sync does not make them durable, unless they are made again.
    pub fn fail_sync(&mut self) {
        self.unsynced.clear();
    }

    /// Simulates a power cut.
    pub fn cut_power(&mut self, cut: PowerCut, random: &mut Random) -> Losses {
        let unsynced = std::mem::take(&mut self.unsynced);
        let mut losses = Losses::default();
        match cut {
            PowerCut::LoseAll => unsynced.iter().for_each(|change| losses.count(change.bytes(), 0)),
            PowerCut::Torn => self.keep_first(unsynced, random, &mut losses),
            PowerCut::Reordered => self.keep_any(unsynced, random, &mut losses),
        }
        self.live.clone_from(&self.synced);
        losses
    }

    /// Keeps the first few changes, and the first few sectors of the next one.
    fn keep_first(&mut self, unsynced: Vec<Change>, random: &mut Random, losses: &mut Losses) {
        let whole = random.within(0..=unsynced.len() as u64) as usize;
        for (nth, change) in unsynced.into_iter().enumerate() {
            let bytes = change.bytes();
            let kept = match change {
                change if nth < whole => {
                    change.apply(&mut self.synced);
                    bytes
                }
                Change::Write { at, bytes } if nth == whole && !bytes.is_empty() => {
                    let sectors = pieces(at, &bytes, SECTOR_BYTES).count() as u64;
                    let some = random.within(0..=sectors - 1) as usize;
                    let torn = pieces(at, &bytes, SECTOR_BYTES).take(some).map(|(_, piece)| piece.len()).sum();
                    write(&mut self.synced, at, &bytes[..torn]);
                    torn
                }
                _ => 0,
            };
            losses.count(bytes, kept);
        }
    }

    /// Keeps an arbitrary selection of sectors, or of pages.
    fn keep_any(&mut self, unsynced: Vec<Change>, random: &mut Random, losses: &mut Losses) {
        let size = if random.one_in(2) { SECTOR_BYTES } else { PAGE_BYTES };
        // Of eight pieces 1, 4 or 7 are kept on average.
        let eighths = [1, 4, 7][random.within(0..=2) as usize];
        for change in unsynced {
            let bytes = change.bytes();
            let mut kept = 0;
            match change {
                Change::Write { at, bytes } => {
                    for (at, piece) in pieces(at, &bytes, size) {
                        if random.within(1..=8) <= eighths {
                            write(&mut self.synced, at, piece);
                            kept += piece.len();
                        }
                    }
                }
                Change::Length(_) => {
                    if random.within(1..=8) <= eighths {
                        change.apply(&mut self.synced);
                        kept = bytes;
                    }
                }
            }
            losses.count(bytes, kept);
        }
    }
}

impl Change {
    /// Returns its size in bytes. A change of length counts as 1.
    fn bytes(&self) -> usize {
        match self {
            Self::Write { bytes, .. } => bytes.len(),
            Self::Length(_) => 1,
        }
    }

    fn apply(self, to: &mut Vec<u8>) {
        match self {
            Self::Write { at, bytes } => write(to, at, &bytes),
            Self::Length(length) => to.resize(length, 0),
        }
    }
}

fn write(to: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    if bytes.is_empty() {
        return;
    }
    let end = at + bytes.len();
    if to.len() < end {
        to.resize(end, 0);
    }
    to[at..end].copy_from_slice(bytes);
}

/// Splits a write at multiples of `size`. Returns the offset and the bytes of each piece.
fn pieces(at: usize, bytes: &[u8], size: usize) -> impl Iterator<Item = (usize, &[u8])> {
    let end = at + bytes.len();
    let mut from = at;
    std::iter::from_fn(move || {
        let to = ((from / size + 1) * size).min(end);
        let piece = (from < end).then(|| (from, &bytes[from - at..to - at]));
        from = to;
        piece
    })
}
