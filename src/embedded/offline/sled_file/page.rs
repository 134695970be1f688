//! Decodes the body of a message: a page of a tree, a change to one, or the names of trees.

use bytes::Bytes;

use super::segment::varint;

/// Holds a page of a tree.
#[derive(Clone, Debug)]
pub struct Node {
    /// The next page to the right; 0 = none.
    pub next: u64,
    /// Keys are at or above `lo`, and below `hi` (empty = no bound).
    pub lo: Bytes,
    pub hi: Bytes,
    pub data: Data,
}

/// Holds the pairs or children of a page, with complete keys.
#[derive(Clone, Debug)]
pub enum Data {
    Leaf(Vec<(Bytes, Bytes)>),
    Index(Vec<(Bytes, u64)>),
}

/// Holds a change to a page. Keys lack the page's common prefix.
#[derive(Clone, Debug)]
pub enum Link {
    Set(Bytes, Bytes),
    Remove(Bytes),
    /// The page is about to merge another one. Nothing has changed yet.
    MergeIntention,
    /// The merge is done.
    MergeConfirm,
    /// This page is about to be merged into another.
    Merging,
}

struct Reader {
    bytes: Bytes,
}

impl Reader {
    fn byte(&mut self) -> Option<u8> {
        (!self.bytes.is_empty()).then(|| self.bytes.split_to(1)[0])
    }

    fn number(&mut self) -> Option<u64> {
        let mut rest = &self.bytes[..];
        let number = varint(&mut rest)?;
        let length = self.bytes.len() - rest.len();
        _ = self.bytes.split_to(length);
        Some(number)
    }

    fn text(&mut self) -> Option<Bytes> {
        let length = usize::try_from(self.number()?).ok()?;
        (length <= self.bytes.len()).then(|| self.bytes.split_to(length))
    }
}

impl Node {
    pub fn decode(bytes: Bytes) -> Option<(Self, Prefix)> {
        let mut from = Reader { bytes };
        let (next, merging_child, _merging) = (from.number()?, from.number()?, from.byte()?);
        let prefix = usize::from(from.byte()?);
        let (lo, hi) = (from.text()?, from.text()?);
        let prefix = Prefix { bytes: lo.get(..prefix)?.to_vec(), merging_child };
        let is_leaf = match from.byte()? {
            0 => true,
            1 => false,
            _ => return None,
        };
        let count = usize::try_from(from.number()?).ok()?;
        let mut keys = Vec::new();
        for _ in 0..count {
            keys.push(prefix.whole(&from.text()?));
        }
        let data = if is_leaf {
            Data::Leaf(keys.into_iter().map(|key| Some((key, from.text()?))).collect::<Option<_>>()?)
        } else {
            Data::Index(keys.into_iter().map(|key| Some((key, from.number()?))).collect::<Option<_>>()?)
        };
        Some((Self { next, lo, hi, data }, prefix))
    }

    /// Applies a change. Returns false if it does not fit the kind of page.
    pub fn apply(&mut self, link: Link, prefix: &Prefix) -> bool {
        match (link, &mut self.data) {
            (Link::Set(key, value), Data::Leaf(pairs)) => {
                let key = prefix.whole(&key);
                match pairs.binary_search_by(|(known, _)| known.cmp(&key)) {
                    Ok(at) => pairs[at].1 = value,
                    Err(at) => pairs.insert(at, (key, value)),
                }
                true
            }
            (Link::Remove(key), Data::Leaf(pairs)) => {
                let key = prefix.whole(&key);
                pairs.retain(|(known, _)| *known != key);
                true
            }
            (Link::MergeConfirm, Data::Index(children)) => {
                children.retain(|(_, page)| *page != prefix.merging_child);
                true
            }
            (Link::MergeIntention | Link::Merging, _) => true,
            _ => false,
        }
    }
}

/// Holds the common prefix of a page's keys, and the page that it is about to merge.
#[derive(Clone, Debug)]
pub struct Prefix {
    bytes: Vec<u8>,
    pub merging_child: u64,
}

impl Prefix {
    fn whole(&self, key: &Bytes) -> Bytes {
        if self.bytes.is_empty() { key.clone() } else { [&self.bytes[..], key].concat().into() }
    }
}

impl Link {
    /// Decodes a change, and the page that is about to be merged, if the change names one.
    pub fn decode(bytes: Bytes) -> Option<(Self, Option<u64>)> {
        let mut from = Reader { bytes };
        Some(match from.byte()? {
            0 => (Self::Set(from.text()?, from.text()?), None),
            1 => (Self::Remove(from.text()?), None),
            2 => (Self::MergeIntention, Some(from.number()?)),
            3 => (Self::MergeConfirm, None),
            4 => (Self::Merging, None),
            _ => return None,
        })
    }
}

/// Decodes the names of trees, and the root page of each.
pub fn names(bytes: Bytes) -> Option<Vec<(Bytes, u64)>> {
    let mut from = Reader { bytes };
    let mut names = Vec::new();
    while !from.bytes.is_empty() {
        names.push((from.text()?, from.number()?));
    }
    Some(names)
}
