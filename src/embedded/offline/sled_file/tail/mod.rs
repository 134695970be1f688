//! Follows the end of sled's log while sled writes it.

#[cfg(test)]
mod tests;

use std::{fs::File, io, path::Path};

use super::{
    segment::{self, HEADER_BYTES, Header, Kind, RED_ZONE_BYTES},
    segment_log::Segments,
};
use crate::embedded::file_io::fill;

/// Upper bound of a message header, in bytes.
const MESSAGE_HEADER_BYTES_MAX: usize = 64;

/// Tracks the end of the log.
#[derive(Debug)]
pub(in crate::embedded) struct Tail {
    size: usize,
    /// Log position of the current segment.
    base: u64,
    /// Offset of the current segment in the file, if sled has written it.
    segment: Option<u64>,
    /// Offset in the segment of the next message.
    at: usize,
}

impl Tail {
    /// Finds the end of the log in `directory`.
    pub fn find(directory: &Path) -> io::Result<Self> {
        let segments = Segments::find(directory)?;
        let (end, full) = segments.end()?;
        let (size, bytes) = (segments.size, segments.size as u64);
        let base = end / bytes * bytes;
        let segment = segments.offset_of(base).filter(|_| !full);
        Ok(Self { size, base, segment, at: HEADER_BYTES.max((end - base) as usize) })
    }

    /// Advances over new messages, and returns the end. A sync of the file makes all of them durable.
    pub fn advance(&mut self, file: &File) -> io::Result<u64> {
        let mut bytes = Vec::new();
        loop {
            let Some(segment) = self.segment else {
                if self.find_segment(file)? {
                    continue;
                }
                return Ok(self.base);
            };
            if self.at + RED_ZONE_BYTES > self.size {
                self.next_segment();
                continue;
            }
            let number = self.base / self.size as u64;
            bytes.resize(MESSAGE_HEADER_BYTES_MAX, 0);
            let read = fill(file, segment + self.at as u64, &mut bytes)?;
            let length = segment::length(&bytes[..read]).filter(|length| self.at + length <= self.size);
            bytes.resize(length.unwrap_or(0), 0);
            fill(file, segment + self.at as u64, &mut bytes)?;
            match segment::message(&bytes, 0, number) {
                Some(message) if message.kind == Kind::Cap => self.next_segment(),
                Some(message) => self.at += message.end,
                // Only one header is read, mostly: the file may have thousands.
                None if self.is_at(segment, file)? || !self.find_segment(file)? => {
                    return Ok(self.base + self.at as u64);
                }
                None => {}
            }
        }
    }

    /// Returns the bytes left in the current segment, or 0 if sled has not written it.
    pub fn bytes_left(&self) -> u64 {
        let left = (self.size - RED_ZONE_BYTES).saturating_sub(self.at);
        self.segment.map_or(0, |_| left as u64)
    }

    fn next_segment(&mut self) {
        self.base += self.size as u64;
        (self.segment, self.at) = (None, HEADER_BYTES);
    }

    /// Returns whether the current segment is at this offset of the file.
    fn is_at(&self, offset: u64, file: &File) -> io::Result<bool> {
        Ok(header_at(file, offset)?.is_some_and(|header| header.lsn == self.base))
    }

    /// Finds the current segment in the file, or moves to a later one if sled has reused it. Returns whether there is one.
    ///
    /// Between two calls, sled may write more than its file has. Otherwise the end would stay at this segment for good.
    /// sled had written everything up to the position that a later header states as stable.
    fn find_segment(&mut self, file: &File) -> io::Result<bool> {
        let headers = self.headers(file)?;
        if self.segment.is_none()
            && let Some((_, at)) = headers.iter().find(|(header, _)| header.lsn == self.base)
        {
            self.segment = Some(*at);
            return Ok(true);
        }
        let stable = headers.iter().filter_map(|(header, _)| u64::try_from(header.stable).ok()).max().unwrap_or(0);
        let from = stable / self.size as u64 * self.size as u64;
        let next = headers.iter().filter(|(header, _)| header.lsn >= from).min_by_key(|(header, _)| header.lsn);
        let Some((header, at)) = next.filter(|(header, _)| from > self.base && header.lsn > self.base) else {
            return Ok(false);
        };
        (self.base, self.segment, self.at) = (header.lsn, Some(*at), HEADER_BYTES);
        Ok(true)
    }

    /// Returns the intact headers of the segments, and their offsets in the file.
    fn headers(&self, file: &File) -> io::Result<Vec<(Header, u64)>> {
        let mut headers = Vec::new();
        for at in (0..file.metadata()?.len()).step_by(self.size) {
            headers.extend(header_at(file, at)?.map(|header| (header, at)));
        }
        Ok(headers)
    }
}

/// Reads the header of the segment at this offset of the file. Returns `None` if it is not intact.
fn header_at(file: &File, offset: u64) -> io::Result<Option<Header>> {
    let mut bytes = [0; HEADER_BYTES];
    let read = fill(file, offset, &mut bytes)?;
    Ok(Header::read(&bytes[..read]))
}
