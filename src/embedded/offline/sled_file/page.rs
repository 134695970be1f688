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

/// Holds the pairs of a leaf or the children of an inner page, with complete keys.
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

    fn bytes(&mut self) -> Option<Bytes> {
        let length = usize::try_from(self.number()?).ok()?;
        (length <= self.bytes.len()).then(|| self.bytes.split_to(length))
    }
}

impl Node {
    pub fn decode(bytes: Bytes) -> Option<(Self, Prefix)> {
        let mut reader = Reader { bytes };
        let (next, merging_child, _merging) = (reader.number()?, reader.number()?, reader.byte()?);
        let prefix = usize::from(reader.byte()?);
        let (lo, hi) = (reader.bytes()?, reader.bytes()?);
        let prefix = Prefix { bytes: lo.get(..prefix)?.to_vec(), merging_child };
        let is_leaf = match reader.byte()? {
            0 => true,
            1 => false,
            _ => return None,
        };
        let count = usize::try_from(reader.number()?).ok()?;
        let mut keys = Vec::new();
        for _ in 0..count {
            keys.push(prefix.prepend_to(&reader.bytes()?));
        }
        let data = if is_leaf {
            Data::Leaf(keys.into_iter().map(|key| Some((key, reader.bytes()?))).collect::<Option<_>>()?)
        } else {
            Data::Index(keys.into_iter().map(|key| Some((key, reader.number()?))).collect::<Option<_>>()?)
        };
        Some((Self { next, lo, hi, data }, prefix))
    }

    /// Applies a change. Ignores a change that does not fit the kind of page.
    pub fn apply(&mut self, link: Link, prefix: &Prefix) {
        match (link, &mut self.data) {
            (Link::Set(key, value), Data::Leaf(pairs)) => {
                let key = prefix.prepend_to(&key);
                match pairs.binary_search_by(|(known, _)| known.cmp(&key)) {
                    Ok(at) => pairs[at].1 = value,
                    Err(at) => pairs.insert(at, (key, value)),
                }
            }
            (Link::Remove(key), Data::Leaf(pairs)) => {
                let key = prefix.prepend_to(&key);
                pairs.retain(|(known, _)| *known != key);
            }
            (Link::MergeConfirm, Data::Index(children)) => {
                children.retain(|(_, page)| *page != prefix.merging_child);
            }
            _ => {}
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
    fn prepend_to(&self, key: &Bytes) -> Bytes {
        if self.bytes.is_empty() { key.clone() } else { [&self.bytes[..], key].concat().into() }
    }
}

impl Link {
    /// Decodes a change, and the number of the page that is about to be merged, if the change names one.
    pub fn decode(bytes: Bytes) -> Option<(Self, Option<u64>)> {
        let mut reader = Reader { bytes };
        Some(match reader.byte()? {
            0 => (Self::Set(reader.bytes()?, reader.bytes()?), None),
            1 => (Self::Remove(reader.bytes()?), None),
            2 => (Self::MergeIntention, Some(reader.number()?)),
            3 => (Self::MergeConfirm, None),
            4 => (Self::Merging, None),
            _ => return None,
        })
    }
}

/// Decodes the names of trees, and the root page of each.
pub fn tree_names(bytes: Bytes) -> Option<Vec<(Bytes, u64)>> {
    let mut reader = Reader { bytes };
    let mut names = Vec::new();
    while !reader.bytes.is_empty() {
        names.push((reader.bytes()?, reader.number()?));
    }
    Some(names)
}
