//! Model of a log as a plain list, and of an append to it.

use mesa::{
    message::Seq,
    store::{AckSet, Limits, Overflow, RejectionReason},
};
use serde::Deserialize;
use serde_json::Value;

/// Collapse keys that a log on Redis stores. One more removes the oldest.
const KEYS_MAX: usize = 64;

/// Ranges that an `AckSet` stores besides its prefix.
const ACK_RANGES_MAX: usize = 16;

/// State of a log, as `check_counters.lua` returns it.
#[derive(Clone, Debug, Deserialize)]
pub struct LogSnapshot {
    pub head: Seq,
    pub epoch: String,
    /// Servers that hold entries, plus one if a server may not have reported its holds after a failover.
    pub held: u64,
    pub blocks: usize,
    /// Sequence, bytes, and time of expiry in seconds (0 = never).
    #[serde(default)]
    pub entries: Vec<(Seq, u64, u64)>,
    #[serde(default)]
    keys: Vec<(String, Seq, u64)>,
    /// Device name, end of the acknowledged prefix, and begin and end of each range.
    #[serde(default)]
    cursors: Vec<Vec<Value>>,
}

impl LogSnapshot {
    pub fn names(&self) -> Vec<String> {
        self.cursors.iter().map(|words| words[0].as_str().unwrap().to_owned()).collect()
    }

    fn ack_sets(&self) -> Vec<AckSet> {
        let number = |value: &Value| value.as_u64().unwrap();
        let ack_set = |words: &Vec<Value>| {
            let ranges: Vec<_> = words[2..].chunks(2).map(|pair| (number(&pair[0]), number(&pair[1]))).collect();
            AckSet::from_parts(number(&words[1]), &ranges)
        };
        self.cursors.iter().map(ack_set).collect()
    }
}

/// Message to append.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    pub bytes: u64,
    pub key: Option<&'a str>,
    /// Time of expiry, in seconds; 0 = never.
    pub expires: u64,
}

/// Log as a plain list.
#[derive(Debug)]
pub struct ReferenceLog {
    pub head: Seq,
    pub entries: Vec<(Seq, u64, u64)>,
    keys: Vec<(String, Seq, u64)>,
    cursors: Vec<AckSet>,
    limits: Limits,
    now: u64,
}

impl ReferenceLog {
    /// Creates the model of a log that is in Redis. `now` is in seconds.
    pub fn new(snapshot: &LogSnapshot, limits: Limits, now: u64) -> Self {
        let (entries, keys) = (snapshot.entries.clone(), snapshot.keys.clone());
        Self { head: snapshot.head, entries, keys, cursors: snapshot.ack_sets(), limits, now }
    }

    /// Creates an empty log with the shared cursor.
    pub fn empty(limits: Limits, now: u64) -> Self {
        Self { head: 0, entries: Vec::new(), keys: Vec::new(), cursors: vec![AckSet::default()], limits, now }
    }

    /// Returns whether the ranges that all cursors acknowledged fit into one `AckSet`. Only then the store knows them
    /// exactly.
    pub fn is_exact(&self) -> bool {
        let ranges = |cursor: &AckSet| {
            std::iter::once((1, cursor.through())).chain(cursor.ranges().iter().copied()).collect::<Vec<_>>()
        };
        let mut common = vec![(1, Seq::MAX)];
        self.cursors.iter().all(|cursor| {
            let both = |one: &(Seq, Seq)| {
                let (low, high) = *one;
                ranges(cursor).into_iter().map(move |(from, to)| (low.max(from), high.min(to)))
            };
            common = common.iter().flat_map(both).filter(|(from, to)| from <= to).collect();
            common.len() <= ACK_RANGES_MAX
        })
    }

    fn is_expired(&self, expires: u64) -> bool {
        expires > 0 && expires <= self.now
    }

    fn is_acknowledged(&self, seq: Seq) -> bool {
        self.cursors.iter().all(|cursor| cursor.contains(seq))
    }

    fn through(&self) -> Seq {
        self.cursors.iter().map(AckSet::through).min().unwrap_or(0)
    }

    fn acknowledge_all(&mut self, to: Seq) {
        self.cursors.iter_mut().for_each(|cursor| _ = cursor.insert(1, to));
        let through = self.through();
        self.entries.retain(|(seq, ..)| *seq > through);
        self.keys.retain(|(_, seq, _)| *seq > through);
    }

    fn fits(&self, bytes: u64) -> bool {
        let all: u64 = self.entries.iter().map(|(_, bytes, _)| bytes).sum();
        (self.entries.len() as u64) < self.limits.messages && all + bytes <= self.limits.bytes
    }

    /// Appends a message; returns its result, and the number of pending entries evicted for it.
    pub fn append(&mut self, message: Message<'_>) -> (Result<Seq, RejectionReason>, u64) {
        let same_key = message.key.and_then(|key| self.keys.iter().find(|(other, ..)| other == key));
        let replaced = same_key.filter(|(_, seq, expires)| !self.is_expired(*expires) && !self.is_acknowledged(*seq));
        let (replaced, mut dropped) = (replaced.map(|(_, seq, _)| *seq), 0);
        if replaced.is_none() && !self.fits(message.bytes) {
            let now = self.now;
            let is_expired = |expires: u64| expires > 0 && expires <= now;
            self.entries.retain(|(.., expires)| !is_expired(*expires));
            self.keys.retain(|(.., expires)| !is_expired(*expires));
            let mut last = None;
            while self.limits.overflow == Overflow::DropOldest && !self.entries.is_empty() && !self.fits(message.bytes)
            {
                let (oldest, ..) = self.entries.remove(0);
                dropped += u64::from(!self.is_acknowledged(oldest));
                last = Some(oldest);
            }
            if let Some(last) = last {
                self.keys.retain(|(_, seq, _)| *seq > last);
                self.acknowledge_all(last);
            }
        }
        if replaced.is_none() && !self.fits(message.bytes) {
            return (Err(RejectionReason::Quota), dropped);
        }
        self.head += 1;
        if let Some(replaced) = replaced {
            self.entries.retain(|(seq, ..)| *seq != replaced);
            if replaced <= self.through() + 1 {
                self.acknowledge_all(replaced);
            }
        }
        self.entries.push((self.head, message.bytes, message.expires));
        if let Some(key) = message.key {
            self.keys.retain(|(other, ..)| other != key);
            if self.keys.len() >= KEYS_MAX {
                self.keys.remove(0);
            }
            self.keys.push((key.to_owned(), self.head, message.expires));
        }
        (Ok(self.head), dropped)
    }
}
