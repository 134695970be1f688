//! sled's files, read without sled: nothing is written, and nothing is taken for granted.
//!
//! sled takes a log that is damaged for one that ends there, or for one in which nothing was ever written at that
//! place, and overwrites what lies behind. So whoever wants to know what is left must look before sled does. This reads
//! the format of sled 0.34, which is the last of its kind:
//!
//! - `segment`: the file is segments, a segment is messages, each with a checksum
//! - `copies`: blocks of a segment that the disk wrote to a wrong place
//! - `log`: the messages of all segments in the order in which they were written, and where that order is broken
//! - `page`: a message is a page of a tree, or a change to one
//! - `tables`: trees as pairs in order, with the gaps that damage has left
//! - `tail`: where the log ends while it is written

mod copies;
mod log;
mod page;
mod segment;
mod tables;
mod tail;
#[cfg(test)]
mod tests;

pub(in crate::store) use self::{log::Broken, tables::Gap};
pub(super) use self::{
    log::{Segments, check},
    tables::{Pairs, RawTables, TABLES},
    tail::Tail,
};
