//! A log as a plain list, and what an append does with it.

use mesa::{
    message::Seq,
    store::{AckSet, Limits, Overflow, Reason},
};
use serde::Deserialize;
use serde_json::Value;

/// Keys that a log over Redis remembers; for one more the first is forgotten.
const KEYS_MAX: usize = 64;

/// Ranges beyond the first that are remembered of what somebody has received.
const ACK_RANGES_MAX: usize = 16;

/// What was looked up in Redis: see `tallies.lua`.
#[derive(Clone, Debug, Deserialize)]
pub struct Looked {
    pub head: Seq,
    pub era: String,
    /// Servers that hold something, and one more where some may have yet to report it after a failover.
    pub held: u64,
    pub blocks: usize,
    /// Sequence, bytes, and when it expires (0 = never).
    #[serde(default)]
    pub entries: Vec<(Seq, u64, u64)>,
    #[serde(default)]
    keys: Vec<(String, Seq, u64)>,
    /// A name, up to where, and ranges.
    #[serde(default)]
    cursors: Vec<Vec<Value>>,
}

impl Looked {
    pub fn names(&self) -> Vec<String> {
        self.cursors.iter().map(|words| words[0].as_str().unwrap().to_owned()).collect()
    }

    fn received(&self) -> Vec<AckSet> {
        let number = |value: &Value| value.as_u64().unwrap();
        let received = |words: &Vec<Value>| {
            let ranges: Vec<_> = words[2..].chunks(2).map(|pair| (number(&pair[0]), number(&pair[1]))).collect();
            AckSet::from_parts(number(&words[1]), &ranges)
        };
        self.cursors.iter().map(received).collect()
    }
}

/// One message on its way.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    pub bytes: u64,
    pub key: Option<&'a str>,
    /// In seconds, 0 = never.
    pub expires: u64,
}

#[derive(Debug)]
pub struct Plain {
    pub head: Seq,
    pub entries: Vec<(Seq, u64, u64)>,
    keys: Vec<(String, Seq, u64)>,
    cursors: Vec<AckSet>,
    limits: Limits,
    now: u64,
}

impl Plain {
    /// As it was found, at some second.
    pub fn new(looked: &Looked, limits: Limits, now: u64) -> Self {
        let (entries, keys) = (looked.entries.clone(), looked.keys.clone());
        Self { head: looked.head, entries, keys, cursors: looked.received(), limits, now }
    }

    /// One without anything, but for the cursor that all have at first.
    pub fn empty(limits: Limits, now: u64) -> Self {
        Self { head: 0, entries: Vec::new(), keys: Vec::new(), cursors: vec![AckSet::default()], limits, now }
    }

    /// Whether what everybody has is no more ranges than are remembered of one cursor: then it is exactly known.
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

    fn is_past(&self, expires: u64) -> bool {
        expires > 0 && expires <= self.now
    }

    fn everybody_has(&self, seq: Seq) -> bool {
        self.cursors.iter().all(|cursor| cursor.contains(seq))
    }

    fn through(&self) -> Seq {
        self.cursors.iter().map(AckSet::through).min().unwrap_or(0)
    }

    fn everybody_receives(&mut self, to: Seq) {
        self.cursors.iter_mut().for_each(|cursor| _ = cursor.insert(1, to));
        let through = self.through();
        self.entries.retain(|(seq, ..)| *seq > through);
        self.keys.retain(|(_, seq, _)| *seq > through);
    }

    fn fits(&self, bytes: u64) -> bool {
        let all: u64 = self.entries.iter().map(|(_, bytes, _)| bytes).sum();
        (self.entries.len() as u64) < self.limits.messages && all + bytes <= self.limits.bytes
    }

    /// What it is given, and how many go for it that somebody has not received.
    pub fn append(&mut self, message: Message<'_>) -> (Result<Seq, Reason>, u64) {
        let known = message.key.and_then(|key| self.keys.iter().find(|(known, ..)| known == key));
        let replaced = known.filter(|(_, seq, expires)| !self.is_past(*expires) && !self.everybody_has(*seq));
        let (replaced, mut dropped) = (replaced.map(|(_, seq, _)| *seq), 0);
        if replaced.is_none() && !self.fits(message.bytes) {
            let now = self.now;
            let is_past = |expires: u64| expires > 0 && expires <= now;
            self.entries.retain(|(.., expires)| !is_past(*expires));
            self.keys.retain(|(.., expires)| !is_past(*expires));
            let mut last = None;
            while self.limits.overflow == Overflow::DropOldest && !self.entries.is_empty() && !self.fits(message.bytes)
            {
                let (oldest, ..) = self.entries.remove(0);
                dropped += u64::from(!self.everybody_has(oldest));
                last = Some(oldest);
            }
            if let Some(last) = last {
                self.keys.retain(|(_, seq, _)| *seq > last);
                self.everybody_receives(last);
            }
        }
        if replaced.is_none() && !self.fits(message.bytes) {
            return (Err(Reason::Quota), dropped);
        }
        self.head += 1;
        if let Some(replaced) = replaced {
            self.entries.retain(|(seq, ..)| *seq != replaced);
            if replaced <= self.through() + 1 {
                self.everybody_receives(replaced);
            }
        }
        self.entries.push((self.head, message.bytes, message.expires));
        if let Some(key) = message.key {
            self.keys.retain(|(known, ..)| known != key);
            if self.keys.len() >= KEYS_MAX {
                self.keys.remove(0);
            }
            self.keys.push((key.to_owned(), self.head, message.expires));
        }
        (Ok(self.head), dropped)
    }
}
