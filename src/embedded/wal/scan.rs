//! Scans the segments when a store opens: finds the records, and where the log ends.

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
    framing::{self, Kind},
};

/// Holds the result of a scan: contiguous records.
#[derive(Debug)]
pub struct WalScan {
    /// Records up to this one are flushed, so they were not needed.
    pub flushed: u64,
    pub(super) state: WalState,
    /// Segments that are no longer needed.
    pub(super) obsolete: Vec<u64>,
    /// New length of the last segment, if a torn end must be cut off.
    pub(super) cut: Option<u64>,
}

/// Visits contiguous records from offset `at` on, numbered from `number`. Returns the offset of their end, and the next
/// number.
pub(super) fn visit_records(
    bytes: &[u8],
    mut at: usize,
    mut number: u64,
    mut visit: impl FnMut(&Record<'_>, usize),
) -> (usize, u64) {
    while let Some(record) = record_at(bytes, at).filter(|record| record.number == number) {
        visit(&record, at);
        (at, number) = (record.end, number + 1);
    }
    (at, number)
}

/// Finds the offset of the record with this number, from `at` on.
pub(super) fn find_record(bytes: &[u8], mut at: usize, number: u64) -> Option<usize> {
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
fn highest_synced(bytes: &[u8], mut at: usize) -> u64 {
    let mut synced = 0;
    while let Some(found) = framing::find(Kind::Record, bytes, at) {
        let Some(record) = record_at(bytes, found) else { break };
        synced = synced.max(record.synced);
        at = record.end;
    }
    synced
}

/// Scans the segments in `directory`. Changes nothing.
///
/// Records up to `flushed` are not needed. Records up to `watermark` are known to be synced, as are those that any
/// later record states as synced.
///
/// # Errors
/// Fails if a synced record that is needed is missing or damaged.
pub(super) fn scan(directory: &Path, flushed: u64, watermark: u64) -> Opened<WalScan> {
    let (mut numbers, mut empty) = (Vec::new(), Vec::new());
    for first in file_io::file_numbers(directory)? {
        // An empty file has no records, whatever its name states.
        let length = fs::metadata(directory.join(file_io::file_name(first)))?.len();
        if length > 0 { numbers.push(first) } else { empty.push(first) }
    }
    let state = WalState { first: flushed + 1, ..WalState::default() };
    let mut scan = WalScan { flushed, state, obsolete: empty, cut: None };
    // The first unreadable record.
    let mut damage: Option<DamagedRecord> = None;
    let mut synced = watermark;
    for (at, first) in numbers.iter().copied().enumerate() {
        if numbers.get(at + 1).is_some_and(|next| *next <= flushed + 1) {
            scan.obsolete.push(first);
            continue;
        }
        let path = directory.join(file_io::file_name(first));
        let file = File::options().read(true).write(true).open(&path)?;
        let length = file.metadata()?.len();
        let bytes = read_at(&file, 0, usize::try_from(length).unwrap_or(usize::MAX))?;
        if damage.is_some() {
            synced = synced.max(highest_synced(&bytes, 0));
            scan.obsolete.push(first);
            continue;
        }
        let state = &mut scan.state;
        let next = state.first + state.locations.len() as u64;
        let damage_at = |at: u64, number| DamagedRecord { file: file_name_of(directory, first), at, number, synced: 0 };
        if first > next || first != next && !state.locations.is_empty() {
            // A segment before this one is missing, or this is not the next one.
            damage = Some(damage_at(0, next));
            synced = synced.max(highest_synced(&bytes, 0));
            scan.obsolete.push(first);
            continue;
        }
        let mut locations = Vec::new();
        let mut add_location = |record: &Record<'_>, at: usize| {
            if record.number > flushed {
                locations.push(RecordLocation { segment: first, at: at as u32, length: (record.end - at) as u32 });
            }
        };
        let (mut end, mut next) = visit_records(&bytes, 0, first, &mut add_location);
        if next <= flushed
            && let Some(at) = find_record(&bytes, end, flushed + 1)
        {
            // The unreadable part before it is not needed.
            (end, next) = visit_records(&bytes, at, flushed + 1, &mut add_location);
        }
        if (end as u64) < length {
            damage = Some(damage_at(end as u64, next.max(flushed + 1)));
            synced = synced.max(highest_synced(&bytes, end));
            scan.cut = Some(end as u64);
        }
        if locations.is_empty() {
            // No record in it continues from the checkpoint.
            scan.obsolete.push(first);
            scan.cut = None;
            continue;
        }
        state.locations.extend(locations);
        state.segments.push_back(Segment { first, file: Arc::new(file), length, allocated: length });
    }
    let last = scan.state.last().unwrap_or(0).max(flushed);
    if synced > last {
        let file =
            numbers.last().map_or_else(|| file_name_of(directory, last + 1), |first| file_name_of(directory, *first));
        let missing = DamagedRecord { file, at: 0, number: last + 1, synced };
        return Err(OpenError::Damage(DamagedRecord { synced, ..damage.unwrap_or(missing) }));
    }
    Ok(scan)
}
