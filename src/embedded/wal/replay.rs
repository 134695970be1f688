//! Reads the segments when a store opens, and finds where they end.

use std::{
    fs::{self, File},
    path::Path,
    sync::Arc,
};

use super::layout::{
    DamagedRecord, OpenError, Opened, Record, RecordLocation, Segment, WalState, file_name_of, record_at,
};
use crate::embedded::{
    file_io::{self, read_at},
    value_log::framing::{self, Kind},
};

/// Result of scanning the segments: the records without a gap.
#[derive(Debug)]
pub struct WalScan {
    /// Records up to this one were not needed.
    pub flushed: u64,
    pub(super) state: WalState,
    /// Files that are not needed any more.
    pub(super) done: Vec<u64>,
    /// New length of the last file, if a torn end is to be cut off.
    pub(super) cut: Option<u64>,
}

/// Visits the records from offset `at` on, which are numbered from `number`. Returns the offset of their end, and the
/// next number.
pub(super) fn visit(
    bytes: &[u8],
    mut at: usize,
    mut number: u64,
    mut see: impl FnMut(&Record<'_>, usize),
) -> (usize, u64) {
    while let Some(record) = record_at(bytes, at).filter(|record| record.number == number) {
        see(&record, at);
        (at, number) = (record.end, number + 1);
    }
    (at, number)
}

/// Finds the offset of the record with this number, from `at` on.
pub(super) fn find(bytes: &[u8], mut at: usize, number: u64) -> Option<usize> {
    loop {
        let found = framing::find(Kind::Record, bytes, at)?;
        let record = record_at(bytes, found)?;
        if record.number == number {
            return Some(found);
        }
        at = record.end;
    }
}

/// Returns the highest record that any record from `at` on states as synced.
fn synced_behind(bytes: &[u8], mut at: usize) -> u64 {
    let mut synced = 0;
    while let Some(found) = framing::find(Kind::Record, bytes, at) {
        let Some(record) = record_at(bytes, found) else { break };
        synced = synced.max(record.synced);
        at = record.end;
    }
    synced
}

pub(super) fn scan(directory: &Path, flushed: u64, watermark: u64) -> Opened<WalScan> {
    let (mut numbers, mut empty) = (Vec::new(), Vec::new());
    for first in file_io::file_numbers(directory)? {
        // The name of an empty file means nothing.
        let length = fs::metadata(directory.join(file_io::file_name(first)))?.len();
        if length > 0 { numbers.push(first) } else { empty.push(first) }
    }
    let state = WalState { first: flushed + 1, ..WalState::default() };
    let mut scan = WalScan { flushed, state, done: empty, cut: None };
    // The first unreadable place.
    let mut broken: Option<DamagedRecord> = None;
    let mut synced = watermark;
    for (at, first) in numbers.iter().copied().enumerate() {
        if numbers.get(at + 1).is_some_and(|next| *next <= flushed + 1) {
            scan.done.push(first);
            continue;
        }
        let path = directory.join(file_io::file_name(first));
        let file = File::options().read(true).write(true).open(&path)?;
        let length = file.metadata()?.len();
        let bytes = read_at(&file, 0, usize::try_from(length).unwrap_or(usize::MAX))?;
        if broken.is_some() {
            synced = synced.max(synced_behind(&bytes, 0));
            scan.done.push(first);
            continue;
        }
        let state = &mut scan.state;
        let next = state.first + state.locations.len() as u64;
        let here = |at: u64, number| DamagedRecord { file: file_name_of(directory, first), at, number, synced: 0 };
        if first > next || first != next && !state.locations.is_empty() {
            // A file between the last one and this is missing, or this is not the next one.
            broken = Some(here(0, next));
            synced = synced.max(synced_behind(&bytes, 0));
            scan.done.push(first);
            continue;
        }
        let mut locations = Vec::new();
        let mut see = |record: &Record<'_>, at: usize| {
            if record.number > flushed {
                locations.push(RecordLocation { file: first, at: at as u32, length: (record.end - at) as u32 });
            }
        };
        let (mut end, mut next) = visit(&bytes, 0, first, &mut see);
        if next <= flushed
            && let Some(at) = find(&bytes, end, flushed + 1)
        {
            // The unreadable part is not needed.
            (end, next) = visit(&bytes, at, flushed + 1, &mut see);
        }
        if (end as u64) < length {
            broken = Some(here(end as u64, next.max(flushed + 1)));
            synced = synced.max(synced_behind(&bytes, end));
            scan.cut = Some(end as u64);
        }
        if locations.is_empty() {
            // No record in it continues from the checkpoint.
            scan.done.push(first);
            scan.cut = None;
            continue;
        }
        state.locations.extend(locations);
        state.files.push_back(Segment { first, file: Arc::new(file), length, allocated: length });
    }
    let last = scan.state.last().unwrap_or(0).max(flushed);
    if synced > last {
        let file =
            numbers.last().map_or_else(|| file_name_of(directory, last + 1), |first| file_name_of(directory, *first));
        let ends = DamagedRecord { file, at: 0, number: last + 1, synced };
        return Err(OpenError::Damage(DamagedRecord { synced, ..broken.unwrap_or(ends) }));
    }
    Ok(scan)
}
