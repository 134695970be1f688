//! sled's files, read without sled: nothing is written, and nothing is taken for granted.
//!
//! sled takes a log that is damaged for one that ends there, or for one in which nothing was ever written at that
//! place, and overwrites what lies behind. So whoever wants to know what is left must look before sled does. This reads
//! the format of sled 0.34, which is the last of its kind:
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

pub(in crate::embedded) use self::{segment_log::Broken, trees::Gap};
pub(in crate::embedded) use self::{
    segment_log::{Segments, check},
    tail::Tail,
    trees::{Pairs, RawTables, TABLES},
};
