//! Reads sled's files without sled, and without changing them.
//!
//! sled takes damage for the end of its log, or for an offset at which nothing was ever written. Then it overwrites the
//! data after it. So damage must be detected before sled opens its files. This module reads the format of sled 0.34,
//! the last version with that format:
//!
//! - `segment`: one segment of the file, a sequence of messages with checksums
//! - `misdirected`: disk blocks at a wrong offset of a segment
//! - `segment_log`: the messages of all segments in the order of the log, and damaged ranges
//! - `page`: the body of a message, which is a page of a tree or a change to one
//! - `trees`: trees as pairs in order, and lost ranges of keys
//! - `tail`: the end of the log while sled writes it

mod misdirected;
mod page;
mod segment;
mod segment_log;
mod tail;
#[cfg(test)]
mod tests;
mod trees;

pub(in crate::embedded) use self::{segment_log::DamagedRange, trees::LostKeys};
pub(in crate::embedded) use self::{
    segment_log::Segments,
    tail::Tail,
    trees::{Pairs, RawTables, TABLES},
};
