//! Errors for stores that another version of mesa wrote.

use super::tables::meta::FORMAT;
use crate::logging::excerpt;

/// Describes a store of another format, and what to do about it.
pub fn other_format(found: &str) -> String {
    let ours = String::from_utf8_lossy(FORMAT);
    let shown = excerpt(found);
    if is_newer_format(found) {
        return format!(
            "the store has format {shown}, and this version knows {ours}: a newer version of mesa wrote it. Use that version, or \
             a newer one"
        );
    }
    format!("the store has format {shown}, this version reads {ours}. Use the version that wrote it")
}

/// Returns whether a later version of mesa wrote this format.
pub fn is_newer_format(found: &str) -> bool {
    let number = |format: &str| format.strip_prefix("mesa-")?.parse::<u32>().ok();
    number(found) > number(&String::from_utf8_lossy(FORMAT))
}
