//! Reads files of bounded size.

use std::{
    fs::File,
    io::{self, Read as _},
    path::Path,
};

/// Reads at most `bytes_max` + 1 bytes of a file. A result above `bytes_max` means that the file is too large.
pub fn read_bounded(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(bytes_max + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}
