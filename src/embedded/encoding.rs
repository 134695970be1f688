//! Configures the bincode encoding of records, blocks and rows.

use bincode::config;

/// Limit of memory that a damaged length can make the decoder allocate, in bytes.
const DECODE_BYTES_MAX: usize = 1 << 20;

pub(super) type BincodeConfig =
    config::Configuration<config::LittleEndian, config::Varint, config::Limit<DECODE_BYTES_MAX>>;

pub(super) fn bincode_config() -> BincodeConfig {
    config::standard().with_limit::<DECODE_BYTES_MAX>()
}
