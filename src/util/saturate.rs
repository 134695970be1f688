//! Converts counts to 32 bits.

/// Converts a count or a size. A larger one becomes `u32::MAX`, and never a small number.
pub fn saturate(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
