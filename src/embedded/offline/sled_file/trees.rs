//! Reads trees as ordered pairs, one page in memory at a time, and finds lost ranges of keys.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    io,
    ops::Bound,
    path::Path,
};

use bytes::Bytes;

use super::{
    page::{Data, Link, Node, tree_names},
    segment_log::{DamagedRange, Page, Segments, SledLog, check},
};
use crate::embedded::tables::contract::Table;

/// Describes a range of keys that is lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::embedded) struct LostKeys {
    pub table: Table,
    /// First key of the range.
    pub from: Bytes,
    /// First key after the range; empty = no bound.
    pub to: Bytes,
}

/// Assigns a range of keys to a leaf page.
///
/// The range begins at `lo` and ends before `hi` (empty = no bound).
#[derive(Clone, Debug, PartialEq, Eq)]
struct Leaf {
    lo: Bytes,
    hi: Bytes,
    page: u64,
}

/// Reads the tables of a closed store.
#[derive(Debug)]
pub(in crate::embedded) struct RawTables {
    log: SledLog,
    /// Leaf pages of each table, in the order of their keys, without overlap.
    leaves: [Vec<Leaf>; TABLES.len()],
    /// Pages that no tree refers to.
    orphans: Vec<u64>,
    /// Pages whose upper bound is not the lower bound of the next page.
    ///
    /// If the log is damaged after the image of such a page, a later image with other bounds may be lost. Changes to
    /// that image cannot be decoded, because the bounds decide which part of a key is stored.
    outdated: HashSet<u64>,
    pub lost_keys: Vec<LostKeys>,
}

/// Names of the trees of each table. The tree of the log holds block locations.
pub(in crate::embedded) const TABLES: [(&str, Table); 7] = [
    ("log", Table::Log),
    ("users", Table::Users),
    ("meta", Table::Meta),
    ("ids", Table::Ids),
    ("outbox", Table::Outbox),
    ("connected", Table::Connected),
    ("bodies", Table::Bodies),
];

impl RawTables {
    /// Reads sled's directory up to the end that sled detects. With `past_end`, reads everything readable.
    pub fn open(directory: &Path, past_end: bool) -> io::Result<Self> {
        let (mut tables, roots) = Self::with_roots(SledLog::read(&Segments::find(directory)?, past_end)?)?;
        let mut seen = HashSet::new();
        for (name, table) in TABLES {
            let root = roots.iter().find(|(known, _)| known == name.as_bytes()).map(|(_, page)| *page);
            if let Some(root) = root {
                tables.leaves[table as usize] = tables.find_leaves(vec![root], &mut seen)?;
            }
            // A table that was never created has no name. The caller detects a table whose name is lost.
            if root.is_some() {
                tables.find_lost_keys(table);
            }
        }
        let other_roots = roots.iter().filter(|(name, _)| TABLES.iter().all(|(known, _)| name != known.as_bytes()));
        for (_, root) in other_roots {
            tables.find_leaves(vec![*root], &mut seen)?;
        }
        tables.orphans = tables.log.pages.keys().copied().filter(|page| !seen.contains(page)).collect();
        tables.orphans.sort_unstable();
        tables.find_leaves(tables.orphans.clone(), &mut seen)?;
        Ok(tables)
    }

    /// Reads one table only, up to the end that sled detects, or returns the first damaged range of what sled will read.
    ///
    /// Does not read the pages of the other tables, which may be many: they are empty, and no lost keys are found. A log
    /// that a crash truncated after `synced` is not damaged.
    ///
    /// # Errors
    /// When a part up to the end cannot be read. sled would take that part for the end, and overwrite what follows.
    pub fn open_one(segments: &Segments, table: Table, synced: u64) -> io::Result<Result<Self, DamagedRange>> {
        let log = SledLog::read(segments, false)?;
        if let Some(damaged) = check(segments, &log, synced) {
            return Ok(Err(damaged));
        }
        let (mut tables, roots) = Self::with_roots(log)?;
        let name = TABLES.iter().find_map(|(name, named)| (*named == table).then_some(name.as_bytes()));
        let root = roots.iter().find(|(known, _)| Some(&known[..]) == name);
        if let Some((_, root)) = root {
            tables.leaves[table as usize] = tables.find_leaves(vec![*root], &mut HashSet::new())?;
        }
        Ok(Ok(tables))
    }

    /// Returns tables without any leaf, and the names of the trees with their root pages.
    fn with_roots(log: SledLog) -> io::Result<(Self, Vec<(Bytes, u64)>)> {
        let roots = match log.names {
            Some(location) => tree_names(log.body(location)?).unwrap_or_default(),
            None => Vec::new(),
        };
        let (leaves, outdated) = (Default::default(), HashSet::new());
        Ok((Self { log, leaves, orphans: Vec::new(), outdated, lost_keys: Vec::new() }, roots))
    }

    /// Returns the damaged parts of the file.
    pub fn damaged(&self) -> &[DamagedRange] {
        &self.log.damaged
    }

    /// Returns whether there is data after the end that sled detects.
    pub fn has_data_past_end(&self) -> bool {
        self.log.has_data_past_end
    }

    /// Returns the end of the log that sled detects.
    pub fn end(&self) -> u64 {
        self.log.end
    }

    /// Finds the leaf pages that are reachable from `queue`: the root of a tree, or orphaned pages.
    fn find_leaves(&mut self, mut queue: Vec<u64>, seen: &mut HashSet<u64>) -> io::Result<Vec<Leaf>> {
        let (mut leaves, mut begins) = (Vec::new(), BTreeSet::new());
        while let Some(page) = queue.pop() {
            let Some(node) = seen.insert(page).then(|| self.node(page)).transpose()?.flatten() else { continue };
            queue.extend((node.next > 0).then_some(node.next));
            match node.data {
                Data::Index(children) => {
                    queue.extend(children.iter().map(|(_, page)| *page));
                    begins.extend(children.into_iter().map(|(lo, _)| lo));
                }
                Data::Leaf(_) => {
                    begins.insert(node.lo.clone());
                    leaves.push((Leaf { lo: node.lo, hi: node.hi, page }, self.last_write(page)));
                }
            }
        }
        let next = |leaf: &Leaf| begins.range::<Bytes, _>((Bound::Excluded(&leaf.lo), Bound::Unbounded)).next();
        let outdated = leaves.iter().filter(|(leaf, _)| next(leaf).map_or(&b""[..], |next| next) != leaf.hi);
        self.outdated.extend(outdated.map(|(leaf, _)| leaf.page));
        Ok(resolve_overlaps(leaves))
    }

    /// Returns the log position of the last write to a page.
    fn last_write(&self, page: u64) -> u64 {
        let page = self.log.pages.get(&page);
        page.map_or(0, |Page { base, links, .. }| links.last().map_or(base.lsn, |link| link.lsn))
    }

    fn find_lost_keys(&mut self, table: Table) {
        let mut from = Some(Bytes::new());
        for leaf in &self.leaves[table as usize] {
            let Some(known) = &from else { break };
            if leaf.lo > *known {
                self.lost_keys.push(LostKeys { table, from: known.clone(), to: leaf.lo.clone() });
            }
            let until = leaf.hi.clone();
            from = if until.is_empty() { None } else { Some(until.max(known.clone())) };
        }
        if let Some(from) = from {
            self.lost_keys.push(LostKeys { table, from, to: Bytes::new() });
        }
    }

    /// Decodes a page with all changes to it. Returns `None` if it cannot be decoded.
    fn node(&self, number: u64) -> io::Result<Option<Node>> {
        let Some(Page { base, links, certain, contiguous, .. }) = self.log.pages.get(&number) else { return Ok(None) };
        let Some((mut node, mut prefix)) = Node::decode(self.log.body(*base)?) else { return Ok(None) };
        let known = match node.data {
            Data::Leaf(_) if self.log.breaks > 0 && self.outdated.contains(&number) => *contiguous,
            // A page without an image may have been split off any other page.
            Data::Leaf(_) if !self.log.without_image.is_empty() => *certain,
            _ => links.len(),
        };
        for link in &links[..known] {
            let Some((link, merging)) = Link::decode(self.log.body(*link)?) else { continue };
            prefix.merging_child = merging.unwrap_or(prefix.merging_child);
            node.apply(link, &prefix);
        }
        Ok(Some(node))
    }

    /// Returns the pairs of a table from `from` on, in order.
    pub fn pairs(&self, table: Table, from: &[u8]) -> Pairs<'_> {
        let leaves = &self.leaves[table as usize];
        let at = leaves.partition_point(|leaf| !leaf.hi.is_empty() && leaf.hi <= from);
        Pairs {
            tables: self,
            leaves: &leaves[at..],
            from: Bytes::copy_from_slice(from),
            current: Vec::new().into_iter(),
        }
    }

    /// Returns a value.
    pub fn get(&self, table: Table, key: &[u8]) -> io::Result<Option<Bytes>> {
        let first = self.pairs(table, key).next().transpose()?;
        Ok(first.filter(|(found, _)| found == key).map(|(_, value)| value))
    }

    /// Returns the pairs of each page that no tree refers to. Their table is unknown.
    ///
    /// They include outdated pairs of pages that were merged into others.
    pub fn orphan_pairs(&self) -> impl Iterator<Item = io::Result<Vec<(Bytes, Bytes)>>> {
        let pages = self.orphans.iter().filter_map(|page| self.node(*page).transpose());
        pages.map(|node| {
            node.map(|node| match node.data {
                Data::Leaf(pairs) => pairs,
                Data::Index(_) => Vec::new(),
            })
        })
    }
}

/// Assigns each key to one page. `pages` has the log position of the last write to each page.
///
/// Of several pages with a key, the page written last wins. Pages overlap during a merge: the merging page is the later
/// one. They also overlap if damage lost a split: the earlier page still has the keys that it gave to the later page.
fn resolve_overlaps(pages: Vec<(Leaf, u64)>) -> Vec<Leaf> {
    let mut beginning: BTreeMap<Bytes, Vec<(Leaf, u64)>> = BTreeMap::new();
    let mut bounds = BTreeSet::new();
    for (leaf, written) in pages {
        bounds.extend([leaf.lo.clone(), leaf.hi.clone()]);
        beginning.entry(leaf.lo.clone()).or_default().push((leaf, written));
    }
    let mut divided: Vec<Leaf> = Vec::new();
    // Pages that have the keys from the current bound on, by their last write.
    let mut covering: BTreeMap<(u64, u64), Bytes> = BTreeMap::new();
    let mut bounds = bounds.into_iter().peekable();
    while let Some(lo) = bounds.next() {
        let begin = beginning.remove(&lo).unwrap_or_default();
        covering.extend(begin.into_iter().map(|(leaf, written)| ((written, leaf.page), leaf.hi)));
        covering.retain(|_, hi| hi.is_empty() || *hi > lo);
        let Some((&(_, page), _)) = covering.last_key_value() else { continue };
        let hi = bounds.peek().cloned().unwrap_or_default();
        match divided.last_mut().filter(|last| last.page == page && last.hi == lo) {
            Some(last) => last.hi = hi,
            None => divided.push(Leaf { lo, hi, page }),
        }
    }
    divided
}

/// Iterates over a table: see [`RawTables::pairs`].
pub(in crate::embedded) struct Pairs<'a> {
    tables: &'a RawTables,
    leaves: &'a [Leaf],
    /// Lowest key to return.
    from: Bytes,
    /// Remaining pairs of the current leaf.
    current: std::vec::IntoIter<(Bytes, Bytes)>,
}

impl Iterator for Pairs<'_> {
    type Item = io::Result<(Bytes, Bytes)>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(pair) = self.current.next() {
                return Some(Ok(pair));
            }
            let (leaf, rest) = self.leaves.split_first()?;
            self.leaves = rest;
            let node = match self.tables.node(leaf.page) {
                Ok(node) => node,
                Err(error) => return Some(Err(error)),
            };
            if let Some(Node { data: Data::Leaf(mut pairs), .. }) = node {
                let from = leaf.lo.clone().max(self.from.clone());
                pairs.retain(|(key, _)| *key >= from && (leaf.hi.is_empty() || *key < leaf.hi));
                self.current = pairs.into_iter();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn leaf((lo, hi, page): (&'static str, &'static str, u64)) -> Leaf {
        Leaf { lo: lo.into(), hi: hi.into(), page }
    }

    #[test]
    fn overlapping_pages_resolve_to_the_one_written_last() {
        // Page 1 gave away the keys from "m" on, and damage lost that change.
        let [whole, right, left] = [("", "", 1), ("m", "", 2), ("", "m", 1)].map(leaf);
        assert_eq!(resolve_overlaps(vec![(whole.clone(), 10), (right.clone(), 11)]), [left.clone(), right.clone()]);
        // Page 1 has merged the keys from "m" on.
        assert_eq!(resolve_overlaps(vec![(whole.clone(), 12), (right, 11)]), [whole]);
        // No current page has the keys in between, so those of an older page are used.
        let [second, old, rest] = [("m", "p", 2), ("a", "z", 3), ("p", "z", 3)].map(leaf);
        let middle = leaf(("a", "m", 3));
        assert_eq!(resolve_overlaps(vec![(second.clone(), 9), (old, 1)]), [middle, second, rest]);
        assert_eq!(
            resolve_overlaps(vec![(left, 1), (leaf(("p", "q", 4)), 2)]),
            [("", "m", 1), ("p", "q", 4)].map(leaf)
        );
    }

    proptest! {
        #[test]
        fn each_key_resolves_to_the_last_written_page_that_has_it(
            pages in prop::collection::vec((0_u8..20, prop::option::of(0_u8..20)), 0..8)
        ) {
            let bound = |at: u8| Bytes::from(if at == 0 { Vec::new() } else { vec![at] });
            let pages: Vec<(Leaf, u64)> = (0..).zip(pages).map(|(page, (lo, hi))| {
                (Leaf { lo: bound(lo), hi: hi.map(bound).unwrap_or_default(), page }, page * 7 % 5)
            }).collect();
            let has = |leaf: &Leaf, key: &Bytes| leaf.lo <= *key && (leaf.hi.is_empty() || *key < leaf.hi);
            let divided = resolve_overlaps(pages.clone());
            for key in (0..22).map(bound) {
                let known = pages.iter().filter(|(leaf, _)| has(leaf, &key));
                let expected = known.max_by_key(|(leaf, written)| (*written, leaf.page)).map(|(leaf, _)| leaf.page);
                let found: Vec<u64> = divided.iter().filter(|leaf| has(leaf, &key)).map(|leaf| leaf.page).collect();
                prop_assert_eq!(found, expected.into_iter().collect::<Vec<_>>());
            }
            prop_assert!(divided.is_sorted_by(|one, other| !one.hi.is_empty() && one.hi <= other.lo));
        }
    }
}
