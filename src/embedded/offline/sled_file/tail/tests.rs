//! Tests of the end of a log, with files that the tests encode.

use std::{fs, path::Path};

use super::*;
use crate::embedded::file_io::FILLS;

/// Segment size of these files, in bytes.
const SEGMENT: usize = 64 << 10;

/// Number of messages in a full segment.
const FULL: usize = (SEGMENT - HEADER_BYTES - RED_ZONE_BYTES) / 100 + 1;

/// Encodes the header of a segment.
fn header(lsn: u64, stable: u64) -> Vec<u8> {
    let numbers = [lsn, stable].map(|number| (number ^ 0x7FFF_FFFF_FFFF_FFFF).to_le_bytes()).concat();
    let crc = crc32fast::hash(&numbers) ^ u32::MAX;
    [&crc.to_le_bytes()[..], &numbers].concat()
}

/// Encodes a message of 100 bytes in the segment with this number, which is below 241.
fn message(number: u64) -> Vec<u8> {
    let (head, body) = ([8, 92, number as u8, 1], [7; 92]);
    let crc = crc32fast::hash(&[&body[..], &head].concat()) ^ u32::MAX;
    [&crc.to_le_bytes()[..], &head, &body].concat()
}

/// Encodes a segment with this many messages. The rest of it is zeros.
fn segment_with(number: u64, stable: u64, messages: usize) -> Vec<u8> {
    let mut bytes = [header(number * SEGMENT as u64, stable), message(number).repeat(messages)].concat();
    bytes.resize(SEGMENT, 0);
    bytes
}

/// Position of the end of a log whose last segment has this number and this many messages.
fn end_of(number: u64, messages: usize) -> u64 {
    number * SEGMENT as u64 + HEADER_BYTES as u64 + 100 * messages as u64
}

fn write_segments(home: &Path, segments: &[Vec<u8>]) {
    fs::write(home.join("conf"), format!("segment_size: {SEGMENT}\n")).unwrap();
    fs::write(home.join("db"), segments.concat()).unwrap();
}

/// A checkpoint of a large store follows the log on the commit thread.
#[test]
fn tail_at_the_end_of_the_log_reads_no_other_segment() {
    let home = tempfile::tempdir().unwrap();
    let mut segments: Vec<_> = (0..50).map(|number| segment_with(number, 0, FULL)).collect();
    segments[49] = segment_with(49, 49 * SEGMENT as u64, 1);
    write_segments(home.path(), &segments);
    let (mut tail, file) = (Tail::find(home.path()).unwrap(), fs::File::open(home.path().join("db")).unwrap());
    assert_eq!(tail.advance(&file).unwrap(), end_of(49, 1));
    segments[49] = segment_with(49, 49 * SEGMENT as u64, 2);
    write_segments(home.path(), &segments);
    let before = FILLS.get();
    assert_eq!(tail.advance(&file).unwrap(), end_of(49, 2));
    let reads = FILLS.get() - before;
    assert!(reads < 10, "{reads} reads for one new message");
}

/// sled may write more than its file has between two checkpoints. The old end is then nowhere in the file.
#[test]
fn tail_whose_segment_was_reused_moves_to_the_newest_segments() {
    for messages in [1, FULL] {
        let home = tempfile::tempdir().unwrap();
        let size = SEGMENT as u64;
        write_segments(
            home.path(),
            &[segment_with(0, 0, FULL), segment_with(1, 0, FULL), segment_with(2, size, messages)],
        );
        let (mut tail, file) = (Tail::find(home.path()).unwrap(), fs::File::open(home.path().join("db")).unwrap());
        let end = tail.advance(&file).unwrap();
        assert_eq!(end, if messages == FULL { 3 * size } else { end_of(2, messages) });
        // Of 3 and 5, sled needs nothing any more.
        write_segments(
            home.path(),
            &[segment_with(6, 5 * size, FULL), segment_with(7, 6 * size + 20, 3), segment_with(4, 2 * size, FULL)],
        );
        assert_eq!(tail.advance(&file).unwrap(), end_of(7, 3), "{messages} messages");
        assert_eq!(Tail::find(home.path()).unwrap().advance(&file).unwrap(), end_of(7, 3), "a new tail agrees");
    }
}
