//! Configuration of the encoding of records, blocks and rows.

use bincode::config;

/// Bounds what a damaged length can make the decoder reserve.
const DECODE_BYTES_MAX: usize = 1 << 20;

pub(super) type Format = config::Configuration<config::LittleEndian, config::Varint, config::Limit<DECODE_BYTES_MAX>>;

pub(super) fn format() -> Format {
    config::standard().with_limit::<DECODE_BYTES_MAX>()
}
