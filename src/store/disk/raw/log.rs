//! The messages of all segments in the order in which they were written, and where that order is broken.
//!
//! Segments are used again when nothing in them is needed any more, so that places of the log are missing is normal.
//! What is not: a segment that is broken off although later ones were written. The last one may be, by a crash.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::Path,
};

use super::{
    copies::Copies,
    segment::{self, End, HEADER_BYTES, Header, Kind, Message},
};
use crate::store::disk::{
    directory::{CONF, DB},
    open::SEGMENT_BYTES,
};

/// Sizes of segments that are believed.
const SIZES: std::ops::RangeInclusive<usize> = 4096..=(64 << 20);

/// Where the body of a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// When it was written: later ones are higher.
    pub lsn: u64,
    /// Where in the file.
    pub at: u64,
    pub length: usize,
}

/// Where the parts of a page are: what it was, and changes to that.
#[derive(Clone, Debug)]
pub struct Page {
    pub base: Place,
    pub links: Vec<Place>,
    /// How many of the links come before the first broken place behind `base`. What was lost there may be a later image of
    /// the page, to which the others would belong.
    pub certain: usize,
    /// How many of those come before the first segment behind `base` that was used again. A later image may have been there:
    /// it was of no use any more once the image had been written that is lost now.
    pub contiguous: usize,
    /// Broken places, and segments that were used again, before `base`.
    breaks: usize,
    reused: usize,
}

/// A part of the file that is not what was written there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// First byte of it, and the first behind it.
    pub from: u64,
    pub to: u64,
    /// In words.
    pub what: &'static str,
}

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "`log/db` cannot be read from byte {} to {}: {}", self.from, self.to, self.what)
    }
}

/// What is in the file.
#[derive(Debug)]
pub struct Log {
    pub pages: HashMap<u64, Page>,
    /// The page with the names of trees.
    pub names: Option<Place>,
    pub broken: Vec<Broken>,
    /// There is something behind the place at which sled takes the log to end.
    pub goes_on: bool,
    /// Where sled takes it to end.
    pub end: u64,
    /// Pages of which there are changes behind a broken place, and no image.
    pub without_image: HashSet<u64>,
    /// Broken places so far.
    pub breaks: usize,
    /// Places so far where segments are missing because they were used again.
    reused: usize,
    file: File,
}

/// A segment of which the place in the log is known.
#[derive(Clone, Copy, Debug)]
struct Segment {
    at: u64,
    header: bool,
}

/// All segments of a file.
pub struct Segments {
    file: File,
    pub size: usize,
    known: BTreeMap<u64, Segment>,
    /// Segments behind all others that have messages and no header, by their place in the log. sled does not read them.
    headless: BTreeMap<u64, Segment>,
    /// Everything up to this was written before the last segment was begun.
    stable: u64,
    broken: Vec<Broken>,
}

impl Segments {
    pub fn find(directory: &Path) -> io::Result<Self> {
        let size = segment_bytes(directory);
        let file = match File::open(directory.join(DB)) {
            // What lies beside it can be read all the same.
            Err(error) if error.kind() == io::ErrorKind::NotFound => tempfile::tempfile()?,
            file => file?,
        };
        let length = file.metadata()?.len();
        // Segments before a snapshot may be in use for something else.
        let stable = snapshot(directory);
        let mut segments =
            Self { file, size, known: BTreeMap::new(), headless: BTreeMap::new(), stable, broken: Vec::new() };
        let mut unknown = Vec::new();
        for at in (0..length).step_by(size) {
            let mut bytes = [0; HEADER_BYTES];
            let read = read_at(&segments.file, &mut bytes, at)?;
            let header = Header::read(&bytes[..read]).filter(|header| header.lsn.is_multiple_of(size as u64));
            let Some(Header { lsn, stable }) = header else {
                unknown.push(at);
                continue;
            };
            if segments.known.insert(lsn, Segment { at, header: true }).is_some() {
                let what = "another part of the file says that it was written in the same place of the log";
                segments.broken.push(Broken { from: at, to: at + size as u64, what });
            }
            segments.stable = segments.stable.max(u64::try_from(stable).unwrap_or(0));
        }
        for at in unknown {
            segments.identify(at)?;
        }
        Ok(segments)
    }

    /// A segment without a header: one that was never begun, or one that has lost it.
    fn identify(&mut self, at: u64) -> io::Result<()> {
        let bytes = self.read(at)?;
        let from = HEADER_BYTES.min(bytes.len());
        if bytes.iter().all(|byte| *byte == 0) {
            return Ok(());
        }
        let lsn = segment::number_found(&bytes, from).map(|number| number * self.size as u64);
        match lsn {
            Some(lsn) if !self.known.contains_key(&lsn) && lsn < self.last().unwrap_or(0) => {
                self.known.insert(lsn, Segment { at, header: false });
                let what = "the head of that part is not what was written";
                self.broken.push(Broken { from: at, to: at + HEADER_BYTES as u64, what });
            }
            // Begun when the machine went down, and never counted on; or its header is lost.
            Some(lsn) if !self.known.contains_key(&lsn) => {
                self.headless.entry(lsn).or_insert(Segment { at, header: false });
            }
            Some(_) => {}
            None if bytes[..from].iter().any(|byte| *byte != 0) => {
                let what = "nothing in it can be read";
                self.broken.push(Broken { from: at, to: at + bytes.len() as u64, what });
            }
            None => {}
        }
        Ok(())
    }

    /// Where in the file the segment is that begins there in the log.
    pub fn place(&self, lsn: u64) -> Option<u64> {
        self.known.get(&lsn).map(|segment| segment.at)
    }

    fn last(&self) -> Option<u64> {
        self.known.iter().rev().find(|(_, segment)| segment.header).map(|(lsn, _)| *lsn)
    }

    fn read(&self, at: u64) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; self.size];
        let length = read_at(&self.file, &mut bytes, at)?;
        bytes.truncate(length);
        Ok(bytes)
    }

    /// Whether the segment up to which the newest snapshot knows the log is not there (any more), though others behind it
    /// are: a power cut has taken back the name of a newer snapshot, or the removal of this one. sled makes a mess of that:
    /// see `rebuild`.
    pub fn snapshot_misleads(&self) -> bool {
        let base = self.stable / self.size as u64 * self.size as u64;
        !self.known.contains_key(&base) && self.known.range(base..).next().is_some()
    }

    /// Where sled takes the log to end, and whether it is the end of a segment.
    pub fn end(&self) -> io::Result<(u64, bool)> {
        let size = self.size as u64;
        let mut lsn = self.stable / size * size;
        // A segment that an older snapshot knows may be empty by now, and used again: then the log is taken up behind it.
        lsn = self.known.range(lsn..).next().map_or(lsn, |(first, _)| *first);
        // At the border between two segments the second may not have been begun.
        let mut end = if lsn == self.stable { (lsn, true) } else { (0, false) };
        while let Some(known) = self.known.get(&lsn).filter(|segment| segment.header) {
            let bytes = self.read(known.at)?;
            match segment::visit(&bytes, self.size, HEADER_BYTES, lsn / size, |_| {}) {
                End::Full => end = (lsn + size, true),
                End::At(at) => return Ok((lsn + at as u64, false)),
            }
            lsn += size;
        }
        Ok(end)
    }
}

impl Log {
    /// Reads the log in `directory`, up to where sled takes it to end, or, with `behind`, all that can be read.
    pub fn read(directory: &Path, behind: bool) -> io::Result<Self> {
        let mut segments = Segments::find(directory)?;
        let size = segments.size as u64;
        let (end, full) = segments.end()?;
        let mut log = Self {
            pages: HashMap::new(),
            names: None,
            broken: std::mem::take(&mut segments.broken),
            goes_on: false,
            end,
            without_image: HashSet::new(),
            breaks: 0,
            reused: 0,
            file: segments.file.try_clone()?,
        };
        // Where a part of the file cannot be placed, any segment that is not there may be the one that was lost.
        let (unplaced, mut expected) = (!log.broken.is_empty(), 0);
        for (lsn, segment) in segments.known.iter().chain(segments.headless.range(end..)) {
            log.breaks += usize::from(unplaced && *lsn != expected || *lsn >= end);
            log.reused += usize::from(*lsn != expected);
            expected = lsn + size;
            if *lsn >= end {
                log.goes_on = true;
                if !behind {
                    break;
                }
            }
            let bytes = segments.read(segment.at)?;
            let number = lsn / size;
            let (mut at, mut copies) = (HEADER_BYTES, Copies::default());
            loop {
                let torn = segment::visit(&bytes, segments.size, at, number, |message| {
                    if !copies.is_copy(&bytes, &message) {
                        log.take(&message, lsn + message.at as u64, segment.at);
                    }
                });
                let End::At(torn) = torn else { break };
                let is_end = lsn + torn as u64 >= end;
                let next = segment::find(&bytes, torn, number);
                log.goes_on |= is_end && next.is_some();
                if !is_end && !is_reused(&bytes, torn, number, end / size, full) || is_end && behind && next.is_some() {
                    let to = next.unwrap_or(bytes.len().max(torn));
                    let what = "what stands there is not what was written";
                    log.broken.push(Broken { from: segment.at + torn as u64, to: segment.at + to as u64, what });
                    log.breaks += 1;
                }
                match next {
                    Some(next) if !is_end || behind => at = next,
                    _ => break,
                }
                copies.begin(&bytes, at);
            }
        }
        Ok(log)
    }

    fn take(&mut self, message: &Message<'_>, lsn: u64, segment: u64) {
        let at = segment + (message.end - message.body.len()) as u64;
        let place = Place { lsn, at, length: message.body.len() };
        match message.kind {
            Kind::Node => {
                let (breaks, reused) = (self.breaks, self.reused);
                let page = Page { base: place, links: Vec::new(), certain: 0, contiguous: 0, breaks, reused };
                self.pages.insert(message.page, page);
                self.without_image.remove(&message.page);
            }
            Kind::Link => match self.pages.get_mut(&message.page) {
                Some(page) => {
                    page.links.push(place);
                    page.certain += usize::from(page.breaks == self.breaks);
                    page.contiguous += usize::from((page.breaks, page.reused) == (self.breaks, self.reused));
                }
                // Where the page itself is lost, so is what was changed of it. Before the first broken place, the image was in
                // a segment that is used again, and a later one follows.
                None => self.without_image.extend((self.breaks > 0).then_some(message.page)),
            },
            Kind::Free => {
                self.pages.remove(&message.page);
                self.without_image.remove(&message.page);
            }
            Kind::Names => self.names = Some(place),
            Kind::Canceled | Kind::Cap | Kind::Batch | Kind::Counter | Kind::Blob => {}
        }
    }

    /// The body of a message.
    pub fn body(&self, place: Place) -> io::Result<bytes::Bytes> {
        let mut bytes = vec![0; place.length];
        self.file.read_exact_at(&mut bytes, place.at)?;
        Ok(bytes.into())
    }
}

/// Looks whether all of the log that sled is about to read is what was written, apart from an end behind `synced` that a
/// crash has cut off.
///
/// # Errors
/// When the file cannot be read at all.
pub fn check(directory: &Path, synced: u64) -> io::Result<Option<Broken>> {
    let length = fs::metadata(directory.join(DB)).map_or(0, |db| db.len());
    if length == 0 && synced == 0 {
        return Ok(None);
    }
    let segments = Segments::find(directory)?;
    let size = segments.size as u64;
    // What is before the last snapshot is found by it, and checked when it is read.
    let first = snapshot(directory) / size * size;
    let (end, full) = segments.end()?;
    if segments.known.is_empty()
        && let Some(broken) = segments.broken.first()
    {
        return Ok(Some(broken.clone()));
    }
    for (lsn, segment) in segments.known.range(first..end.max(first)) {
        let bytes = segments.read(segment.at)?;
        if !segment.header {
            return Ok(segments.broken.into_iter().find(|broken| broken.from == segment.at));
        }
        let torn = segment::visit(&bytes, segments.size, HEADER_BYTES, lsn / size, |_| {});
        if let End::At(torn) = torn
            && lsn + (torn as u64) < end
            && !is_reused(&bytes, torn, lsn / size, end / size, full)
        {
            let to = segment::find(&bytes, torn, lsn / size).unwrap_or(bytes.len().max(torn));
            let what = "what stands there is not what was written";
            return Ok(Some(Broken { from: segment.at + torn as u64, to: segment.at + to as u64, what }));
        }
    }
    if end < synced {
        let from = segments.place(end / size * size).map_or(length, |segment| segment + end % size);
        let what = "what was synced is not there, or is not what was written";
        return Ok(Some(Broken { from, to: length.max(from), what }));
    }
    Ok(None)
}

/// Whether a segment that breaks off was being written anew when the machine went down: then nothing in it was needed.
/// It can only be the one that was to follow the last, so the last is full, or a message for it is there already.
fn is_reused(segment: &[u8], at: usize, number: u64, last: u64, full: bool) -> bool {
    full || segment::has_newer(segment, at, number.max(last))
}

/// Up to where the newest snapshot knows the log; 0 if there is none that is whole.
fn snapshot(directory: &Path) -> u64 {
    let Ok(files) = fs::read_dir(directory) else { return 0 };
    let names = files.filter_map(|file| Some(file.ok()?.file_name().to_string_lossy().into_owned()));
    // One that is still being made is set aside before sled looks.
    let newest = names.filter(|name| name.starts_with("snap.") && !name.ends_with(".generating")).max();
    let bytes = newest.and_then(|name| fs::read(directory.join(name)).ok()).unwrap_or_default();
    let Some((content, rest)) = bytes.len().checked_sub(12).map(|at| bytes.split_at(at)) else { return 0 };
    let whole = rest[8..] == crc32fast::hash(content).to_le_bytes();
    let first = content.get(..8).and_then(|first| Some(u64::from_le_bytes(first.try_into().ok()?)));
    first.filter(|_| whole).map_or(0, |stable| stable.saturating_sub(1))
}

/// Bytes of a segment, as the file `conf` says; where that cannot be read, as we make them.
fn segment_bytes(directory: &Path) -> usize {
    // Text, and behind it a checksum, which is none.
    let conf = fs::read(directory.join(CONF)).unwrap_or_default();
    let conf = String::from_utf8_lossy(&conf);
    let size = conf.lines().find_map(|line| line.strip_prefix("segment_size: ")?.trim().parse().ok());
    size.filter(|size| SIZES.contains(size)).unwrap_or(SEGMENT_BYTES)
}

/// Fills `bytes` from the file, as far as it goes.
pub fn read_at(file: &File, bytes: &mut [u8], at: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < bytes.len() {
        match file.read_at(&mut bytes[done..], at + done as u64) {
            Ok(0) => break,
            Ok(read) => done += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}
