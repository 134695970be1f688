//! Scans the segments when a store opens: finds the records, and where the log ends.

use std::{fs::File, io, path::Path, sync::Arc};

use super::layout::{
    DamagedRecord, OpenError, Opened, Record, RecordLocation, Segment, WalState, file_name_of, record_at,
};
use crate::embedded::{
    file_io::{self, read_at, to_u32},
    framing::{self, Kind},
};

/// Bytes per read of a file that may be blank.
const READ_BYTES: usize = 64 << 10;

/// Holds the result of a scan: contiguous records.
#[derive(Debug)]
pub struct WalScan {
    /// Records up to this one are flushed, so they were not needed.
    pub flushed: u64,
    pub(super) state: WalState,
    /// Segments that are no longer needed.
    pub(super) obsolete: Vec<u64>,
    /// Bytes other than zeros follow the last record.
    pub(super) has_torn_end: bool,
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
/// other record states as synced.
///
/// # Errors
/// Fails if a synced record that is needed is missing or damaged.
pub(super) fn scan(directory: &Path, flushed: u64, watermark: u64) -> Opened<WalScan> {
    let state = WalState { first: flushed + 1, ..WalState::default() };
    let mut scan = WalScan { flushed, state, obsolete: Vec::new(), has_torn_end: false };
    let mut files = Vec::new();
    for first in file_io::file_numbers(directory)? {
        let file = File::options().read(true).write(true).open(directory.join(file_io::file_name(first)))?;
        // A file without data has no records, whatever its name states.
        if is_blank(&file)? { scan.obsolete.push(first) } else { files.push((first, Arc::new(file))) }
    }
    // The first unreadable record.
    let mut damage: Option<DamagedRecord> = None;
    let (mut synced, mut last_file) = (watermark, flushed + 1);
    for (at, (first, file)) in files.iter().enumerate() {
        let first = *first;
        if files.get(at + 1).is_some_and(|(next, _)| *next <= flushed + 1) {
            scan.obsolete.push(first);
            continue;
        }
        let length = file.metadata()?.len();
        let bytes = read_at(file, 0, to_u32(length)? as usize)?;
        last_file = first;
        let state = &mut scan.state;
        let next = state.first + state.locations.len() as u64;
        let damage_at = |at: u64, number| DamagedRecord { file: file_name_of(directory, first), at, number, synced: 0 };
        if damage.is_none() && (first > next || first != next && !state.locations.is_empty()) {
            // A segment before this one is missing, or this is not the next one.
            damage = Some(damage_at(0, next));
        }
        if damage.is_some() {
            synced = synced.max(highest_synced(&bytes, 0));
            scan.obsolete.push(first);
            continue;
        }
        let mut locations = Vec::new();
        let mut add_record = |record: &Record<'_>, at: usize| {
            synced = synced.max(record.synced);
            if record.number > flushed {
                // The length of the file fits into 32 bits.
                locations.push(RecordLocation { segment: first, at: at as u32, length: (record.end - at) as u32 });
            }
        };
        let (mut end, mut next) = visit_records(&bytes, 0, first, &mut add_record);
        if next <= flushed
            && let Some(at) = find_record(&bytes, end, flushed + 1)
        {
            // The unreadable part before it is not needed.
            (end, next) = visit_records(&bytes, at, flushed + 1, &mut add_record);
        }
        scan.has_torn_end = !is_zero(&bytes[end..]);
        if scan.has_torn_end {
            damage = Some(damage_at(end as u64, next.max(flushed + 1)));
            synced = synced.max(highest_synced(&bytes, end));
        }
        if locations.is_empty() {
            // No record in it continues from the checkpoint.
            scan.obsolete.push(first);
            scan.has_torn_end = false;
            continue;
        }
        state.locations.extend(locations);
        state.segments.push_back(Segment { first, file: file.clone(), length: end as u64, allocated: length });
    }
    let last = scan.state.last().unwrap_or(0).max(flushed);
    if synced > last {
        let file = file_name_of(directory, last_file);
        let missing = DamagedRecord { file, at: 0, number: last + 1, synced };
        return Err(OpenError::Damage(DamagedRecord { synced, ..damage.unwrap_or(missing) }));
    }
    scan.state.synced = synced;
    Ok(scan)
}

/// Returns whether a file has no bytes other than zeros.
fn is_blank(file: &File) -> io::Result<bool> {
    let mut at = 0;
    loop {
        let bytes = read_at(file, at, READ_BYTES)?;
        if bytes.is_empty() || !is_zero(&bytes) {
            return Ok(bytes.is_empty());
        }
        at += bytes.len() as u64;
    }
}

/// Returns whether all bytes are zero, as in the preallocated part of a segment.
pub fn is_zero(bytes: &[u8]) -> bool {
    const ZEROS: [u8; 4096] = [0; 4096];
    bytes.chunks(ZEROS.len()).all(|chunk| chunk == &ZEROS[..chunk.len()])
}
