//! Reads sled's files without sled and without changing them.
//!
//! sled treats a damaged log as one that ends there, or as one in which nothing was ever written at that place. Then it
//! overwrites what follows. So damage must be detected before sled opens its files. This module reads the format of
//! sled 0.34, the last version with it:
//!
//! - `segment`: the file is segments, a segment is messages, each with a checksum
//! - `copies`: blocks of a segment that the disk wrote to a wrong place
//! - `segment_log`: the messages of all segments in the order in which they were written, and where that order is broken
//! - `page`: a message is a page of a tree, or a change to one
//! - `trees`: trees as pairs in order, with the gaps that damage has left
//! - `tail`: where the log ends while it is written

mod copies;
mod page;
mod segment;
mod segment_log;
mod tail;
#[cfg(test)]
mod tests;
mod trees;

pub(in crate::embedded) use self::{segment_log::DamagedRange, trees::LostKeys};
pub(in crate::embedded) use self::{
    segment_log::{Segments, check},
    tail::Tail,
    trees::{Pairs, RawTables, TABLES},
};
