//! Reads the messages of all segments in the order of the log, and finds damage.
//!
//! sled reuses segments that it no longer needs, so the log may lack segments. A segment that ends early is damaged if
//! later segments were written. After a crash the last segment may end early.

use std::{
    cell::Cell,
    collections::{BTreeMap, HashMap, HashSet},
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::Path,
};

use super::{
    misdirected::MisdirectedWrites,
    segment::{self, HEADER_BYTES, Header, Kind, Message, SegmentEnd},
};
use crate::embedded::{
    file_io::fill,
    tables::files::{SEGMENT_BYTES, SLED_CONF, SLED_FILE},
};

/// Plausible segment sizes, in bytes.
const SEGMENT_SIZES: std::ops::RangeInclusive<usize> = 4096..=(64 << 20);

/// Locates the body of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageLocation {
    /// Position in the log. Later messages have higher positions.
    pub lsn: u64,
    /// Offset in the file.
    pub at: u64,
    pub length: usize,
}

/// Locates the parts of a page: its image, and the changes to it.
#[derive(Clone, Debug)]
pub struct Page {
    pub base: MessageLocation,
    pub links: Vec<MessageLocation>,
    /// Number of links before the first damaged range after `base`.
    ///
    /// A later image of the page may be lost in that range. Then the other links belong to that image.
    pub certain: usize,
    /// Number of links before the first reused segment after `base`, and before the first damaged range.
    ///
    /// A later image may have been in that segment. sled reused the segment after it had written the image that is now
    /// lost.
    pub contiguous: usize,
    /// Number of damaged ranges before `base`.
    breaks: usize,
    /// Number of positions before `base` at which reused segments are missing.
    reused: usize,
}

/// Describes a damaged range of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DamagedRange {
    /// First byte of the range, and the first byte after it.
    pub from: u64,
    pub to: u64,
    /// What is wrong.
    pub what: &'static str,
}

impl std::fmt::Display for DamagedRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "`log/db` cannot be read from byte {} to {}: {}", self.from, self.to, self.what)
    }
}

/// Holds the decoded log.
#[derive(Debug)]
pub struct SledLog {
    pub pages: HashMap<u64, Page>,
    /// The page with the names of trees.
    pub names: Option<MessageLocation>,
    pub damaged: Vec<DamagedRange>,
    /// Whether data follows the end that sled detects.
    pub has_data_past_end: bool,
    /// Log position of the end that sled detects.
    pub end: u64,
    /// Pages with changes after a damaged range, and without an image.
    pub without_image: HashSet<u64>,
    /// Number of damaged ranges so far.
    pub breaks: usize,
    /// Number of positions so far at which reused segments are missing.
    reused: usize,
    /// What follows the intact messages at the beginning of a segment that ends early, before `end`, and was not reused.
    /// By log position.
    torn: BTreeMap<u64, DamagedRange>,
    file: File,
}

/// Describes a segment with a known position in the log.
#[derive(Clone, Copy, Debug)]
struct Segment {
    /// Offset in the file.
    at: u64,
    /// Whether it has a valid header.
    header: bool,
}

/// Holds all segments of a file.
pub struct Segments {
    file: File,
    /// Size of a segment, in bytes.
    pub size: usize,
    /// Segments by log position.
    known: BTreeMap<u64, Segment>,
    /// Segments that follow all others and have messages but no header, by log position. sled does not read them.
    headless: BTreeMap<u64, Segment>,
    /// Everything up to this position was written before the last segment was begun.
    stable: u64,
    /// Log position of the newest snapshot, or 0.
    snapshot: u64,
    /// Length of the file, in bytes.
    length: u64,
    /// The end of the log, once it was determined.
    end: Cell<Option<(u64, bool)>>,
    damaged: Vec<DamagedRange>,
}

impl Segments {
    pub fn find(directory: &Path) -> io::Result<Self> {
        let size = segment_size(directory);
        let file = match File::open(directory.join(SLED_FILE)) {
            // Without sled's file, the other files of the store can still be read.
            Err(error) if error.kind() == io::ErrorKind::NotFound => tempfile::tempfile()?,
            file => file?,
        };
        let length = file.metadata()?.len();
        // Segments before a snapshot may have been reused.
        let snapshot = snapshot_lsn(directory);
        let mut segments = Self {
            file,
            size,
            known: BTreeMap::new(),
            headless: BTreeMap::new(),
            stable: snapshot,
            snapshot,
            length,
            end: Cell::new(None),
            damaged: Vec::new(),
        };
        let mut unknown = Vec::new();
        for at in (0..length).step_by(size) {
            let mut bytes = [0; HEADER_BYTES];
            let read = fill(&segments.file, at, &mut bytes)?;
            let header = Header::read(&bytes[..read]).filter(|header| header.lsn.is_multiple_of(size as u64));
            let Some(Header { lsn, stable }) = header else {
                unknown.push(at);
                continue;
            };
            if segments.known.insert(lsn, Segment { at, header: true }).is_some() {
                let what = "another segment states the same log position";
                segments.damaged.push(DamagedRange { from: at, to: at + size as u64, what });
            }
            segments.stable = segments.stable.max(u64::try_from(stable).unwrap_or(0));
        }
        for at in unknown {
            segments.identify(at)?;
        }
        Ok(segments)
    }

    /// Identifies a segment without a header by its messages: sled never began it, or its header is damaged.
    fn identify(&mut self, at: u64) -> io::Result<()> {
        let bytes = self.read(at)?;
        let from = HEADER_BYTES.min(bytes.len());
        if bytes.iter().all(|byte| *byte == 0) {
            return Ok(());
        }
        let lsn = segment::first_segment_number(&bytes, from).map(|number| number * self.size as u64);
        match lsn {
            Some(lsn) if !self.known.contains_key(&lsn) && lsn < self.last().unwrap_or(0) => {
                self.known.insert(lsn, Segment { at, header: false });
                let what = "the header of this segment is damaged";
                self.damaged.push(DamagedRange { from: at, to: at + HEADER_BYTES as u64, what });
            }
            // A crash interrupted its begin, or its header is damaged.
            Some(lsn) if !self.known.contains_key(&lsn) => {
                self.headless.entry(lsn).or_insert(Segment { at, header: false });
            }
            Some(_) => {}
            None if bytes[..from].iter().any(|byte| *byte != 0) => {
                let what = "nothing in this segment can be read";
                self.damaged.push(DamagedRange { from: at, to: at + bytes.len() as u64, what });
            }
            None => {}
        }
        Ok(())
    }

    /// Returns the file offset of the segment at a log position.
    pub fn offset_of(&self, lsn: u64) -> Option<u64> {
        self.known.get(&lsn).map(|segment| segment.at)
    }

    fn last(&self) -> Option<u64> {
        self.known.iter().rev().find(|(_, segment)| segment.header).map(|(lsn, _)| *lsn)
    }

    fn read(&self, at: u64) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; self.size];
        let length = fill(&self.file, at, &mut bytes)?;
        bytes.truncate(length);
        Ok(bytes)
    }

    /// Returns whether the newest snapshot refers to a missing segment although later segments exist.
    ///
    /// A power cut lost the name of a newer snapshot, or the removal of this one. sled fails on such files: see
    /// `rebuild`.
    pub fn snapshot_is_stale(&self) -> bool {
        let base = self.stable / self.size as u64 * self.size as u64;
        !self.known.contains_key(&base) && self.known.range(base..).next().is_some()
    }

    /// Returns the end of the log that sled detects, and whether it is the end of a segment.
    pub fn end(&self) -> io::Result<(u64, bool)> {
        if let Some(end) = self.end.get() {
            return Ok(end);
        }
        let end = self.find_end()?;
        self.end.set(Some(end));
        Ok(end)
    }

    fn find_end(&self) -> io::Result<(u64, bool)> {
        let size = self.size as u64;
        let mut lsn = self.stable / size * size;
        // sled may have reused the segment of an older snapshot. Then it continues with the next segment.
        lsn = self.known.range(lsn..).next().map_or(lsn, |(first, _)| *first);
        // A snapshot may end between two segments, the second of which is not begun yet.
        let mut end = if lsn == self.stable { (lsn, true) } else { (0, false) };
        while let Some(known) = self.known.get(&lsn).filter(|segment| segment.header) {
            let bytes = self.read(known.at)?;
            match segment::visit_messages(&bytes, self.size, HEADER_BYTES, lsn / size, |_| {}) {
                SegmentEnd::Full => end = (lsn + size, true),
                SegmentEnd::At(at) => return Ok((lsn + at as u64, false)),
            }
            lsn += size;
        }
        Ok(end)
    }
}

impl Segments {
    /// Returns the ranges of the file that hold the log after position `synced`: first byte, and first byte after it.
    pub fn ranges_after(&self, synced: u64) -> io::Result<Vec<(u64, u64)>> {
        let (end, size, length) = (self.end()?.0, self.size as u64, self.length);
        let first = (synced / size * size).min(end);
        let range = |(lsn, segment): (&u64, &Segment)| {
            (segment.at + synced.saturating_sub(*lsn), length.min(segment.at + size.min(end - lsn)))
        };
        Ok(self.known.range(first..end).map(range).filter(|(from, to)| from < to).collect())
    }
}

impl SledLog {
    /// Reads the log up to the end that sled detects, each segment once. With `past_end`, reads everything readable.
    pub fn read(segments: &Segments, past_end: bool) -> io::Result<Self> {
        let size = segments.size as u64;
        let (end, full) = segments.end()?;
        let mut log = Self {
            pages: HashMap::new(),
            names: None,
            damaged: segments.damaged.clone(),
            has_data_past_end: false,
            end,
            without_image: HashSet::new(),
            breaks: 0,
            reused: 0,
            torn: BTreeMap::new(),
            file: segments.file.try_clone()?,
        };
        // A damaged segment without a known position may be any of the missing segments.
        let (has_unlocated_part, mut expected) = (!log.damaged.is_empty(), 0);
        for (lsn, segment) in segments.known.iter().chain(segments.headless.range(end..)) {
            log.breaks += usize::from(has_unlocated_part && *lsn != expected || *lsn >= end);
            log.reused += usize::from(*lsn != expected);
            expected = lsn + size;
            if *lsn >= end {
                log.has_data_past_end = true;
                if !past_end {
                    break;
                }
            }
            let bytes = segments.read(segment.at)?;
            let number = lsn / size;
            let (mut at, mut copies) = (HEADER_BYTES, MisdirectedWrites::default());
            loop {
                let torn = segment::visit_messages(&bytes, segments.size, at, number, |message| {
                    if !copies.is_copy(&bytes, &message) {
                        log.add_message(&message, lsn + message.at as u64, segment.at);
                    }
                });
                let SegmentEnd::At(torn) = torn else { break };
                let is_end = lsn + torn as u64 >= end;
                let next = segment::find_message(&bytes, torn, number);
                log.has_data_past_end |= is_end && next.is_some();
                if !is_end && !is_reused(&bytes, torn, number, end / size, full) || is_end && past_end && next.is_some()
                {
                    let to = next.unwrap_or(bytes.len().max(torn));
                    let what = "its content is not what was written";
                    let damaged = DamagedRange { from: segment.at + torn as u64, to: segment.at + to as u64, what };
                    if !is_end && at == HEADER_BYTES {
                        log.torn.insert(*lsn, damaged.clone());
                    }
                    log.damaged.push(damaged);
                    log.breaks += 1;
                }
                match next {
                    Some(next) if !is_end || past_end => at = next,
                    _ => break,
                }
                copies.begin(&bytes, at);
            }
        }
        Ok(log)
    }

    fn add_message(&mut self, message: &Message<'_>, lsn: u64, segment: u64) {
        let at = segment + (message.end - message.body.len()) as u64;
        let location = MessageLocation { lsn, at, length: message.body.len() };
        match message.kind {
            Kind::Node => {
                let (breaks, reused) = (self.breaks, self.reused);
                let page = Page { base: location, links: Vec::new(), certain: 0, contiguous: 0, breaks, reused };
                self.pages.insert(message.page, page);
                self.without_image.remove(&message.page);
            }
            Kind::Link => match self.pages.get_mut(&message.page) {
                Some(page) => {
                    page.links.push(location);
                    page.certain += usize::from(page.breaks == self.breaks);
                    page.contiguous += usize::from((page.breaks, page.reused) == (self.breaks, self.reused));
                }
                // Without its image a change cannot be applied. Before the first damaged range, the image was in a
                // reused segment, and a later image follows.
                None => self.without_image.extend((self.breaks > 0).then_some(message.page)),
            },
            Kind::Free => {
                self.pages.remove(&message.page);
                self.without_image.remove(&message.page);
            }
            Kind::Names => self.names = Some(location),
            Kind::Canceled | Kind::Cap | Kind::Batch | Kind::Counter | Kind::Blob => {}
        }
    }

    /// Reads the body of a message.
    pub fn body(&self, location: MessageLocation) -> io::Result<bytes::Bytes> {
        let mut bytes = vec![0; location.length];
        self.file.read_exact_at(&mut bytes, location.at)?;
        Ok(bytes.into())
    }
}

/// Checks the part of the log that sled will read. Returns the first damaged range. `log` was read from `segments`.
///
/// A log that a crash truncated after `synced` is not damaged.
pub fn check(segments: &Segments, log: &SledLog, synced: u64) -> Option<DamagedRange> {
    if segments.length == 0 && synced == 0 {
        return None;
    }
    let size = segments.size as u64;
    // The snapshot has the locations of all earlier messages. Those are checked when they are read.
    let (first, end) = (segments.snapshot / size * size, log.end);
    if segments.known.is_empty()
        && let Some(damaged) = segments.damaged.first()
    {
        return Some(damaged.clone());
    }
    for (lsn, segment) in segments.known.range(first..end.max(first)) {
        if !segment.header {
            return segments.damaged.iter().find(|damaged| damaged.from == segment.at).cloned();
        }
        if let Some(torn) = log.torn.get(lsn) {
            return Some(torn.clone());
        }
    }
    (end < synced).then(|| {
        let from = segments.offset_of(end / size * size).map_or(segments.length, |segment| segment + end % size);
        let what = "synced data is missing or damaged";
        DamagedRange { from, to: segments.length.max(from), what }
    })
}

/// Returns whether sled was reusing this early-ending segment at a crash. Then no data in it was needed.
///
/// sled reuses a segment only as the next one of the log. So the last segment is full, or this one has a newer message.
fn is_reused(segment: &[u8], at: usize, number: u64, last: u64, full: bool) -> bool {
    full || segment::has_newer(segment, at, number.max(last))
}

/// Returns the log position of the newest snapshot, or 0 if there is no valid one.
fn snapshot_lsn(directory: &Path) -> u64 {
    let Ok(files) = fs::read_dir(directory) else { return 0 };
    let names = files.filter_map(|file| Some(file.ok()?.file_name().to_string_lossy().into_owned()));
    // An incomplete snapshot is set aside before sled opens.
    let newest = names.filter(|name| name.starts_with("snap.") && !name.ends_with(".generating")).max();
    let bytes = newest.and_then(|name| fs::read(directory.join(name)).ok()).unwrap_or_default();
    let Some((content, rest)) = bytes.len().checked_sub(12).map(|at| bytes.split_at(at)) else { return 0 };
    let is_intact = rest[8..] == crc32fast::hash(content).to_le_bytes();
    let first = content.get(..8).and_then(|first| Some(u64::from_le_bytes(first.try_into().ok()?)));
    first.filter(|_| is_intact).map_or(0, |stable| stable.saturating_sub(1))
}

/// Reads the segment size in bytes from the file `conf`. The default is that of a new store.
fn segment_size(directory: &Path) -> usize {
    // The file is text, followed by a binary checksum.
    let conf = fs::read(directory.join(SLED_CONF)).unwrap_or_default();
    let conf = String::from_utf8_lossy(&conf);
    let size = conf.lines().find_map(|line| line.strip_prefix("segment_size: ")?.trim().parse().ok());
    size.filter(|size| SEGMENT_SIZES.contains(size)).unwrap_or(SEGMENT_BYTES)
}
