//! One file.

use super::{Cut, Lost};
use crate::support::seeded_rng::Random;

/// What a disk writes whole or not at all, in bytes.
const SECTOR: usize = 512;

/// What a system hands to a disk at once, in bytes.
const PAGE: usize = 4096;

/// Changes that are kept waiting for an fsync. Beyond them the older ones are written back, as a system does by itself.
const WAITING_MAX: usize = 2048;

/// One change that no fsync has covered.
#[derive(Clone, Debug)]
enum Change {
    Write { at: usize, bytes: Vec<u8> },
    Length(usize),
}

/// A file as it is read now, and as it would be if the power went.
#[derive(Clone, Debug, Default)]
pub struct File {
    live: Vec<u8>,
    synced: Vec<u8>,
    waiting: Vec<Change>,
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
        self.wait(Change::Write { at, bytes: bytes.to_vec() });
    }

    pub fn set_len(&mut self, length: usize) {
        self.live.resize(length, 0);
        self.wait(Change::Length(length));
    }

    fn wait(&mut self, change: Change) {
        self.waiting.push(change);
        if self.waiting.len() > WAITING_MAX {
            self.waiting.drain(..WAITING_MAX / 2).for_each(|change| change.apply(&mut self.synced));
        }
    }

    /// Whatever was done up to here survives.
    pub fn sync(&mut self) {
        self.waiting.drain(..).for_each(|change| change.apply(&mut self.synced));
    }

    /// The power goes, and comes again.
    pub fn cut(&mut self, cut: Cut, random: &mut Random) -> Lost {
        let waiting = std::mem::take(&mut self.waiting);
        let mut lost = Lost::default();
        match cut {
            Cut::Clear => waiting.iter().for_each(|change| lost.count(change.bytes(), 0)),
            Cut::Torn => self.tear(waiting, random, &mut lost),
            Cut::Reordered => self.scatter(waiting, random, &mut lost),
        }
        self.live.clone_from(&self.synced);
        lost
    }

    /// Keeps the first few changes, and of the next its first few sectors.
    fn tear(&mut self, waiting: Vec<Change>, random: &mut Random, lost: &mut Lost) {
        let whole = random.within(0..=waiting.len() as u64) as usize;
        for (nth, change) in waiting.into_iter().enumerate() {
            let bytes = change.bytes();
            let survived = match change {
                change if nth < whole => {
                    change.apply(&mut self.synced);
                    bytes
                }
                Change::Write { at, bytes } if nth == whole && !bytes.is_empty() => {
                    let sectors = pieces(at, &bytes, SECTOR).count() as u64;
                    let some = random.within(0..=sectors - 1) as usize;
                    let torn = pieces(at, &bytes, SECTOR).take(some).map(|(_, piece)| piece.len()).sum();
                    write(&mut self.synced, at, &bytes[..torn]);
                    torn
                }
                _ => 0,
            };
            lost.count(bytes, survived);
        }
    }

    /// Keeps any of the pieces.
    fn scatter(&mut self, waiting: Vec<Change>, random: &mut Random, lost: &mut Lost) {
        let grain = if random.once_in(2) { SECTOR } else { PAGE };
        // Of eight pieces. Sometimes hardly any is kept, and sometimes hardly any lost.
        let kept = [1, 4, 7][random.within(0..=2) as usize];
        for change in waiting {
            let bytes = change.bytes();
            let mut survived = 0;
            match change {
                Change::Write { at, bytes } => {
                    for (at, piece) in pieces(at, &bytes, grain) {
                        if random.within(1..=8) <= kept {
                            write(&mut self.synced, at, piece);
                            survived += piece.len();
                        }
                    }
                }
                Change::Length(_) => {
                    if random.within(1..=8) <= kept {
                        change.apply(&mut self.synced);
                        survived = bytes;
                    }
                }
            }
            lost.count(bytes, survived);
        }
    }
}

impl Change {
    /// How much it weighs: a length as much as a byte.
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

/// A write, piece by piece as the disk has them, with where each begins.
fn pieces(at: usize, bytes: &[u8], grain: usize) -> impl Iterator<Item = (usize, &[u8])> {
    let end = at + bytes.len();
    let mut from = at;
    std::iter::from_fn(move || {
        let to = ((from / grain + 1) * grain).min(end);
        let piece = (from < end).then(|| (from, &bytes[from - at..to - at]));
        from = to;
        piece
    })
}
