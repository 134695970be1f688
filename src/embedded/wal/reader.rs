//! Reads WAL records. Adjacent records are read with one call, and each has its own checksum.

use std::{fs::File, io, sync::Arc};

use bytes::Bytes;

use super::{
    layout::{RecordLocation, record_at},
    segment::WalFiles,
};
use crate::embedded::file_io::{fill, read_at};

/// Bytes per read call, unless a single record is larger.
const RUN_BYTES_MAX: u32 = 64 << 10;

/// Largest gap between two wanted records that one call reads over, in bytes. A second call would cost more.
const GAP_BYTES_MAX: u32 = 4 << 10;

/// Selects records of one segment that are read with one call.
struct Run<'a> {
    file: Arc<File>,
    numbers: &'a [u64],
    locations: Vec<RecordLocation>,
}

impl WalFiles {
    /// Reads a record. Returns `None` if it does not exist, or no longer. A damaged record is returned empty.
    pub fn get(&self, number: u64) -> io::Result<Option<Bytes>> {
        let found = self.state.read().location(number).map(|(segment, location)| (segment.file.clone(), location));
        let Some((file, location)) = found else { return Ok(None) };
        let bytes = read_at(&file, u64::from(location.at), location.length as usize)?;
        Ok(Some(match record_length(&bytes, number) {
            Some(length) => {
                let from = bytes.len() - length;
                Bytes::from(bytes).slice(from..)
            }
            None => Bytes::new(),
        }))
    }

    /// Visits records with ascending numbers, until `visit` returns false. Results are those of [`WalFiles::get`].
    ///
    /// Uses a buffer of [`RUN_BYTES_MAX`] bytes, or of the longest record.
    pub fn visit(&self, numbers: &[u64], visit: &mut dyn FnMut(u64, Option<&[u8]>) -> bool) -> io::Result<()> {
        let (mut rest, mut buffer) = (numbers, Vec::new());
        while let Some(first) = rest.first() {
            let Some(run) = self.run(rest) else {
                if !visit(*first, None) {
                    return Ok(());
                }
                rest = &rest[1..];
                continue;
            };
            rest = &rest[run.numbers.len()..];
            if !run.read(&mut buffer, visit)? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Selects the first record and those that are read together with it. Returns `None` if the first does not exist.
    ///
    /// The run holds the file open, so that it stays readable if it is removed meanwhile.
    fn run<'a>(&self, numbers: &'a [u64]) -> Option<Run<'a>> {
        let state = self.state.read();
        let (segment, first) = state.location(*numbers.first()?)?;
        let mut locations = vec![first];
        let mut end = first.end();
        for number in &numbers[1..] {
            let near = |location: &RecordLocation| {
                location.segment == first.segment
                    && location.at.saturating_sub(end) <= GAP_BYTES_MAX
                    && location.end() - first.at <= RUN_BYTES_MAX
            };
            let Some(location) = state.location(*number).map(|(_, location)| location).filter(near) else { break };
            locations.push(location);
            end = location.end();
        }
        Some(Run { file: segment.file.clone(), numbers: &numbers[..locations.len()], locations })
    }
}

impl Run<'_> {
    /// Reads the run with one call, and visits its records. Returns false if `visit` did.
    fn read(&self, buffer: &mut Vec<u8>, visit: &mut dyn FnMut(u64, Option<&[u8]>) -> bool) -> io::Result<bool> {
        let (first, last) = (self.locations[0], self.locations[self.locations.len() - 1]);
        let bytes = match read_into(&self.file, buffer, first.at, last.end()) {
            Ok(bytes) => bytes,
            // An unreadable part affects only the users with entries in it.
            Err(_) if self.locations.len() > 1 => return self.read_singly(buffer, visit),
            Err(error) => return Err(error),
        };
        for (number, location) in self.numbers.iter().zip(&self.locations) {
            let from = (location.at - first.at) as usize;
            let frame = bytes.get(from..).map_or(&[][..], |rest| &rest[..rest.len().min(location.length as usize)]);
            if !visit(*number, Some(record_in(frame, *number))) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn read_singly(&self, buffer: &mut Vec<u8>, visit: &mut dyn FnMut(u64, Option<&[u8]>) -> bool) -> io::Result<bool> {
        for (number, location) in self.numbers.iter().zip(&self.locations) {
            let bytes = read_into(&self.file, buffer, location.at, location.end())?;
            if !visit(*number, Some(record_in(bytes, *number))) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

fn read_into<'a>(file: &File, buffer: &'a mut Vec<u8>, from: u32, to: u32) -> io::Result<&'a [u8]> {
    let length = (to - from) as usize;
    if buffer.len() < length {
        buffer.resize(length, 0);
    }
    let read = fill(file, u64::from(from), &mut buffer[..length])?;
    Ok(&buffer[..read])
}

/// Returns the record in a frame, or empty bytes if the frame is damaged.
fn record_in(frame: &[u8], number: u64) -> &[u8] {
    record_length(frame, number).map_or(&[], |length| &frame[frame.len() - length..])
}

/// Returns the length of the record at the end of its frame.
fn record_length(frame: &[u8], number: u64) -> Option<usize> {
    let record = record_at(frame, 0).filter(|record| record.number == number && record.end == frame.len())?;
    Some(record.value.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(files: &WalFiles, numbers: &[u64]) -> Vec<(u64, Option<usize>)> {
        let mut found = Vec::new();
        let visit = &mut |number: u64, record: Option<&[u8]>| {
            assert_eq!(record.map(<[u8]>::to_vec), files.get(number).unwrap().map(|record| record.to_vec()));
            assert!(
                record.is_none_or(|record| record.iter().all(|byte| *byte == number as u8)),
                "the bytes are of this record"
            );
            found.push((number, record.map(<[u8]>::len)));
            true
        };
        files.visit(numbers, visit).unwrap();
        found
    }

    #[test]
    fn records_are_read_together_and_damaged_one_is_empty() {
        let home = tempfile::tempdir().unwrap();
        let files = WalFiles::open(home.path(), 0, 0).unwrap_or_else(|_| panic!("an empty directory opens"));
        let length = |number: u64| [100, 3000, 70_000, 9_000, 500][number as usize % 5];
        // Enough for several segments.
        let numbers: Vec<u64> = (1..=1200).collect();
        for number in &numbers {
            files.append(*number, &vec![*number as u8; length(*number)]).unwrap();
        }
        let whole = |number: &u64| (*number, Some(length(*number)));
        for step in [1, 2, 3, 7, 100] {
            let some: Vec<u64> = numbers.iter().copied().step_by(step).collect();
            assert_eq!(read(&files, &some), some.iter().map(whole).collect::<Vec<_>>(), "every {step}th");
        }
        (1..=10).for_each(|number| files.remove(number));
        assert_eq!(
            read(&files, &[9, 10, 11, 1200, 1201]),
            [(9, None), (10, None), whole(&11), whole(&1200), (1201, None)]
        );
        // Records 14 to 16 are read with one call.
        let location = files.state.read().location(15).unwrap().1;
        let path = std::fs::read_dir(home.path()).unwrap().map(|file| file.unwrap().path()).min().unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[location.at as usize + 50] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(read(&files, &[14, 15, 16]), [whole(&14), (15, Some(0)), whole(&16)]);
        let mut seen = Vec::new();
        files
            .visit(&[14, 16, 18], &mut |number, _| {
                seen.push(number);
                number < 16
            })
            .unwrap();
        assert_eq!(seen, [14, 16]);
    }
}
