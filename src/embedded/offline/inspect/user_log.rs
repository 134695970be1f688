//! Assembles one user's log from its row, the value log and the WAL.

use std::collections::{BTreeMap, btree_map::Entry};

use bytes::Bytes;

use super::{Damage, StoredUser, wal_events::WalEvent};
use crate::{
    embedded::{
        tables::schema::StoredLog,
        user_log::{
            cursors::{Cursor, Cursors},
            lossy_restarts::{LossyRestarts, SEQUENCE_RESERVE, has_skipped},
        },
    },
    message::{DeviceId, Seq},
    store::{AckSet, Gap, GapReason, common_ranges},
    util::saturate::saturate,
};

/// Describes a user's log.
#[derive(Clone, Debug)]
pub struct LogFacts {
    /// The user id.
    pub user: String,
    /// Last sequence assigned.
    pub head: Seq,
    /// When the user was last seen, in milliseconds of the Unix epoch; 0 = never.
    pub seen_ms: u64,
    /// Cursors: device ("" = clients without a device), acknowledged sequences, and when the device was last seen, in
    /// milliseconds of the Unix epoch (0 = never).
    pub cursors: Vec<(String, AckSet, u64)>,
    /// Gaps with their reasons, as far as they are stored.
    pub gaps: Vec<Gap>,
    /// Pending entries: sequence, bytes of payload, expiry in seconds of the Unix epoch (0 = never).
    pub pending: Vec<(Seq, u32, u32)>,
    /// Number of expired entries that are still stored.
    pub expired: u64,
    /// Ranges of sequences that are missing without a stored reason.
    pub missing: Vec<(Seq, Seq)>,
    /// The log in its stored form.
    pub stored: StoredUser,
}

impl LogFacts {
    /// Sums the bytes of payload of pending entries.
    #[must_use]
    pub fn pending_bytes(&self) -> u64 {
        self.pending.iter().map(|(_, bytes, _)| u64::from(*bytes)).sum()
    }
}

/// Assembles a log.
pub struct Assembly {
    user: String,
    log: StoredLog,
    cursors: Cursors,
    gaps: Vec<Gap>,
    /// Entries that are not, or may not be, in the value log.
    entries: BTreeMap<Seq, (u32, Bytes)>,
    pending: Vec<(Seq, u32, u32)>,
    expired: u64,
    /// Ranges of sequences with an entry.
    found: Vec<(Seq, Seq)>,
    last: Seq,
    keys: BTreeMap<String, Seq>,
    /// Number of lossy restarts that the row includes, if there is a row.
    restarts_in_row: Option<u32>,
    /// The first entry in the WAL.
    first_in_wal: Option<Seq>,
    /// The WAL erases the user. Entries up to this sequence no longer exist.
    erased_through: Option<Seq>,
    /// No later event has the user.
    is_gone: bool,
}

impl Assembly {
    /// Starts from the row, if there is one.
    pub fn new(user: String, row: Option<StoredLog>) -> Self {
        let restarts_in_row = row.as_ref().map(|row| row.lossy_restarts);
        let log = row.unwrap_or_default();
        let cursors = Cursors::from_stored(&log);
        let gap = |&(from, to, reason): &(Seq, Seq, u8)| Gap {
            from,
            to,
            reason: GapReason::from_stored(reason).unwrap_or(GapReason::Expired),
        };
        let gaps = log.gaps.iter().map(gap).collect();
        let keys = log.keys.iter().map(|(key, seq, ..)| (key.clone(), *seq)).collect();
        Self {
            user,
            log,
            cursors,
            gaps,
            entries: BTreeMap::new(),
            pending: Vec::new(),
            expired: 0,
            found: Vec::new(),
            last: 0,
            keys,
            restarts_in_row,
            first_in_wal: None,
            erased_through: None,
            is_gone: false,
        }
    }

    /// Returns whether the user is erased, and was not used since.
    pub fn is_gone(&self) -> bool {
        self.is_gone
    }

    fn is_erased(&self, seq: Seq) -> bool {
        self.erased_through.is_some_and(|through| seq <= through)
    }

    pub fn user(&self) -> &str {
        &self.user
    }

    /// Adds a WAL event. With `all`, includes entries that are flushed by the row, because their block may be lost.
    pub fn add_wal_event(&mut self, entry: WalEvent, all: bool) {
        self.is_gone = false;
        match entry {
            WalEvent::Entry { seq, expires_s, payload, collapse } => {
                let is_first = self.first_in_wal.is_none();
                self.first_in_wal.get_or_insert(seq);
                // The first entry of a later log may be above the floor of the erasure.
                let begins_later = is_first && self.erased_through.is_some();
                if begins_later && seq > self.log.head + 1 || has_skipped(self.log.head, seq) {
                    self.skip_to(seq - 1);
                }
                self.log.head = self.log.head.max(seq);
                if seq > self.log.flushed || all {
                    self.entries.insert(seq, (expires_s, payload));
                }
                if let Some(key) = collapse {
                    self.keys.insert(key.as_str().to_owned(), seq);
                }
            }
            WalEvent::Seen(at_ms) => self.log.seen_ms = self.log.seen_ms.max(at_ms),
            WalEvent::Cursor { device, cursor } => self.cursors.replay(device, &cursor),
            WalEvent::CursorRemoved { device } => self.cursors.remove(device.as_ref()),
            WalEvent::Gap(gap) => self.gaps.push(gap),
            WalEvent::Erased { floor } => {
                let mut later = Self::new(std::mem::take(&mut self.user), None);
                later.skip_to(floor);
                *self = Self { erased_through: Some(floor), is_gone: true, ..later };
            }
        }
    }

    /// Adds an entry of a block without a location. Returns false if it differs from an entry with the same sequence.
    pub fn add_orphan_entry(&mut self, seq: Seq, expires_s: u32, payload: Bytes) -> bool {
        if self.is_erased(seq) {
            return true;
        }
        self.log.head = self.log.head.max(seq);
        match self.entries.entry(seq) {
            Entry::Vacant(vacant) => _ = vacant.insert((expires_s, payload)),
            Entry::Occupied(known) => return known.get().1 == payload,
        }
        true
    }

    /// Skips the sequences of lossy restarts that the row does not include. Call it after all WAL events.
    pub fn skip_lossy_restarts(&mut self, lossy_restarts: LossyRestarts) {
        let due = lossy_restarts.due(lossy_restarts.known(self.restarts_in_row, self.first_in_wal), self.log.head);
        if due > 0 {
            self.skip_to(self.log.head + u64::from(due) * SEQUENCE_RESERVE);
        }
        self.log.lossy_restarts = lossy_restarts.count;
    }

    fn skip_to(&mut self, to: Seq) {
        let skipped = Gap { from: self.log.head + 1, to, reason: GapReason::Restart };
        self.log.head = to;
        if !self.gaps.contains(&skipped) {
            self.gaps.push(skipped);
        }
        self.cursors.acknowledge_all(skipped.from, to);
    }

    /// Adds the entries of the next block, or, after the last block (`None`), all other entries.
    ///
    /// Returns the pending entries, in order. Entries from the WAL that precede the block's end are included.
    pub fn take_pending(&mut self, block: Option<Vec<(Seq, u32, Bytes)>>, now_s: u32) -> Vec<(Seq, u32, Bytes)> {
        let until = match &block {
            Some(block) => block.last().map_or(0, |(seq, ..)| *seq),
            None => Seq::MAX,
        };
        let mut merged: BTreeMap<Seq, (u32, Bytes)> = BTreeMap::new();
        let erased_through = self.erased_through.unwrap_or(0);
        for (seq, expires_s, payload) in block.into_iter().flatten().filter(|(seq, ..)| *seq > erased_through) {
            self.log.head = self.log.head.max(seq);
            merged.insert(seq, (expires_s, payload));
        }
        let later = if until == Seq::MAX { BTreeMap::new() } else { self.entries.split_off(&(until + 1)) };
        for (seq, entry) in std::mem::replace(&mut self.entries, later) {
            merged.entry(seq).or_insert(entry);
        }
        let mut pending = Vec::new();
        for (seq, (expires_s, payload)) in merged {
            if seq <= self.last {
                continue;
            }
            self.last = seq;
            self.add_found(seq);
            if self.cursors.is_acknowledged(seq) || self.gaps.iter().any(|gap| (gap.from..=gap.to).contains(&seq)) {
                continue;
            }
            if expires_s > 0 && expires_s <= now_s {
                self.expired += 1;
                continue;
            }
            // A payload has at most 64 KiB.
            self.pending.push((seq, saturate(payload.len()), expires_s));
            pending.push((seq, expires_s, payload));
        }
        pending
    }

    fn add_found(&mut self, seq: Seq) {
        match self.found.last_mut() {
            Some((_, to)) if *to + 1 == seq => *to = seq,
            _ => self.found.push((seq, seq)),
        }
    }

    /// Finishes the log.
    pub fn finish(mut self) -> LogFacts {
        self.gaps.sort_by_key(|gap| (gap.from, gap.to));
        let acknowledged = self.cursors.iter().map(|(_, cursor)| cursor.acknowledged.all_ranges());
        // Exact, unlike an `AckSet`: a range that it omits would be reported as missing.
        let acknowledged = acknowledged.reduce(|one, other| common_ranges(&one, &other)).unwrap_or_default();
        let missing = missing(self.log.head, &self.found, &acknowledged, &self.gaps);
        let cursor = |(device, cursor): (Option<&DeviceId>, &Cursor)| {
            let device = device.map_or_else(String::new, |device| device.as_str().to_owned());
            (device, cursor.acknowledged.clone(), cursor.seen_ms)
        };
        let cursors = self.cursors.iter().map(cursor).collect();
        self.cursors.store_in(&mut self.log);
        self.log.gaps = self.gaps.iter().map(|gap| (gap.from, gap.to, gap.reason as u8)).collect();
        let bytes_of = |seq: Seq| {
            let at = self.pending.binary_search_by_key(&seq, |(seq, ..)| *seq).ok()?;
            let (_, bytes, expires_s) = self.pending[at];
            Some((bytes, expires_s))
        };
        let mut keys: Vec<_> = self
            .keys
            .iter()
            .filter_map(|(key, seq)| bytes_of(*seq).map(|(bytes, expires_s)| (key.clone(), *seq, bytes, expires_s)))
            .collect();
        keys.sort_by_key(|(_, seq, ..)| *seq);
        self.log.keys = keys;
        LogFacts {
            user: self.user,
            head: self.log.head,
            seen_ms: self.log.seen_ms,
            cursors,
            gaps: self.gaps,
            pending: self.pending,
            expired: self.expired,
            missing,
            stored: StoredUser(self.log),
        }
    }
}

/// Returns the parts of `1..=head` that are in none of the ranges.
fn missing(head: Seq, found: &[(Seq, Seq)], acknowledged: &[(Seq, Seq)], gaps: &[Gap]) -> Vec<(Seq, Seq)> {
    let gaps = gaps.iter().map(|gap| (gap.from, gap.to));
    let mut ranges: Vec<_> = found.iter().chain(acknowledged).copied().chain(gaps).collect();
    ranges.sort_unstable();
    let (mut missing, mut next) = (Vec::new(), 1);
    for (from, to) in ranges {
        if from > next {
            missing.push((next, (from - 1).min(head)));
        }
        next = next.max(to.saturating_add(1));
    }
    if next <= head {
        missing.push((next, head));
    }
    missing.retain(|(from, to)| from <= to && *from <= head);
    missing
}

/// Creates a report of damage that affects this user.
pub fn damage(user: &str, place: &'static str, key: String, what: impl std::fmt::Display) -> Damage {
    Damage { place, key, what: what.to_string(), user: Some(user.to_owned()) }
}
