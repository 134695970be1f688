//! Reads WAL records. Adjacent records are read with one call, and each is checked by itself.

use std::{fs::File, io, sync::Arc};

use bytes::Bytes;

use super::{
    layout::{RecordLocation, record_at},
    segment::WalFiles,
};
use crate::embedded::file_io::{fill, read_at};

/// Bytes per read call, unless a single record is larger.
const RUN_BYTES_MAX: u32 = 64 << 10;

/// Bytes of unwanted records between two wanted ones that one call reads along: cheaper than a second call.
const GAP_BYTES_MAX: u32 = 4 << 10;

/// Records of one file.
struct Run<'a> {
    file: Arc<File>,
    numbers: &'a [u64],
    locations: Vec<RecordLocation>,
}

impl WalFiles {
    /// Reads a record. Returns `None` if it does not exist (any more), and empty bytes, which are no record, if it is
    /// damaged.
    pub fn get(&self, number: u64) -> io::Result<Option<Bytes>> {
        let found = self.state.read().location(number).map(|(file, location)| (file.file.clone(), location));
        let Some((file, location)) = found else { return Ok(None) };
        let bytes = read_at(&file, u64::from(location.at), location.length as usize)?;
        Ok(Some(match value_of(&bytes, number) {
            Some(length) => {
                let from = bytes.len() - length;
                Bytes::from(bytes).slice(from..)
            }
            None => Bytes::new(),
        }))
    }

    /// Visits records, with ascending numbers and results as of `get`, until `visit` returns false. Uses a buffer of
    /// [`RUN_BYTES_MAX`], or of the longest record.
    pub fn each(&self, numbers: &[u64], visit: &mut dyn FnMut(u64, Option<&[u8]>) -> bool) -> io::Result<()> {
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

    /// Selects the first record and those that are read together with it. The open file stays readable if it is
    /// removed meanwhile.
    fn run<'a>(&self, numbers: &'a [u64]) -> Option<Run<'a>> {
        let state = self.state.read();
        let (file, first) = state.location(*numbers.first()?)?;
        let mut locations = vec![first];
        let mut end = first.end();
        for number in &numbers[1..] {
            let near = |location: &RecordLocation| {
                location.file == first.file
                    && location.at.saturating_sub(end) <= GAP_BYTES_MAX
                    && location.end() - first.at <= RUN_BYTES_MAX
            };
            let Some(location) = state.location(*number).map(|(_, location)| location).filter(near) else { break };
            locations.push(location);
            end = location.end();
        }
        Some(Run { file: file.file.clone(), numbers: &numbers[..locations.len()], locations })
    }
}

impl Run<'_> {
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
            if !visit(*number, Some(value(frame, *number))) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn read_singly(&self, buffer: &mut Vec<u8>, visit: &mut dyn FnMut(u64, Option<&[u8]>) -> bool) -> io::Result<bool> {
        for (number, location) in self.numbers.iter().zip(&self.locations) {
            let bytes = read_into(&self.file, buffer, location.at, location.end())?;
            if !visit(*number, Some(value(bytes, *number))) {
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

/// Returns the record in a frame; empty bytes, which are no record, if the frame is damaged.
fn value(frame: &[u8], number: u64) -> &[u8] {
    value_of(frame, number).map_or(&[], |length| &frame[frame.len() - length..])
}

/// Returns the length of the record at the end of its frame.
fn value_of(frame: &[u8], number: u64) -> Option<usize> {
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
        files.each(numbers, visit).unwrap();
        found
    }

    #[test]
    fn records_are_read_together_and_damaged_one_is_empty() {
        let home = tempfile::tempdir().unwrap();
        let files = WalFiles::open(home.path(), 0, 0).unwrap_or_else(|_| panic!("an empty directory opens"));
        let length = |number: u64| [100, 3000, 70_000, 9_000, 500][number as usize % 5];
        // Several files' worth.
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
            .each(&[14, 16, 18], &mut |number, _| {
                seen.push(number);
                number < 16
            })
            .unwrap();
        assert_eq!(seen, [14, 16]);
    }
}
